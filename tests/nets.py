"""Stand-ins for the networks, and servers built on them: the real service on a real socket, tiny nets behind.

The fake detector sees a face in every light square on dark ground; the fake embedder maps a crop to its mean
colour. A crop whose first pixel is POISON makes the embedder fail.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from facenet_server.build import Parts, built
from facenet_server.config import Config
from facenet_server.models.contract import ModelInfo
from facenet_server.rpc.service import FaceService
from facenet_server.vision.calibration import Calibration, OperatingPoint

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


class FakeNetwork:
    """A function as the server takes a network."""

    providers = ("FakeExecutionProvider",)
    on_cuda = False

    def __init__(self, name: str, kind: str, net: Any, **details: Any) -> None:
        self.info = ModelInfo(name, kind, "test", "0", name, "fixed", 160, 0.0, **details)
        self._net = net

    def __call__(self, *inputs: Any) -> Any:
        return self._net(*inputs)


def fake_networks(
    embedders: Mapping[str, Any] = EMBEDDERS,
    calibration: Any = CALIBRATION,
    twins: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, FakeNetwork]:
    """The detector's and the embedders', by name."""
    mtcnn = {"pnet": pnet, "rnet": rnet, "onet": onet}
    networks = {f"mtcnn-{kind}": FakeNetwork(f"mtcnn-{kind}", kind, net) for kind, net in mtcnn.items()}
    for name, net in embedders.items():
        details = {"dimension": 4, "calibration": calibration, "interchangeable_with": twins.get(name, ())}
        networks[name] = FakeNetwork(name, "embedder", net, **details)
    return networks


@asynccontextmanager
async def fake_service(
    embedders: Mapping[str, Any] = EMBEDDERS, /, **settings: Any
) -> AsyncIterator[tuple[str, FaceService]]:
    """The same, with the service itself. ``settings`` are the configuration's, ``calibration``, and what each embedder
    is ``interchangeable_with``."""
    calibration = settings.pop("calibration", CALIBRATION)
    networks = fake_networks(embedders, calibration, settings.pop("interchangeable_with", {}))
    config = Config(**{**_SETTINGS, "default_embedder": next(iter(embedders)), **settings}).with_streams_for(None)
    async with built(config, Parts(open_networks=lambda _: networks)) as server:
        await server.grpc_server.start()
        try:
            yield f"127.0.0.1:{server.port}", server.service
        finally:
            await server.grpc_server.stop(0)


_SETTINGS: Mapping[str, Any] = {"listen": "127.0.0.1:0", "threads": 2, "runs_per_embedder": 1, "max_wait_s": 0.0}


def square(left: int = 50, top: int = 40, side: int = 32, shade: int = 255) -> np.ndarray:
    """A black image of 120×160 with one light square: one face, to the fake detector."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[top : top + side, left : left + side] = shade
    return image


def crop(*colour: int) -> np.ndarray:
    """A ready crop of one colour."""
    return np.full((160, 160, 3), colour, np.uint8)
