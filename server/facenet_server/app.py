"""The server's life: open the models, listen, serve, drain."""

import asyncio
import logging
import math
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import grpc
from facenet_proto.v1 import face_pb2 as pb
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from facenet_server import addresses, cgroups, memory, messages
from facenet_server.backlog import Backlog
from facenet_server.batching import Batcher
from facenet_server.callers import Callers, read_tokens
from facenet_server.canvases import ROWS_A_RUN
from facenet_server.cascade import Cascade, WorkLimits, warm_up
from facenet_server.compute import Compute
from facenet_server.config import MIB, Config
from facenet_server.detector import Detector, Nets
from facenet_server.engine import Engine
from facenet_server.errors import FatalError, StartError
from facenet_server.faults import Enduring
from facenet_server.health import Health
from facenet_server.images import DecodeLimits
from facenet_server.listening import bind, tls
from facenet_server.methods import CROPS, VECTORS, WORK
from facenet_server.pipeline import Embedder, Finder, Pipeline
from facenet_server.service import SERVICE, FaceService
from facenet_server.sessions import Network, open_models, stated_default
from facenet_server.stats import Stats

_LOST_GRACE_S, _LOST_END_S = 1.0, 4.0  # once the device is lost: for the answers that say so; for the process
_SECOND_SIGNAL_END_S = 0.8
_LAST_S = 5.0  # after the grace, for threads to end
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
_LAST_ANSWER_S, _TURN_AWAY_S = 2.0, 0.3  # how long it is waited for; from it on
_LOOK_S = 0.02
_GIVE_BACK_S = 10.0
_CROPS_AHEAD = 4  # a core: fewer make small batches, more let images begin before those that began have ended
_MAX_HELD_S = 0.03  # the end of an image's work, where threads are busy with others

_log = logging.getLogger(__name__)

OpenNetworks = Callable[[Config], dict[str, Network]]


async def serve(config: Config, opener: OpenNetworks | None = None) -> None:
    """Run the server until SIGTERM or SIGINT, then finish what is in flight; a second signal stops at once. SIGHUP is
    logged and ignored.

    ``opener`` gives the networks by name, instead of those in the models folder. Raises StartError where it
    cannot start, FatalError where its device is lost: then this process can do no more.
    """
    _ignore_hangups()
    config = config.with_streams_for(memory.usable_bytes())
    config.check()
    await asyncio.to_thread(addresses.check, config.listen)  # before models are loaded, which takes seconds
    memory.limit_heaps(usable_cores())
    credentials, callers = tls(config), Callers(read_tokens(Path(config.tokens)) if config.tokens else None)
    stats, lost, loop = Stats(), asyncio.Event(), asyncio.get_running_loop()
    networks = await asyncio.to_thread(opener or open_networks, config)
    if not (config.default_embedder or opener):
        config = replace(config, default_embedder=stated_default(config.models))
    pipeline_of = open_pipeline(networks, config, stats, lambda: loop.call_soon_threadsafe(lost.set))
    with ExitStack() as last_words:  # above all that waits for threads
        async with pipeline_of as pipeline, stats.loop_lag, memory.given_back(_GIVE_BACK_S):
            described, backlogs = _describe(networks, config, pipeline.default_embedder), _backlogs(networks, config)
            service = FaceService(pipeline, described, stats, backlogs, callers, config.max_write_stall_s)
            await _listen(service, credentials, config, stats, lost, last_words)


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
    networks: Mapping[str, Network], config: Config, stats: Stats, on_lost: Callable[[], object] = lambda: None
) -> AsyncIterator[Pipeline]:
    """The pipeline over networks put where callers share them: batchers, but for P-Net, which runs where its levels
    are. What it does is counted in ``stats``; ``on_lost`` is called, in any thread, where the device is lost. Raises
    StartError where the default embedder is not there."""
    threads = _threads(config)
    cv2.setNumThreads(1)  # images are worked on side by side instead
    await asyncio.to_thread(warm_up)
    by_kind = {network.info.kind: network for network in networks.values()}
    default = _default_embedder(networks, config)
    async with AsyncExitStack() as stack:
        on_cuda = by_kind["rnet"].on_cuda
        held_s, crops_ahead = (0.0, math.inf) if on_cuda else (_MAX_HELD_S, _CROPS_AHEAD * threads)
        compute = stack.enter_context(Compute(threads, stats, held_s, crops_ahead))

        async def share(network: Network, max_rows: int, **details: Any) -> Batcher:
            batcher = Batcher(Enduring(network, on_lost), max_rows, stage=stats.stage(network.info.name), **details)
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
            embedders[info.name] = Embedder(batcher, info.dimension, info.calibration, info.interchangeable_with)
        mtcnn = {kind: Enduring(by_kind[kind], on_lost) for kind in ("pnet", "rnet", "onet")}
        shares_levels, limits = _shares_levels(by_kind, config), work_limits(config)
        detector: Finder
        if shares_levels or _is_on(config.share_windows, by_kind["rnet"]):
            # A batch on each core, in the threads of the images. An accelerator takes one at a time.
            in_threads = {} if by_kind["rnet"].on_cuda else {"workers": threads, "threads": compute.threads}
            rnet, onet = [await share(by_kind[kind], config.max_window_rows, **in_threads) for kind in ("rnet", "onet")]
            canvases = await share(by_kind["pnet_canvas"], ROWS_A_RUN, **in_threads) if shares_levels else None
            detector = Detector(Nets(mtcnn["pnet"], rnet, onet, canvases), limits, compute)
        else:
            detector = Cascade(**mtcnn, limits=limits, compute=compute)
        yield Pipeline(detector, embedders, default, decode_limits(config), compute)


def _backlogs(networks: Mapping[str, Network], config: Config) -> dict[str, Backlog]:
    """Of each kind of work, with how many items do not wait for each other: an accelerator's share its batches."""
    on_cuda, threads = any(network.on_cuda for network in networks.values()), _threads(config)
    images, crops = (config.max_images_in_flight, config.max_batch_rows) if on_cuda else (threads, threads)
    of_images = Backlog(images, most_of_stream=config.max_images_per_stream, one_takes_all=True)
    return {WORK: of_images, CROPS: Backlog(crops), VECTORS: Backlog()}


def _shares_levels(by_kind: Mapping[str, Network], config: Config) -> bool:
    canvases = by_kind.get("pnet_canvas")
    if config.share_levels == "on" and canvases is None:
        raise StartError(f"share_levels needs pnet-canvas.onnx: `facenet-convert mtcnn --out {config.models}`")
    return canvases is not None and _is_on(config.share_levels, canvases)


def _is_on(choice: str, network: Network) -> bool:
    return network.on_cuda if choice == "auto" else choice == "on"


async def _listen(
    service: FaceService,
    credentials: grpc.ServerCredentials | None,
    config: Config,
    stats: Stats,
    lost: asyncio.Event,
    last_words: ExitStack,
) -> None:
    server, port = bind(service.handlers(), config, service.callers, credentials)
    status = Health(("", SERVICE), stats, config.stall_s)
    server.add_generic_rpc_handlers((status.handlers(service.inquiries),))
    if config.reflection:
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    signals = _signals()
    memory.settle()
    async with status:
        await server.start()
        _log.info("listening on %s", addresses.target(config.listen, port))
        signalled, failed = asyncio.ensure_future(signals.get()), asyncio.ensure_future(lost.wait())
        await asyncio.wait({signalled, failed}, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        grace_s = config.grace_s
        if failed.done():
            _log.error("the device is lost: ending")
            grace_s = min(grace_s, _LOST_GRACE_S)
            _end_within(_LOST_END_S)
        else:
            _log.info("draining: up to %g s for what is in flight; a second signal stops at once", grace_s)
        failed.cancel()
        last_words.callback(_end_within(grace_s + _LAST_S).cancel)
        status.end()
        service.drain()
        await _stop(server, grace_s, signals, lambda: service.admission.counts.items_in_flight)
    for number in _SIGNALS:  # what follows may wait for a thread that hangs: another signal ends it
        signal.signal(number, signal.SIG_DFL)
    if lost.is_set():
        raise FatalError("the device that the networks run on is lost; start the server anew")
    _log.info("stopped")


async def _stop(
    server: grpc.aio.Server, grace_s: float, signals: asyncio.Queue[int], items_in_flight: Callable[[], int]
) -> None:
    """Let calls end for so long, or until another signal.

    Calls go on being taken for a moment, only to be told that the server drains: those that meet gRPC's own stop on
    their way would be told that they were cancelled. Most come from callers who have just been answered, and so the
    moment begins at the last answer; but work of many seconds is not waited for, since it is gRPC's stop that sends
    callers elsewhere.
    """
    second, end = asyncio.ensure_future(signals.get()), time.monotonic() + grace_s
    wait_until = time.monotonic() + min(_LAST_ANSWER_S, grace_s / 2)
    while items_in_flight() and time.monotonic() < wait_until and not second.done():
        await asyncio.wait({second}, timeout=_LOOK_S)
    await asyncio.wait({second}, timeout=max(0.0, min(_TURN_AWAY_S, end - time.monotonic())))
    stopped = asyncio.ensure_future(server.stop(max(0.0, end - time.monotonic())))
    await asyncio.wait({stopped, second}, return_when=asyncio.FIRST_COMPLETED)
    if second.done():
        _end_within(_SECOND_SIGNAL_END_S)
    second.cancel()
    await server.stop(0)
    await stopped


def _end_within(seconds: float) -> threading.Timer:
    """End the process by then, even where a thread hangs in a run that never returns, unless this is cancelled."""
    last_word = threading.Timer(seconds, os._exit, (1,))
    last_word.daemon = True
    last_word.start()
    return last_word


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


def _describe(networks: Mapping[str, Network], config: Config, default: str) -> pb.GetServerInfoResponse:
    providers = list(dict.fromkeys(name for network in networks.values() for name in network.providers))
    models = [network.info for network in networks.values()]
    return messages.server_info(version("facenet-serve"), models, providers, default, config)


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


def _ignore_hangups() -> None:
    """From now on SIGHUP, which other servers take for "read your settings again", is only logged."""
    if _HANGUP is not None:
        told = "SIGHUP is ignored: settings, certificates and tokens are read at the start, so restart to change them"
        asyncio.get_running_loop().add_signal_handler(_HANGUP, _log.info, told)


def _signals() -> asyncio.Queue[int]:
    """SIGTERM and SIGINT as they come."""
    received: asyncio.Queue[int] = asyncio.Queue()  # bounded by how often somebody signals
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        try:
            loop.add_signal_handler(number, received.put_nowait, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda number, _: loop.call_soon_threadsafe(received.put_nowait, number))
    return received
