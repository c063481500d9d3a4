"""The real server on a stand-in embedder, in a process of its own: ``python -m chaos.stub '{"port": 0, …}'``.

The embedder takes a fixed time for a batch, so that the server's capacity is known, and its vectors are made of each
crop's SHA-256, so that every answer proves which request it answers. The server around it is the real one. What the
rig switches off to see its checks fail, it switches off here: nothing of it is in the server.
"""

import asyncio
import hashlib
import json
import logging
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from facenet_server import app
from facenet_server.config import Config
from facenet_server.errors import FatalError
from facenet_server.service import FaceService
from facenet_server.sessions import ModelInfo

_APP: Any = app  # what is switched off is patched here, against their types
_SERVICE: Any = FaceService

_log = logging.getLogger(__name__)

DIMENSION = 32
DEADLINE_MARK = b"deadline"  # a crop that begins so says in its next 8 bytes until when (monotonic, microseconds)
LATE, COUNTS = "ran a late row", "counts at the end"
NO_MEMORY = "Failed to allocate memory for requested buffer of size 104857600"


@dataclass
class Behaviour:
    """What this server is like; everything but ``config`` and ``batch_s`` makes it worse than the real one."""

    config: dict[str, Any] = field(default_factory=dict)
    batch_s: float = 0.02
    models: str = ""  # a folder: the real networks of it instead of the stand-in
    side: int = 160  # of a crop
    dimension: int = DIMENSION
    varied: bool = False  # times of batches: exponentially distributed
    core: int | None = None
    memory_rows: int = 0  # rows for which the device has memory; 0: enough
    failing_share: float = 0.0  # of runs, at random
    leak_bytes: int = 0  # of every item, for ever
    swap_every: int = 0  # messages: two answers of one change places
    default_flow_control: bool = False
    hard_stop: bool = False  # SIGTERM ends all calls at once


def vector_of(crop: bytes) -> np.ndarray:
    """The unit vector (DIMENSION,) float32 that stands for a crop's bytes."""
    values = np.frombuffer(hashlib.sha256(crop).digest(), np.uint8).astype(np.float32) - 127.5
    return values / np.linalg.norm(values)


class Network:
    """A network as the server takes it."""

    providers = ("StandIn",)
    on_cuda = False

    def __init__(self, kind: str, net: Any, behaviour: Behaviour) -> None:
        self.info = ModelInfo(kind, kind, "stand-in", "0", "0", "fixed", behaviour.side, 0.0, behaviour.dimension)
        self._net = net

    def __call__(self, *inputs: Any) -> Any:
        return self._net(*inputs)


def _embedder(behaviour: Behaviour) -> Any:
    leaked: list[bytes] = []

    def embed(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        if behaviour.memory_rows and len(rows) > behaviour.memory_rows:
            raise RuntimeError(NO_MEMORY)
        if random.random() < behaviour.failing_share:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node.")
        for row in rows:
            _say_if_late(row)
        if behaviour.batch_s:
            time.sleep(random.expovariate(1 / behaviour.batch_s) if behaviour.varied else behaviour.batch_s)
        leaked.extend(os.urandom(behaviour.leak_bytes) for _ in rows if behaviour.leak_bytes)
        vectors = np.zeros((len(rows), behaviour.dimension), np.float32)
        vectors[:, :DIMENSION] = [vector_of(row.tobytes()) for row in rows]
        return (vectors,)

    return embed


def _say_if_late(row: np.ndarray) -> None:
    head = row.reshape(-1)[:16].tobytes()
    if head.startswith(DEADLINE_MARK):
        late_s = time.monotonic() - int.from_bytes(head[8:], "little") / 1e6
        if late_s > 0.02:  # the server counts from a message's arrival, the caller from when it sent it
            _log.info("%s: %.3f s", LATE, late_s)


def _no_faces(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    height, width = (-(-(side - 2) // 2) - 4 for side in rows.shape[1:3])
    shape = (len(rows), height, width)
    return np.zeros(shape, np.float32), np.zeros((*shape, 4), np.float32)


def _swap(every: int) -> None:
    """Let two answers of a message change places, once in so many messages."""
    honest, count = _SERVICE._each, 0

    async def dishonest(self: FaceService, *args: Any) -> list[Any]:
        nonlocal count
        results: list[Any] = await honest(self, *args)
        count += 1
        if count % every == 0 and len(results) > 1:
            results[0], results[1] = results[1], results[0]
        return results

    _SERVICE._each = dishonest


def _default_flow_control() -> None:
    ours = _APP._channel_options
    mine = ("grpc.http2.bdp_probe", "grpc.http2.lookahead_bytes")
    _APP._channel_options = lambda config: [option for option in ours(config) if option[0] not in mine]


def _remember() -> list[FaceService]:
    """The services that are made from now on."""
    made, init = list[FaceService](), _SERVICE.__init__

    def remembering(self: FaceService, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    _SERVICE.__init__ = remembering
    return made


async def _stop_hard(server: Any, *_: Any) -> None:
    await server.stop(0)


def main() -> None:
    """Run until a signal."""
    behaviour = Behaviour(**json.loads(sys.argv[1]))
    if behaviour.core is not None and hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {behaviour.core})
    if behaviour.swap_every:
        _swap(behaviour.swap_every)
    if behaviour.default_flow_control:
        _default_flow_control()
    if behaviour.hard_stop:
        _APP._stop = _stop_hard
        _SERVICE.drain = lambda self: None
    logging.basicConfig(level="INFO", stream=sys.stderr)
    nets = {"pnet": _no_faces, "rnet": _no_faces, "onet": _no_faces, "embedder": _embedder(behaviour)}
    config = Config(**{"listen": "127.0.0.1:0", "runs_per_embedder": 1, "max_wait_s": 0.0, **behaviour.config})
    if behaviour.models:
        config.models = Path(behaviour.models)
    services = _remember()
    try:
        networks: Any = {kind: Network(kind, net, behaviour) for kind, net in nets.items()}
        asyncio.run(app.serve(config, None if behaviour.models else lambda _: networks))
    except FatalError as error:
        sys.exit(str(error))
    counts = services[0].admission.counts
    told = {"accepted": counts.accepted_items, "answered": counts.answered_items, "abandoned": counts.abandoned_items}
    _log.info("%s: %s", COUNTS, json.dumps(told))


if __name__ == "__main__":
    main()
