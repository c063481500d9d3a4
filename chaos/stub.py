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
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from facenet_server import inference, server
from facenet_server.admission.wait_estimator import WaitEstimator
from facenet_server.build import Built, Parts
from facenet_server.config import Config
from facenet_server.errors import FatalError
from facenet_server.models.contract import ModelInfo
from facenet_server.rpc import listener, prescan
from facenet_server.server import StopPolicy
from facenet_server.serving.batcher import Batcher
from facenet_server.telemetry.counters import LoopLag

_log = logging.getLogger(__name__)

DIMENSION = 32
DEADLINE_MARK = b"deadline"  # a crop that begins so says in its next 8 bytes until when (monotonic, microseconds)
LATE, COUNTS, TASKS = "ran a late row", "counts at the end", "tasks"
NO_MEMORY = "Failed to allocate memory for requested buffer of size 104857600"
FAILED = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node."
LOST = "CUDA failure 700: an illegal memory access was encountered"
POISON = b"poison of workers"  # a crop that begins so ends the worker process that embeds it
WORKERS = "CHAOS_WORKERS"  # a variable: how many worker processes servers have, where a check does not say
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
    workers: int = field(default_factory=lambda: int(os.environ.get(WORKERS, 0)))  # processes that do the work
    core: int | None = None  # -1: any
    memory_rows: int = 0  # rows for which the device has memory; 0: enough
    failing_share: float = 0.0  # of runs, at random
    ending_share: float = 0.0  # of runs, at random, which are to end their thread
    stumbling_share: float = 0.0  # of batches, at random, whose worker fails before it has put them together
    leak_bytes: int = 0  # of every item, for ever
    swap_after: int = 0  # batches of several rows; then two answers of one change places, once
    default_flow_control: bool = False
    idle_s: float = 0  # that a connection may be; 0: the server's own
    counts_within: bool = True  # fields within items, before they are parsed
    lets_hopeless_in: bool = False  # what will wait for most of its time, too
    hard_stop: bool = False  # SIGTERM ends all calls at once
    worker_attempts: int = 2  # worker processes that may end with a job until it is given up

    @classmethod
    def of(cls, text: str) -> Self:
        """Out of JSON."""
        values = json.loads(text)
        return cls(**values)

    @property
    def finds_faces(self) -> bool:
        """Whether what does so is to be ready."""
        return bool(self.models or self.workers) or self.photos


def vector_of(crop: bytes) -> np.ndarray:
    """The unit vector (DIMENSION,) float32 that stands for a crop's bytes."""
    values = np.frombuffer(hashlib.sha256(crop).digest(), np.uint8).astype(np.float32) - 127.5
    return values / np.linalg.norm(values)


class StandIn:
    """A network as the server takes it."""

    providers = ("StandIn",)
    on_cuda = False

    def __init__(self, kind: str, net: Any, behaviour: Behaviour) -> None:
        self.info = ModelInfo(kind, kind, "stand-in", "0", kind, "fixed", behaviour.side, 0.0, behaviour.dimension)
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


def _channel_options(behaviour: Behaviour, config: Config) -> listener.ChannelOptions:
    """gRPC's options as the server gives them, but for some."""
    more = _keepalive(*behaviour.keepalive_s) if behaviour.keepalive_s else []
    more += [("grpc.max_connection_idle_ms", round(behaviour.idle_s * 1e3))] if behaviour.idle_s else []
    without = {name for name, _ in more}
    if behaviour.default_flow_control:
        without |= {"grpc.http2.bdp_probe", "grpc.http2.lookahead_bytes"}
    return [option for option in listener.channel_options(config) if option[0] not in without] + more


def _keepalive(between_s: float, answer_s: float) -> list[tuple[str, int]]:
    return [
        ("grpc.keepalive_time_ms", round(between_s * 1e3)),
        ("grpc.keepalive_timeout_ms", round(answer_s * 1e3)),
        ("grpc.http2.ping_timeout_ms", round(answer_s * 1e3)),
    ]


class HopelessToo(WaitEstimator):
    """It lets in what will wait for most of its time, too."""

    def refused_for_s(self, *_: Any) -> float:
        """Never."""
        return 0.0


class Stumbling(Batcher):
    """A batcher whose workers fail at random where they put a batch together."""

    share = 0.0

    def _take(self, batch: list[Any]) -> None:
        if self._parts and random.random() < self.share:
            raise RuntimeError("stumbled")
        super()._take(batch)


def _no_scan(_: bytes, __: prescan.Fields, ___: int) -> prescan.Prescan:
    """Each message is taken for one of one item."""
    return prescan.Prescan(0, 1, 0, None)


def _parts(behaviour: Behaviour) -> Parts:
    """What the server is built of: the real parts, but for those that are to be worse."""
    Stumbling.share = behaviour.stumbling_share
    replaced: dict[str, Any] = {
        "open_networks": None if behaviour.workers else partial(networks_of, behaviour),
        "channel_options": partial(_channel_options, behaviour),
        "loop_lag": partial(LoopLag, 0.005),  # finer than the server looks at it
    }
    if behaviour.workers:
        replaced["worker_command"] = (sys.executable, "-m", "chaos.stub_worker", json.dumps(asdict(behaviour)))
        replaced["n_attempts"] = behaviour.worker_attempts
    if behaviour.lets_hopeless_in:
        replaced["wait_estimator"] = HopelessToo
    if not behaviour.counts_within:
        replaced["scan"] = _no_scan
    if behaviour.stumbling_share:
        replaced["batcher"] = Stumbling
    if not behaviour.finds_faces:
        replaced["warm_up"] = lambda: None
    return Parts(**replaced)


def _pin(core: int | None) -> None:
    """Have this process run on that core; -1: on any."""
    if core is not None and hasattr(os, "sched_setaffinity") and (cores := os.cpu_count() or 1) > 1:
        try:
            os.sched_setaffinity(0, range(cores) if core < 0 else {core})
        except OSError as error:
            _log.warning("the server shares cores with its callers: %s", error)


def networks_of(behaviour: Behaviour, config: Config) -> dict[str, Any]:
    """Its networks, by name."""
    if behaviour.models:
        networks: dict[str, Any] = dict(inference.open_networks(config))
    else:
        nets = {"pnet": _no_faces, "rnet": _no_faces, "onet": _no_faces, "embedder": _embedder(behaviour)}
        networks = {kind: StandIn(kind, net, behaviour) for kind, net in nets.items()}
    for name, network in networks.items():
        if network.info.kind == "embedder":
            networks[name] = Faulty(network, behaviour)
            if behaviour.swap_after:
                networks[name] = Swapping(networks[name], behaviour.swap_after)
    return networks


@dataclass(frozen=True, slots=True)
class RememberingStop(StopPolicy):
    """It knows what it stopped."""

    stopped: list[Built] = field(default_factory=list)

    async def end_calls(self, built: Built, grace_s: float, signals: server.Signals) -> None:
        """As the real one."""
        self.stopped.append(built)
        await StopPolicy.end_calls(self, built, grace_s, signals)


class HardStop(RememberingStop):
    """All calls end at once."""

    async def end_calls(self, built: Built, grace_s: float, signals: server.Signals) -> None:
        """By gRPC alone."""
        self.stopped.append(built)
        await built.grpc_server.stop(0)


async def _serve(config: Config, behaviour: Behaviour) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(LOSE, _lost.set)
    loop.add_signal_handler(TELL, lambda: _log.info("%s: %d", TASKS, len(asyncio.all_tasks())))
    stop = HardStop() if behaviour.hard_stop else RememberingStop()
    await server.serve(config, _parts(behaviour), stop)
    counts = stop.stopped[0].service.admission.counts
    told = {"accepted": counts.accepted_items, "answered": counts.answered_items, "abandoned": counts.abandoned_items}
    _log.info("%s: %s", COUNTS, json.dumps(told))


def main() -> None:
    """Run until a signal."""
    behaviour = Behaviour.of(sys.argv[1])
    _pin(behaviour.core)
    logging.basicConfig(level="INFO", stream=sys.stderr)
    config: dict[str, Any] = {"listen": "127.0.0.1:0", "runs_per_embedder": 1, "max_wait_s": 0.0}
    if behaviour.models:
        config = {"listen": "127.0.0.1:0", "models": Path(behaviour.models)}
    elif behaviour.workers:
        config["default_embedder"] = "embedder"
    config["workers"] = str(behaviour.workers)
    try:
        asyncio.run(_serve(Config(**config | behaviour.config), behaviour))
    except FatalError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
