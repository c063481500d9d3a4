"""The one place where a server's parts are put together: networks, threads, limits and clock make a server.

Tests, chaos and benchmarks build through it, and replace parts by argument.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from facenet_server.admission.controller import AdmissionController
from facenet_server.admission.limits import AdmissionLimits
from facenet_server.admission.wait_estimator import WaitEstimator
from facenet_server.config import MIB, Config
from facenet_server.errors import StartError
from facenet_server.models.fault_tolerance import FaultTolerantNetwork
from facenet_server.models.loader import open_models, stated_default
from facenet_server.models.runtime import Engine, Network
from facenet_server.rpc.auth import Callers, read_tokens
from facenet_server.rpc.converters import About
from facenet_server.rpc.health import Health
from facenet_server.rpc.listener import ChannelOptions, GrpcServer, bind, bind_health, channel_options, tls
from facenet_server.rpc.prescan import Fields, Prescan, scan
from facenet_server.rpc.service import SERVICE, FaceService
from facenet_server.serving.batched_detector import BatchedDetector, Nets
from facenet_server.serving.batcher import Batcher
from facenet_server.serving.compute import Compute
from facenet_server.serving.micro_batch import EMBEDDINGS, IMAGES, RAW_CROPS
from facenet_server.serving.per_image_detector import PerImageDetector, WorkLimits, warm_up
from facenet_server.serving.pipeline import Embedder, FaceDetector, Pipeline
from facenet_server.telemetry import cgroups
from facenet_server.telemetry.counters import LoopLag, Stats
from facenet_server.vision.decode import DecodeLimits
from facenet_server.vision.tiling import ROWS_A_RUN

_CROPS_AHEAD = 4  # a core: fewer make small batches, more let images begin before those that began have ended
_EMBEDDINGS_AT_WORK = 128  # pairs: the event loop compares them itself
_MAX_HELD_S = 0.03  # the end of an image's work, where threads are busy with others

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a server is built of. Whoever builds one to look at it replaces parts by argument."""

    open_networks: Callable[[Config], Mapping[str, Any]] | None = None  # None: those of the models folder
    batcher: Callable[..., Batcher] = Batcher
    wait_estimator: Callable[..., WaitEstimator] = WaitEstimator
    loop_lag: Callable[[], LoopLag] = LoopLag
    channel_options: Callable[[Config], ChannelOptions] = channel_options
    warm_up: Callable[[], object] = warm_up
    scan: Callable[[bytes, Fields, int], Prescan] = scan
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
    networks = await asyncio.to_thread(parts.open_networks or open_networks, config)
    if not (config.default_embedder or parts.open_networks):
        config = replace(config, default_embedder=stated_default(config.models))
    stats = Stats(parts.loop_lag())
    async with open_pipeline(networks, config, stats, on_lost, parts) as pipeline, stats.loop_lag:
        about = _about(networks, pipeline.default_embedder)
        admission = AdmissionController(admission_limits(config), _estimators(networks, config, parts), parts.clock)
        service = FaceService(pipeline, about, config, stats, admission, callers, parts.scan)
        status = Health(("", SERVICE), stats, config.stall_s, callers)
        server, port = bind(service, status, config, credentials, parts.channel_options)
        probed = bind_health(status, config.health_listen) if config.health_listen else (None, 0)
        yield Built(server, port, service, status, *probed)


def open_networks(config: Config) -> dict[str, Network]:
    """The networks of the models folder, by name. Raises StartError."""
    threads = _threads(config)
    a_run = max(1, threads // (config.runs_per_embedder or threads))
    most_rows = {
        "embedder": config.max_batch_rows,
        "rnet": config.max_window_rows,
        "onet": config.max_window_rows,
        "pnet_canvas": ROWS_A_RUN,
    }
    engine = Engine(config.device, a_run, config.gpu_mem_limit_mb, config.tf32, most_rows)
    networks = open_models(config.models, engine)
    for name, network in networks.items():
        _log.info("%s (%s) on %s", name, network.info.kind, network.providers[0])
    return networks


@asynccontextmanager
async def open_pipeline(
    networks: Mapping[str, Network],
    config: Config,
    stats: Stats,
    on_lost: Callable[[], object] = lambda: None,
    parts: Parts | None = None,
) -> AsyncIterator[Pipeline]:
    """The pipeline over networks put where callers share them: batchers, but for P-Net, which runs where its levels
    are. What it does is counted in ``stats``; ``on_lost`` is called, in any thread, where the device is lost. Raises
    StartError where the default embedder is not there."""
    parts, threads = parts or Parts(), _threads(config)
    cv2.setNumThreads(1)  # images are worked on side by side instead
    await asyncio.to_thread(parts.warm_up)
    by_kind = {network.info.kind: network for network in networks.values()}
    default = _default_embedder(networks, config)
    async with AsyncExitStack() as stack:
        on_cuda = by_kind["rnet"].on_cuda
        held_s, crops_ahead = (0.0, math.inf) if on_cuda else (_MAX_HELD_S, _CROPS_AHEAD * threads)
        compute = stack.enter_context(Compute(threads, stats, held_s, crops_ahead))

        async def share(network: Network, max_rows: int, **details: Any) -> Batcher:
            batcher = parts.batcher(
                FaultTolerantNetwork(network, on_lost), max_rows, stage=stats.stage(network.info.name), **details
            )
            return await stack.enter_async_context(batcher)

        embedders: dict[str, Embedder] = {}
        for network in (networks[name] for name in _embedders(networks)):
            info = network.info
            batcher = await share(
                network,
                config.max_batch_rows,
                workers=config.runs_per_embedder or (1 if network.on_cuda else threads),
                max_wait_s=config.max_wait_s,
                max_queued_rows=config.max_queued_rows,
            )
            embedders[info.name] = Embedder(
                batcher, info.dimension, info.calibration, info.interchangeable_with, info.input_size_px
            )
        mtcnn = {kind: FaultTolerantNetwork(by_kind[kind], on_lost) for kind in ("pnet", "rnet", "onet")}
        shares_levels, limits = _shares_levels(by_kind, config), work_limits(config)
        detector: FaceDetector
        if shares_levels or _is_on(config.share_windows, by_kind["rnet"]):
            # A batch on each core, in the threads of the images. An accelerator takes one at a time.
            in_threads = {} if by_kind["rnet"].on_cuda else {"workers": threads, "threads": compute.threads}
            rnet, onet = [await share(by_kind[kind], config.max_window_rows, **in_threads) for kind in ("rnet", "onet")]
            canvases = await share(by_kind["pnet_canvas"], ROWS_A_RUN, **in_threads) if shares_levels else None
            detector = BatchedDetector(Nets(mtcnn["pnet"], rnet, onet, canvases), limits, compute)
        else:
            detector = PerImageDetector(**mtcnn, limits=limits, compute=compute)
        yield Pipeline(detector, embedders, default, decode_limits(config), compute)


def _estimators(networks: Mapping[str, Network], config: Config, parts: Parts) -> dict[str, WaitEstimator]:
    """Of each kind of work, with how many items do not wait for each other: an accelerator's share its batches."""
    on_cuda, threads = any(network.on_cuda for network in networks.values()), _threads(config)
    images, crops = (config.max_images_in_flight, config.max_batch_rows) if on_cuda else (threads, threads)
    estimator = partial(parts.wait_estimator, clock=parts.clock)
    of_images = estimator(images, most_of_stream=config.max_images_per_stream, one_takes_all=True)
    return {IMAGES: of_images, RAW_CROPS: estimator(crops), EMBEDDINGS: estimator()}


def admission_limits(config: Config) -> AdmissionLimits:
    """What the configuration lets be in flight."""
    return AdmissionLimits(
        items_per_stream=config.max_items_per_stream,
        items_per_caller=config.max_items_per_caller,
        items=config.max_items_in_flight,
        n_bytes=config.max_mib_in_flight * MIB,
        streams=config.max_streams,
        connections=config.max_connections,
        images=config.max_images_in_flight,
        pixels=config.max_megapixels_in_flight * 1_000_000,
        raw_crops=2 * config.max_batch_rows,  # a batch that runs, and the next
        embeddings=_EMBEDDINGS_AT_WORK,
    )


def _shares_levels(by_kind: Mapping[str, Network], config: Config) -> bool:
    canvases = by_kind.get("pnet_canvas")
    if config.share_levels == "on" and canvases is None:
        raise StartError(f"share_levels needs pnet-canvas.onnx: `facenet-convert mtcnn --out {config.models}`")
    return canvases is not None and _is_on(config.share_levels, canvases)


def _is_on(choice: str, network: Network) -> bool:
    return network.on_cuda if choice == "auto" else choice == "on"


def _embedders(networks: Mapping[str, Network]) -> list[str]:
    return [name for name, network in networks.items() if network.info.kind == "embedder"]


def _default_embedder(networks: Mapping[str, Network], config: Config) -> str:
    """The one configured, or the first by name; a warning where that is a guess, or where it has no calibration.
    Raises StartError where it is not there."""
    embedders = _embedders(networks)
    default = config.default_embedder or min(embedders)
    if default not in embedders:
        raise StartError(
            f"the default embedder {default!r} is not there; there is {', '.join(embedders)}: choose one with "
            "--default-embedder"
        )
    if not config.default_embedder and len(embedders) > 1:
        _log.warning("no default embedder is stated: requests without a model get %s, the first by name", default)
    if networks[default].info.calibration is None:
        _log.warning(
            "the default embedder %s is uncalibrated: comparisons get no threshold and no probability", default
        )
    return default


def _threads(config: Config) -> int:
    return config.threads or usable_cores()


def usable_cores(groups: Iterable[Path] | None = None) -> int:
    """The cores this process may run on, or as many as its container's quota is worth where that is less; all there are
    where the system does not tell. ``groups``: the control groups whose quotas hold, instead of this process's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cgroups.quota_cores(groups) or cores)


def _about(networks: Mapping[str, Network], default: str) -> About:
    providers = list(dict.fromkeys(name for network in networks.values() for name in network.providers))
    return About(version("facenet-serve"), [network.info for network in networks.values()], providers, default)


def work_limits(config: Config) -> WorkLimits:
    """What the configuration lets one image cost."""
    return WorkLimits(decode_limits(config), config.max_pyramid_megapixels * 1_000_000, config.max_candidates)


def decode_limits(config: Config) -> DecodeLimits:
    """What the configuration lets an image be."""
    return DecodeLimits(
        formats=config.formats,
        max_bytes=config.max_image_mib * MIB,
        max_pixels=config.max_image_megapixels * 1_000_000,
        max_side_px=config.max_image_side_px,
        max_aspect=config.max_image_aspect,
        max_scans=config.max_image_scans,
        max_header_parts=config.max_header_parts,
    )
