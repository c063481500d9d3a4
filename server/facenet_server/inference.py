"""The side where the work is done: networks, detector and threads, in the server's own process or in each worker's.

Nothing of it is imported by a server whose workers are processes of their own.
"""

import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import cv2

from facenet_server.config import Config
from facenet_server.errors import StartError
from facenet_server.models.contract import ModelInfo
from facenet_server.models.fault_tolerance import FaultTolerantNetwork
from facenet_server.models.loader import open_models, open_some
from facenet_server.models.runtime import Engine, Network
from facenet_server.serving.batched_detector import BatchedDetector, Nets
from facenet_server.serving.batcher import Batcher
from facenet_server.serving.compute import Compute
from facenet_server.serving.per_image_detector import PerImageDetector, WorkLimits
from facenet_server.serving.pipeline import ImageWorkers
from facenet_server.telemetry.cgroups import usable_cores
from facenet_server.telemetry.counters import Stats
from facenet_server.vision.sources import DecodeLimits
from facenet_server.vision.tiling import ROWS_A_RUN

_CROPS_AHEAD = 4  # a core: fewer make small batches, more let images begin before those that began have ended
_MAX_HELD_S = 0.03  # the end of an image's work, where threads are busy with others

_log = logging.getLogger(__name__)

Networks = Mapping[str, Network]  # by name


class InProcess(NamedTuple):
    """Detector and embedders of one process, on its networks."""

    detector: ImageWorkers
    embedders: Mapping[str, Batcher]


def open_networks(config: Config) -> dict[str, Network]:
    """The networks of the models folder, by name. Raises StartError."""
    networks = open_models(config.models, engine(config))
    for name, network in networks.items():
        _log.info("%s (%s) on %s", name, network.info.kind, network.providers[0])
    return networks


def open_files(config: Config, sha256s: list[str]) -> dict[str, Network]:
    """Those networks of the models folder whose files have these SHA-256, by name. Raises StartError."""
    networks = open_some(config.models, engine(config), sha256s)
    if len(networks) < len(set(sha256s)):
        raise StartError(f"{config.models} has changed since the server started: restart it")
    return networks


def n_threads(config: Config) -> int:
    """Threads for computing."""
    return config.threads or usable_cores()


def engine(config: Config) -> Engine:
    """How ONNX Runtime runs the networks."""
    threads = n_threads(config)
    most_rows = {
        "embedder": config.max_batch_rows,
        "rnet": config.max_window_rows,
        "onet": config.max_window_rows,
        "pnet_canvas": ROWS_A_RUN,
    }
    a_run = max(1, threads // (config.runs_per_embedder or threads))
    return Engine(config.device, a_run, config.gpu_mem_limit_mb, config.tf32, most_rows)


@asynccontextmanager
async def opened(
    networks: Networks,
    config: Config,
    stats: Stats,
    on_lost: Callable[[], object] = lambda: None,
    batcher: Callable[..., Batcher] = Batcher,
) -> AsyncIterator[InProcess]:
    """A detector, and a batcher for each embedder, on networks of this process. What they do is counted in ``stats``;
    ``on_lost`` is called, in any thread, where the device is lost. Raises StartError."""
    threads, embedders = n_threads(config), dict[str, Batcher]()
    async with AsyncExitStack() as stack:
        compute = stack.enter_context(open_compute(networks, config, stats))
        for name, network in networks.items():
            if network.info.kind == "embedder":
                runs = config.runs_per_embedder or (1 if network.on_cuda else threads)
                embedders[name] = await stack.enter_async_context(
                    batcher(
                        FaultTolerantNetwork(network, on_lost),
                        config.max_batch_rows,
                        stage=stats.stage(name),
                        workers=runs,
                        max_wait_s=config.max_wait_s,
                        max_queued_rows=config.max_queued_rows,
                    )
                )
        yield InProcess(await open_detector(networks, config, stats, compute, stack, on_lost, batcher), embedders)


def open_compute(networks: Networks, config: Config, stats: Stats, n_free: Callable[[], int] | None = None) -> Compute:
    """Threads for the images. ``n_free``: how many of them no job needs, where that is known elsewhere."""
    cv2.setNumThreads(1)  # images are worked on side by side instead
    on_cuda = any(network.on_cuda for network in networks.values())
    held_s, crops_ahead = (0.0, math.inf) if on_cuda or n_free else (_MAX_HELD_S, _CROPS_AHEAD * n_threads(config))
    return Compute(n_threads(config), stats, held_s, crops_ahead, n_free, stays=n_free is not None)


async def open_detector(
    networks: Networks,
    config: Config,
    stats: Stats,
    compute: Compute,
    stack: AsyncExitStack,
    on_lost: Callable[[], object],
    batcher: Callable[..., Batcher] = Batcher,
) -> ImageWorkers:
    """The detector, with its networks put where images share them: batchers, but for P-Net, which runs where its levels
    are. Raises StartError."""
    by_kind = {network.info.kind: network for network in networks.values()}
    nets = {kind: FaultTolerantNetwork(by_kind[kind], on_lost) for kind in ("pnet", "rnet", "onet")}
    shares_levels, limits = _shares_levels(by_kind, config), work_limits(config)
    if not (shares_levels or _is_on(config.share_windows, by_kind["rnet"])):
        return PerImageDetector(**nets, limits=limits, compute=compute)
    # A batch on each core, in the threads of the images. An accelerator takes one at a time.
    in_threads = {} if by_kind["rnet"].on_cuda else {"workers": n_threads(config), "threads": compute.threads}

    async def share(kind: str, max_rows: int) -> Batcher:
        network = by_kind[kind]
        net, stage = FaultTolerantNetwork(network, on_lost), stats.stage(network.info.name)
        return await stack.enter_async_context(batcher(net, max_rows, stage=stage, **in_threads))

    rnet, onet = [await share(kind, config.max_window_rows) for kind in ("rnet", "onet")]
    canvases = await share("pnet_canvas", ROWS_A_RUN) if shares_levels else None
    return BatchedDetector(Nets(nets["pnet"], rnet, onet, canvases), limits, compute)


def infos_of(networks: Networks) -> list[ModelInfo]:
    """What the files say of themselves."""
    return [network.info for network in networks.values()]


def providers_of(networks: Networks) -> list[str]:
    """ONNX Runtime's execution providers in use."""
    return list(dict.fromkeys(name for network in networks.values() for name in network.providers))


def work_limits(config: Config) -> WorkLimits:
    """What the configuration lets one image cost."""
    return WorkLimits(DecodeLimits.of(config), config.max_pyramid_megapixels * 1_000_000, config.candidates)


def _shares_levels(by_kind: Networks, config: Config) -> bool:
    canvases = by_kind.get("pnet_canvas")
    if config.share_levels == "on" and canvases is None:
        raise StartError(f"--share-levels needs pnet-canvas.onnx: `facenet-convert mtcnn --out {config.models}`")
    return canvases is not None and _is_on(config.share_levels, canvases)


def _is_on(choice: str, network: Any) -> bool:
    return bool(network.on_cuda) if choice == "auto" else choice == "on"
