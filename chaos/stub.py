"""The real server on a stand-in embedder, in a process of its own: ``python -m chaos.stub '{"batch_s": 0.02, …}'``.

The embedder takes a fixed time for a batch, so that the server's capacity is known, and its vectors are made of each
crop's SHA-256, so that every answer proves which request it answers. The server around it is the real one. What the
rig switches off to see its checks fail, it switches off here: nothing of it is in the server. Where no photos are
sent, what finds faces is not made ready. Sent LOSE, it loses its device; TELL, it logs how many tasks it has.
"""

import asyncio
import hashlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from facenet_server import app, facenet, listening, stats
from facenet_server.backlog import Backlog
from facenet_server.batching import Batcher
from facenet_server.config import Config
from facenet_server.errors import FatalError
from facenet_server.service import FaceService
from facenet_server.sessions import ModelInfo

_APP: Any = app  # what is switched off is patched here, against their types
_LISTENING: Any = listening
_SERVICE: Any = FaceService
_FACENET: Any = facenet
_BACKLOG: Any = Backlog
_BATCHER: Any = Batcher

_log = logging.getLogger(__name__)

DIMENSION = 32
DEADLINE_MARK = b"deadline"  # a crop that begins so says in its next 8 bytes until when (monotonic, microseconds)
LATE, COUNTS, TASKS = "ran a late row", "counts at the end", "tasks"
NO_MEMORY = "Failed to allocate memory for requested buffer of size 104857600"
FAILED = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node."
LOST = "CUDA failure 700: an illegal memory access was encountered"
LOSE, TELL = signal.SIGUSR1, signal.SIGUSR2

_lost = threading.Event()


@dataclass
class Behaviour:
    """What this server is like; the fields after ``core`` make it worse than the real one."""

    config: dict[str, Any] = field(default_factory=dict)
    models: str = ""  # a folder: the real networks of it instead of the stand-in, which is what follows up to ``core``
    batch_s: float = 0.02
    varied: bool = False  # times of batches: exponentially distributed, ``batch_s`` their mean
    side: int = 160  # of a crop, px
    photos: bool = False  # are sent, or it is to start as long as it does
    dimension: int = DIMENSION
    keepalive_s: tuple[float, float] | None = None  # between probes, and for their answers; None: the server's own
    core: int | None = None  # -1: any
    memory_rows: int = 0  # rows for which the device has memory; 0: enough
    failing_share: float = 0.0  # of runs, at random
    ending_share: float = 0.0  # of runs, at random, which are to end their thread
    stumbling_share: float = 0.0  # of batches, at random, whose worker fails before it has put them together
    leak_bytes: int = 0  # of every item, for ever
    swap_after: int = 0  # batches of several rows; then two answers of one change places, once
    default_flow_control: bool = False
    lets_hopeless_in: bool = False  # what will wait for most of its time, too
    hard_stop: bool = False  # SIGTERM ends all calls at once

    @property
    def finds_faces(self) -> bool:
        """Whether what does so is to be ready."""
        return bool(self.models) or self.photos


def vector_of(crop: bytes) -> np.ndarray:
    """The unit vector (DIMENSION,) float32 that stands for a crop's bytes."""
    values = np.frombuffer(hashlib.sha256(crop).digest(), np.uint8).astype(np.float32) - 127.5
    return values / np.linalg.norm(values)


class StandIn:
    """A network as the server takes it."""

    providers = ("StandIn",)
    on_cuda = False

    def __init__(self, kind: str, net: Any, behaviour: Behaviour) -> None:
        self.info = ModelInfo(kind, kind, "stand-in", "0", "0", "fixed", behaviour.side, 0.0, behaviour.dimension)
        self._net = net

    def __call__(self, *inputs: Any) -> Any:
        return self._net(*inputs)


class Wrapped:
    """A network with something about its runs."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


class Faulty(Wrapped):
    """A network on a device that has its behaviour's faults, and may be lost."""

    def __init__(self, network: Any, behaviour: Behaviour) -> None:
        super().__init__(network)
        self._behaviour = behaviour

    def __call__(self, *inputs: Any) -> Any:
        behaviour = self._behaviour
        if _lost.is_set():
            raise RuntimeError(LOST)
        if behaviour.memory_rows and len(inputs[0]) > behaviour.memory_rows:
            _log.info(NO_MEMORY)
            raise RuntimeError(NO_MEMORY)
        if random.random() < behaviour.failing_share:
            raise RuntimeError(FAILED)
        if random.random() < behaviour.ending_share:
            raise SystemExit(1)
        return self._network(*inputs)


class Swapping(Wrapped):
    """A network that once, after so many batches of several rows, answers two of them with each other's answers."""

    def __init__(self, network: Any, after: int) -> None:
        super().__init__(network)
        self._left = after

    def __call__(self, *inputs: Any) -> Any:
        outputs = self._network(*inputs)
        if len(inputs[0]) > 1:
            self._left -= 1
            if self._left == 0:
                order = [len(inputs[0]) - 1, *range(1, len(inputs[0]) - 1), 0]
                outputs = tuple(rows[order] for rows in outputs)
        return outputs


def _embedder(behaviour: Behaviour) -> Any:
    leaked: list[bytes] = []

    def embed(rows: np.ndarray) -> tuple[np.ndarray, ...]:
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


def _change_options(without: tuple[str, ...], more: list[tuple[str, int]]) -> None:
    """Let gRPC have other options than the server gives it."""
    ours = _LISTENING._channel_options
    names = (*without, *(name for name, _ in more))
    _LISTENING._channel_options = lambda config: [option for option in ours(config) if option[0] not in names] + more


def _keepalive(between_s: float, answer_s: float) -> list[tuple[str, int]]:
    return [
        ("grpc.keepalive_time_ms", round(between_s * 1e3)),
        ("grpc.keepalive_timeout_ms", round(answer_s * 1e3)),
        ("grpc.http2.ping_timeout_ms", round(answer_s * 1e3)),
    ]


def _remember() -> list[FaceService]:
    """The services that are made from now on."""
    made, init = list[FaceService](), _SERVICE.__init__

    def remembering(self: FaceService, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    _SERVICE.__init__ = remembering
    return made


def _stumble(share: float) -> None:
    """Let workers fail at random where they put a batch together."""
    take = _BATCHER._take

    def stumbling(self: Batcher, batch: list[Any]) -> None:
        if self._parts and random.random() < share:
            raise RuntimeError("stumbled")
        take(self, batch)

    _BATCHER._take = stumbling


async def _stop_hard(server: Any, *_: Any) -> None:
    await server.stop(0)


def _switch(behaviour: Behaviour) -> None:
    """Set this process up, and switch off in it what is to be off."""
    if behaviour.core is not None and hasattr(os, "sched_setaffinity") and (cores := os.cpu_count() or 1) > 1:
        try:
            os.sched_setaffinity(0, range(cores) if behaviour.core < 0 else {behaviour.core})
        except OSError as error:
            _log.warning("the server shares cores with its callers: %s", error)
    if behaviour.default_flow_control:
        _change_options(("grpc.http2.bdp_probe", "grpc.http2.lookahead_bytes"), [])
    if behaviour.keepalive_s:
        _change_options((), _keepalive(*behaviour.keepalive_s))
    if behaviour.lets_hopeless_in:
        _BACKLOG.back_in_s = lambda *_: 0.0
    if behaviour.stumbling_share:
        _stumble(behaviour.stumbling_share)
    if behaviour.hard_stop:
        _APP._stop = _stop_hard
        _SERVICE.drain = lambda self: None
    if not behaviour.models:
        _FACENET.INPUT_SIZE_PX = behaviour.side
    if not behaviour.finds_faces:
        _APP.warm_up = lambda: None


def _opener(behaviour: Behaviour) -> Any:
    """What opens the networks."""
    nets = {"pnet": _no_faces, "rnet": _no_faces, "onet": _no_faces, "embedder": _embedder(behaviour)}

    def open_networks(config: Config) -> dict[str, Any]:
        networks: dict[str, Any] = {kind: StandIn(kind, net, behaviour) for kind, net in nets.items()}
        if behaviour.models:
            networks = dict(app.open_networks(config))
        for name, network in networks.items():
            if network.info.kind == "embedder":
                networks[name] = Faulty(network, behaviour)
                if behaviour.swap_after:
                    networks[name] = Swapping(networks[name], behaviour.swap_after)
        return networks

    return open_networks


async def _serve(config: Config, opener: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(LOSE, _lost.set)
    loop.add_signal_handler(TELL, lambda: _log.info("%s: %d", TASKS, len(asyncio.all_tasks())))
    await app.serve(config, opener)


def main() -> None:
    """Run until a signal."""
    behaviour = Behaviour(**json.loads(sys.argv[1]))
    _switch(behaviour)
    logging.basicConfig(level="INFO", stream=sys.stderr)
    config: dict[str, Any] = {"listen": "127.0.0.1:0", "runs_per_embedder": 1, "max_wait_s": 0.0}
    if behaviour.models:
        config = {"listen": "127.0.0.1:0", "models": Path(behaviour.models)}
    services = _remember()
    stats._SAMPLE_S, stats._SAMPLES = 0.005, 12_000  # the event loop's lag, finer than the server looks at it
    try:
        asyncio.run(_serve(Config(**config | behaviour.config), _opener(behaviour)))
    except FatalError as error:
        sys.exit(str(error))
    counts = services[0].admission.counts
    told = {"accepted": counts.accepted_items, "answered": counts.answered_items, "abandoned": counts.abandoned_items}
    _log.info("%s: %s", COUNTS, json.dumps(told))


if __name__ == "__main__":
    main()
