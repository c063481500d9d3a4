"""A worker process whose whole job is to wait: ``python -m benchmarks.workers.idle_worker SECONDS …``."""

import asyncio
import os
import socket
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from facenet_server.models.contract import ModelInfo
from facenet_server.serving.image_task import FoundFaces
from facenet_server.vision.boxes import NO_FACES
from facenet_server.workers import wire
from facenet_server.workers.board import Board
from facenet_server.workers.channel import Channel, Header, packed, told

NAME, DIMENSION = "idle", 128
_INFOS = [
    asdict(ModelInfo(name, kind, "none", "0", name, "fixed", 160, 0.0, DIMENSION))
    for name, kind in (("pnet", "pnet"), ("rnet", "rnet"), ("onet", "onet"), (NAME, "embedder"))
]


class IdleWorker:
    """It answers each job after so long, with no face, or vectors that are all alike."""

    def __init__(self, job_s: float, end: socket.socket) -> None:
        self._job_s = job_s
        self._tasks = set[asyncio.Task[None]]()
        self._channel = Channel(end, self._take, lambda: os._exit(0))

    def _take(self, header: Header, _: Any) -> None:
        if header["op"] != "cancel":
            self._tasks.add(task := asyncio.create_task(self._answer(header)))
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, header: Header) -> None:
        pieces: list[Any] = []
        answer: Header
        match header["op"]:
            case "verify":
                answer = {"infos": _INFOS, "providers": ["None"]}
            case "open":
                answer = {"private_bytes": 0}
            case "find":
                await asyncio.sleep(self._job_s)
                answer, pieces = wire.found_header(FoundFaces(NO_FACES, 250, 250, 1, damaged=False))
            case _:
                await asyncio.sleep(self._job_s)
                pieces = [np.full((count, DIMENSION), DIMENSION**-0.5, np.float32) for count in header["counts"]]
                answer = {"errors": {}, "arrays": told(pieces), "compute_ns": 0}
        self._channel.send({**answer, "id": header["id"], "stages": []}, await packed(pieces))


async def run(job_s: float, end: int, board: int) -> None:
    """Answer until the server goes."""
    Board(board).start_beating()
    worker = IdleWorker(job_s, socket.socket(fileno=end))
    await asyncio.get_running_loop().create_future()
    del worker


if __name__ == "__main__":
    asyncio.run(run(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
