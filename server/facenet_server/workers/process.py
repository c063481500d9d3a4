"""A worker process: it does the server's jobs, and ends with it.

    python -m facenet_server.workers.process SOCKET BOARD PARENT

The first two are inherited descriptors, the third is the server's process id. What a job is, its header says.
"""

import asyncio
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facenet_server import inference
from facenet_server.config import Config
from facenet_server.errors import InternalError, ItemError, StartError
from facenet_server.inference import Networks
from facenet_server.models.fault_tolerance import FaultTolerantNetwork
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.batcher import outcomes
from facenet_server.serving.compute import Compute
from facenet_server.serving.per_image_detector import warm_up
from facenet_server.serving.pipeline import ImageWorkers
from facenet_server.telemetry import process_memory
from facenet_server.telemetry.counters import Stats
from facenet_server.telemetry.error_id import log_error
from facenet_server.vision.sources import Encoded
from facenet_server.workers import wire
from facenet_server.workers.board import Board
from facenet_server.workers.channel import Channel, Header, Payload, arrays_of, packed, told

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 300  # beside the server's own: a worker is ended before it
_GIVE_BACK_S = 10.0

Answer = tuple[Header, Sequence[Any]]  # what is told, and the buffers beside it


class Worker:
    """Jobs as they come; ``run`` never returns. Whoever needs other networks replaces what opens them."""

    open_all: Callable[[Config], Mapping[str, Any]] = staticmethod(inference.open_networks)
    open_files: Callable[[Config, list[str]], Mapping[str, Any]] = staticmethod(inference.open_files)

    _config: Config
    _networks: Networks
    _detector: ImageWorkers
    _compute: Compute

    def __init__(self, end: socket.socket, board: Board) -> None:
        self._board = board
        self._end = end
        self._stats = Stats()
        self._embedders: dict[str, Any] = {}  # by their file's SHA-256
        self._opening = asyncio.Lock()
        self._jobs: dict[int, asyncio.Task[None]] = {}
        self._does: dict[str, Callable[[Header, Any], Awaitable[Answer]]] = {
            "verify": self._verify,
            "open": self._open,
            "find": self._find,
            "decode": self._decode,
            "embed": self._embed,
        }

    async def run(self) -> None:
        """Do what is asked for, until the server has gone."""
        async with AsyncExitStack() as self._stack, process_memory.given_back(_GIVE_BACK_S):
            self._channel = Channel(self._end, self._on_message, lambda: os._exit(0))
            await asyncio.get_running_loop().create_future()

    def _on_message(self, header: Header, payload: Any) -> None:
        number = header["id"]
        if header["op"] == "cancel":
            if job := self._jobs.get(number):
                job.cancel()
            return
        self._jobs[number] = job = asyncio.create_task(self._answer(number, header, payload))
        job.add_done_callback(lambda _: self._tell_unbegun(number))

    def _tell_unbegun(self, number: int) -> None:
        """The end of a job that was cancelled before it began."""
        if self._jobs.pop(number, None):
            self._channel.send({"id": number, "cancelled": True})

    async def _answer(self, number: int, header: Header, payload: Any) -> None:
        pieces: Sequence[Any] = ()
        try:
            answer, pieces = await self._does[header["op"]](header, payload)
        except asyncio.CancelledError:  # not passed on: the server that asked for it is told
            answer = {"cancelled": True}
        except StartError as error:
            answer = {"start_error": str(error)}
        except ItemError as error:
            answer = {"error": wire.error_header(error)}
        except Exception:  # noqa: BLE001 (a job's failure is its own)
            answer = {"error": wire.error_header(InternalError(log_error("a job failed")))}
        del self._jobs[number]  # it cannot be cancelled any more
        try:
            payload = await packed(pieces)
        except OSError:  # no memory, no descriptor
            answer, payload = {"error": wire.error_header(InternalError(log_error("an answer was lost")))}, Payload()
        self._channel.send({"id": number, **answer, "stages": self._stats.drain()}, payload)

    # ---- the jobs ----

    async def _verify(self, header: Header, _: Any) -> Answer:
        """Open every model of the folder, and tell what they are."""

        config = self._configure(header)
        networks = await asyncio.to_thread(self.open_all, config)
        await asyncio.to_thread(warm_up)
        infos = [asdict(info) for info in inference.infos_of(networks)]
        return {"infos": infos, "providers": inference.providers_of(networks)}, ()

    async def _open(self, header: Header, _: Any) -> Answer:
        """Open the files of these SHA-256, the detector's and some embedders', and be ready."""

        config = self._configure(header)
        self._networks = await asyncio.to_thread(self.open_files, config, header["files"])
        await asyncio.to_thread(warm_up)
        self._compute = self._stack.enter_context(
            inference.open_compute(self._networks, config, self._stats, lambda: self._board.n_threads - 1)
        )
        self._detector = await inference.open_detector(
            self._networks, config, self._stats, self._compute, self._stack, _lost
        )
        for network in self._networks.values():
            if network.info.kind == "embedder":
                self._keep(network)
        process_memory.freeze_gc()
        process_memory.give_back()
        return {"private_bytes": process_memory.private_bytes()}, ()

    async def _find(self, header: Header, payload: Any) -> Answer:
        task = wire.task_of(header, payload)
        return wire.found_header(await self._detector.find(task, BatchBarrier(1, pixels=header["pixels"])))

    async def _decode(self, header: Header, payload: Any) -> Answer:
        crop = wire.image_of(header["image"], payload)
        assert isinstance(crop, Encoded)
        return wire.crop_header(await self._detector.decode_crop(crop, wire.limits_of(header["limits"])))

    async def _embed(self, header: Header, payload: Any) -> Answer:
        """A batch of several calls' rows; where it fails, each call by itself."""

        net = await self._embedder(header["file"])
        (rows,) = arrays_of(payload, header["arrays"])
        calls, at = [], 0
        for count in header["counts"]:
            calls.append((rows[at : at + count],))
            at += count

        def run() -> tuple[list[Any], int]:
            start_ns = time.monotonic_ns()
            return outcomes(net, calls, (rows,)), time.monotonic_ns() - start_ns

        found, compute_ns = await asyncio.wrap_future(self._compute.threads.submit(run))
        errors = {number: _told(outcome) for number, outcome in enumerate(found) if isinstance(outcome, Exception)}
        vectors = [outcome[0] for outcome in found if not isinstance(outcome, Exception)]
        return {"errors": errors, "arrays": told(vectors), "compute_ns": compute_ns}, vectors

    # ---- helpers ----

    def _configure(self, header: Header) -> Config:
        self._config = wire.config_of(header["config"])
        logging.getLogger("facenet_server").setLevel(self._config.log_level.upper())
        return self._config

    async def _embedder(self, sha256: str) -> Any:
        """An embedder, opened where it is not."""

        async with self._opening:
            if sha256 not in self._embedders:
                networks = await asyncio.to_thread(self.open_files, self._config, [sha256])
                for network in networks.values():
                    self._keep(network)
        return self._embedders[sha256]

    def _keep(self, network: Any) -> None:

        self._embedders[network.info.onnx_sha256] = FaultTolerantNetwork(network, _lost)


def _told(error: Exception) -> Header:
    return wire.error_header(error if isinstance(error, ItemError) else InternalError(log_error("a batch", error)))


def _lost() -> None:
    """A process cannot get out of a poisoned CUDA context; another may do what this one had."""
    logging.getLogger(__name__).error("the device is lost: this worker ends")
    os._exit(wire.EXIT_LOST)


def _die_with(parent: int) -> None:
    """End where the server's process does, whatever ended it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _offer_to_oom_killer() -> None:
    score = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE)))


def main(arguments: Sequence[str], kind: type[Worker] = Worker) -> None:
    """Run until the server closes its end. Signals to the whole process group are the server's business."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    end, board, parent = map(int, arguments)
    _die_with(parent)
    _offer_to_oom_killer()
    process_memory.limit_heaps(1)
    faulthandler.enable()
    shared = Board(board)
    shared.start_beating()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)

    async def run() -> None:
        await kind(socket.socket(fileno=end), shared).run()

    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1:])
