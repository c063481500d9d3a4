"""The one place where a server's parts are put together: networks, threads, limits and clock make a server.

Tests, chaos and benchmarks build through it, and replace parts by argument.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from facenet_server.admission.controller import AdmissionController
from facenet_server.admission.limits import AdmissionLimits
from facenet_server.admission.wait_estimator import WaitEstimator
from facenet_server.config import MIB, Config
from facenet_server.errors import StartError
from facenet_server.models import manifest
from facenet_server.models.contract import ModelInfo
from facenet_server.rpc.auth import Callers, read_tokens
from facenet_server.rpc.converters import About
from facenet_server.rpc.health import Health
from facenet_server.rpc.listener import ChannelOptions, GrpcServer, bind, bind_health, channel_options, tls
from facenet_server.rpc.prescan import Fields, Prescan, scan
from facenet_server.rpc.service import SERVICE, FaceService
from facenet_server.serving.batcher import Batcher
from facenet_server.serving.micro_batch import EMBEDDINGS, IMAGES, RAW_CROPS
from facenet_server.serving.pipeline import Embedder, Pipeline
from facenet_server.telemetry import process_memory
from facenet_server.telemetry.cgroups import usable_cores
from facenet_server.telemetry.counters import LoopLag, Stats
from facenet_server.vision.sources import DecodeLimits
from facenet_server.workers.pool import COMMAND, WorkerPool
from facenet_server.workers.remote import JOB_LIMIT_S, Refusals, RemoteRunner, RemoteWorkers

_WORKER_BYTES = 300_000_000  # of memory
_EMBEDDINGS_AT_WORK = 128  # pairs: the event loop compares them itself

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a server is built of. Whoever builds one to look at it replaces parts by argument."""

    open_networks: Callable[[Config], Mapping[str, Any]] | None = None  # in this process; None: the models folder's
    worker_command: Sequence[str] = COMMAND  # what starts a worker process
    n_attempts: int = 2  # workers that may end with a job until it is given up
    job_limit_s: float = JOB_LIMIT_S  # of an image's work
    batcher: Callable[..., Batcher] = Batcher
    wait_estimator: Callable[..., WaitEstimator] = WaitEstimator
    loop_lag: Callable[[], LoopLag] = LoopLag
    channel_options: Callable[[Config], ChannelOptions] = channel_options
    scan: Callable[[bytes, Fields, int], Prescan] = scan
    warm_up: Callable[[], object] | None = None  # None: of all compiled code
    clock: Callable[[], float] = time.monotonic


class Built(NamedTuple):
    """A server that is not started: gRPC's, its port, the service behind it, its health; and gRPC's of the health port,
    with that, where there is one."""

    grpc_server: GrpcServer
    port: int
    service: FaceService
    health: Health
    health_server: GrpcServer | None = None
    health_port: int = 0


@asynccontextmanager
async def built(
    config: Config, parts: Parts | None = None, on_lost: Callable[[], object] = lambda: None
) -> AsyncIterator[Built]:
    """A server of a configuration, with what it stands on. ``on_lost`` is called, in any thread, where the device of
    its networks is lost. Raises StartError."""
    parts = parts or Parts()
    credentials, callers = tls(config), Callers(read_tokens(Path(config.tokens)) if config.tokens else None)
    stats = Stats(parts.loop_lag())
    in_process = parts.open_networks is not None or not wanted_workers(config, 1)
    work = (open_in_process if in_process else open_with_workers)(config, stats, parts, on_lost)
    async with work as opened, stats.loop_lag:
        admission = AdmissionController(admission_limits(config), _estimators(opened, config, parts), parts.clock)
        service = FaceService(opened.pipeline, _about(opened), config, stats, admission, callers, parts.scan)
        can_serve = opened.pool.can_serve if opened.pool else lambda: True
        status = Health(("", SERVICE), stats, config.stall_s, callers, can_serve)
        server, port = bind(service, status, config, credentials, parts.channel_options)
        probed = bind_health(status, config.health_listen) if config.health_listen else (None, 0)
        yield Built(server, port, service, status, *probed)


class Opened(NamedTuple):
    """The pipeline over whoever does the work, what the model files say of themselves, ONNX Runtime's providers; and
    the worker processes, where there are any."""

    pipeline: Pipeline
    infos: Sequence[ModelInfo]
    providers: Sequence[str]
    pool: WorkerPool | None = None

    @property
    def on_cuda(self) -> bool:
        """Whether the networks run on a GPU."""
        return _is_cuda(self.providers)


@asynccontextmanager
async def open_in_process(
    config: Config, stats: Stats, parts: Parts | None = None, on_lost: Callable[[], object] = lambda: None
) -> AsyncIterator[Opened]:
    """The pipeline over networks of this process. Raises StartError."""
    from facenet_server import inference  # ONNX Runtime and the decoders, which a server with workers leaves to them
    from facenet_server.serving.per_image_detector import warm_up

    parts = parts or Parts()
    networks: Mapping[str, Any] = await asyncio.to_thread(parts.open_networks or inference.open_networks, config)
    await asyncio.to_thread(parts.warm_up or warm_up)
    infos = inference.infos_of(networks)
    default = default_embedder(infos, _stated(config, parts))
    async with inference.opened(networks, config, stats, on_lost, parts.batcher) as (detector, batchers):
        pipeline = Pipeline(detector, _embedders(infos, batchers), default, DecodeLimits.of(config))
        yield Opened(pipeline, infos, inference.providers_of(networks))


@asynccontextmanager
async def open_with_workers(
    config: Config, stats: Stats, parts: Parts | None = None, on_lost: Callable[[], object] = lambda: None
) -> AsyncIterator[Opened]:
    """The pipeline over worker processes. Raises StartError."""
    parts, cores = parts or Parts(), config.threads or usable_cores()
    n_workers, refusals = wanted_workers(config, cores), Refusals()
    pool = WorkerPool(config, n_workers, cores, stats, command=parts.worker_command, on_lost=on_lost)
    async with pool, AsyncExitStack() as stack:
        infos, providers = await pool.verify()
        embedders = {info.name: info for info in infos if info.kind == "embedder"}
        default, on_cuda = default_embedder(infos, _stated(config, parts)), _is_cuda(providers)
        opened_first = [info.onnx_sha256 for info in infos if info.kind != "embedder" or info.name == default]
        fewer = on_cuda and config.workers == "auto"
        await pool.open(opened_first, max(1, 3 * n_workers // 4) if fewer else n_workers, on_cuda=on_cuda)
        _log.info(
            "%d worker processes and a spare one, %d MB each for itself", pool.n_workers, pool.worker_bytes // 1_000_000
        )
        batchers = {
            name: await stack.enter_async_context(
                parts.batcher(
                    RemoteRunner(pool, info.onnx_sha256, refusals, parts.n_attempts),
                    config.max_batch_rows,
                    stage=stats.stage(name),
                    workers=config.runs_per_embedder or pool.n_workers,
                    max_wait_s=config.max_wait_s,
                    max_queued_rows=config.max_queued_rows,
                )
            )
            for name, info in embedders.items()
        }
        remote = RemoteWorkers(pool, stats, refusals, parts.n_attempts, parts.job_limit_s)
        pipeline = Pipeline(remote, _embedders(infos, batchers), default, DecodeLimits.of(config))
        yield Opened(pipeline, infos, providers, pool)


def wanted_workers(config: Config, cores: int, memory_bytes: int | None = None) -> int:
    """How many worker processes the configuration asks for, on so many cores with so much memory (None: this
    machine's); 0: none."""
    if config.workers != "auto":
        return int(config.workers)
    if os.name != "posix":  # workers inherit sockets, and are passed memory
        return 0
    memory_bytes = memory_bytes or process_memory.usable_bytes()
    if memory_bytes is None:
        return cores
    return max(1, min(cores, memory_bytes // 2 // _WORKER_BYTES - 1))  # and the spare one


def _is_cuda(providers: Sequence[str]) -> bool:
    return any(name.startswith("CUDA") for name in providers)


def _estimators(opened: Opened, config: Config, parts: Parts) -> dict[str, WaitEstimator]:
    """Of each kind of work, with how many items do not wait for each other: an accelerator's share its batches."""
    threads = config.threads or usable_cores()
    images, crops = (config.max_images_in_flight, config.max_batch_rows) if opened.on_cuda else (threads, threads)
    estimator = partial(parts.wait_estimator, clock=parts.clock)
    of_images = estimator(images, most_of_stream=config.images_per_stream, one_takes_all=True)
    return {IMAGES: of_images, RAW_CROPS: estimator(crops), EMBEDDINGS: estimator()}


def admission_limits(config: Config) -> AdmissionLimits:
    """What the configuration lets be in flight."""
    return AdmissionLimits(
        items_per_stream=config.items_per_stream,
        items_per_caller=config.items_per_caller,
        items=config.max_items_in_flight,
        n_bytes=config.max_mib_in_flight * MIB,
        streams=config.max_streams,
        connections=config.max_connections,
        images=config.max_images_in_flight,
        pixels=config.max_megapixels_in_flight * 1_000_000,
        raw_crops=2 * config.max_batch_rows,  # a batch that runs, and the next
        embeddings=_EMBEDDINGS_AT_WORK,
    )


def _embedders(infos: Sequence[ModelInfo], batchers: Mapping[str, Batcher]) -> dict[str, Embedder]:
    return {
        info.name: Embedder(
            batchers[info.name], info.dimension, info.calibration, info.interchangeable_with, info.input_size_px
        )
        for info in infos
        if info.kind == "embedder"
    }


def _stated(config: Config, parts: Parts) -> str:
    """The default embedder that the configuration or the models folder states."""
    return config.default_embedder or ("" if parts.open_networks else manifest.stated_default(config.models))


def default_embedder(infos: Sequence[ModelInfo], stated: str) -> str:
    """The one stated, or the first by name; a warning where that is a guess, or where it has no calibration. Raises
    StartError where it is not there."""
    embedders = {info.name: info for info in infos if info.kind == "embedder"}
    default = stated or min(embedders)
    if default not in embedders:
        raise StartError(
            f"the default embedder {default!r} is not there; there is {', '.join(embedders)}: choose one with "
            "--default-embedder"
        )
    if not stated and len(embedders) > 1:
        _log.warning("no default embedder is stated: requests without a model get %s, the first by name", default)
    if embedders[default].calibration is None:
        _log.warning(
            "the default embedder %s is uncalibrated: comparisons get no threshold and no probability", default
        )
    return default


def _about(opened: Opened) -> About:
    n_workers, n_bytes = (opened.pool.n_workers, opened.pool.worker_bytes) if opened.pool else (0, 0)
    default = opened.pipeline.default_embedder
    return About(version("facenet-serve"), opened.infos, opened.providers, default, n_workers, n_bytes)
