"""Stand-ins for the networks, and servers built on them: the real service on a real socket, tiny nets behind.

The fake detector sees a face in every light square on dark ground; the fake embedder maps a crop to its mean
colour. A crop whose first pixel is POISON makes the embedder fail.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from facenet_server import messages
from facenet_server.app import decode_limits, work_limits
from facenet_server.backlog import Backlog
from facenet_server.batching import Batcher
from facenet_server.calibration import Calibration, OperatingPoint
from facenet_server.callers import Callers, read_tokens
from facenet_server.cascade import Cascade
from facenet_server.compute import Compute
from facenet_server.config import Config
from facenet_server.detector import Detector, Nets
from facenet_server.listening import bind, tls
from facenet_server.methods import CROPS, VECTORS, WORK
from facenet_server.pipeline import Embedder, Finder, Pipeline
from facenet_server.service import FaceService
from facenet_server.sessions import ModelInfo
from facenet_server.stats import Stats

POISON = (1, 2, 3)
CALIBRATION = Calibration(
    data="made up",
    operating_points={
        "best_accuracy": OperatingPoint("best_accuracy", 0.5, 0.01, 1000, 0.99, 100),
        "far_1e-3": OperatingPoint("far_1e-3", 0.25, 0.001, 1000, 0.9, 100),
    },
    probability_map={"kind": "logistic", "slope": -10.0, "intercept": 5.0},
)


def pnet(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """A cell is a face where its 12×12 window is light inside and dark around."""
    height, width = (-(-(side - 2) // 2) - 4 for side in rows.shape[1:3])
    padded = np.pad(rows[..., 0], ((0, 0), (0, 1), (0, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (12, 12), axis=(1, 2))[:, ::2, ::2]
    probability = _likeness(windows[:, :height, :width])
    return probability, np.zeros((*probability.shape, 4), np.float32)


def rnet(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same for whole windows."""
    return _likeness(rows[..., 0]), np.zeros((len(rows), 4), np.float32)


def onet(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """As R-Net, with all landmarks in the middle."""
    return _likeness(rows[..., 0]), np.zeros((len(rows), 4), np.float32), np.full((len(rows), 5, 2), 0.5, np.float32)


def _likeness(windows: np.ndarray) -> np.ndarray:
    """How light the middle of (…, S, S) windows is against their rim, 0…1."""
    rim = windows.shape[-1] // 6
    inside = windows[..., rim:-rim, rim:-rim].mean(axis=(-2, -1)) / 255
    around = (windows.mean(axis=(-2, -1)) / 255 - inside * (2 / 3) ** 2) / (1 - (2 / 3) ** 2)
    likeness: np.ndarray = np.clip(inside - around, 0, 1) ** 0.5
    return likeness.astype(np.float32)


def embed(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """The direction of the mean colour, (N, 4)."""
    if (rows[:, 0, 0] == POISON).all(axis=1).any():
        raise RuntimeError("secret detail /models/of/the/server")
    vectors = np.pad(rows.reshape(len(rows), -1, 3).mean(axis=1) + 1, ((0, 0), (0, 1)))
    return ((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),)


class HeldNet:
    """The fake embedder behind a gate: it remembers its batches, by the shade of each row, and answers none before
    ``open`` is called."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._entered, self._opened = threading.Event(), threading.Event()

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        self.batches.append(rows[:, 0, 0, 0].tolist())
        self._entered.set()
        assert self._opened.wait(10)
        return embed(rows)

    async def entered(self) -> None:
        """Wait until a batch is at the gate."""
        assert await asyncio.to_thread(self._entered.wait, 10)

    def open(self) -> None:
        """Let all batches through."""
        self._opened.set()


EMBEDDERS: Mapping[str, Any] = {"colour": embed, "other": embed}


@asynccontextmanager
async def fake_server(embedders: Mapping[str, Any] = EMBEDDERS, /, **settings: Any) -> AsyncIterator[str]:
    """A server in this event loop; yields its address."""
    async with fake_service(embedders, **settings) as (target, _):
        yield target


@asynccontextmanager
async def fake_service(
    embedders: Mapping[str, Any] = EMBEDDERS, /, **settings: Any
) -> AsyncIterator[tuple[str, FaceService]]:
    """The same, with the service itself. ``settings`` are the configuration's, ``calibration``, and what each embedder
    is ``interchangeable_with``."""
    calibration = settings.pop("calibration", CALIBRATION)
    twins = settings.pop("interchangeable_with", {})
    config = Config(**{"listen": "127.0.0.1:0", **settings}).with_streams_for(None)
    async with AsyncExitStack() as stack:
        stats = Stats()

        async def share(name: str, net: Any) -> Batcher:
            return await stack.enter_async_context(Batcher(net, config.max_batch_rows, stage=stats.stage(name)))

        compute = stack.enter_context(Compute(2, stats))
        shared = {
            name: Embedder(await share(name, net), 4, calibration, twins.get(name, ()))
            for name, net in embedders.items()
        }
        default = next(iter(embedders))
        limits = work_limits(config)
        detector: Finder = Cascade(pnet, rnet, onet, limits, compute)
        if config.share_windows == "on":
            shares = [await share(f"mtcnn-{name}", net) for name, net in (("rnet", rnet), ("onet", onet))]
            detector = Detector(Nets(pnet, *shares), limits, compute)
        pipeline = Pipeline(detector, shared, default, decode_limits(config), compute)
        models = [
            ModelInfo(name, "embedder", "test", "0", "0", "fixed", 160, 0.0, 4, calibration) for name in embedders
        ]
        info = messages.server_info("test", models, ["FakeExecutionProvider"], default, config)
        backlogs = {kind: Backlog(compute.n_threads) for kind in (CROPS, VECTORS)}
        backlogs[WORK] = Backlog(compute.n_threads, most_of_stream=config.max_images_per_stream)
        callers = Callers(read_tokens(Path(config.tokens)) if config.tokens else None)
        service = FaceService(pipeline, info, stats, backlogs, callers, config.max_write_stall_s)
        server, port = bind(service.handlers(), config, callers, tls(config))
        await server.start()
        try:
            yield f"127.0.0.1:{port}", service
        finally:
            await server.stop(0)


def square(left: int = 50, top: int = 40, side: int = 32, shade: int = 255) -> np.ndarray:
    """A black image of 120×160 with one light square: one face, to the fake detector."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[top : top + side, left : left + side] = shade
    return image


def crop(*colour: int) -> np.ndarray:
    """A ready crop of one colour."""
    return np.full((160, 160, 3), colour, np.uint8)
