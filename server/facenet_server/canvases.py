"""P-Net for pyramid levels of all sizes in a few shapes, so that levels of many images share batches.

Each level lies in the corner of the smallest canvas that holds it; the network is told how much of it counts, and its
outputs there are exactly those of the level alone. An accelerator then meets no new shapes, for each of which it
would search and allocate. On the CPU, which does neither, the larger canvases only cost time.
"""

import asyncio
from bisect import bisect_left
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import numpy as np

from facenet_server.batching import Batcher, Net, Outputs
from facenet_server.images import Pixels
from facenet_server.mtcnn import map_side
from facenet_server.stats import Stage

_SIDES_PX = [
    16 << step // 2 if step % 2 == 0 else 24 << step // 2 for step in range(25)
]  # 16, 24, 32, 48 … 65536, a JPEG's largest
_PIXELS_A_RUN = 4_000_000


class Canvases:
    """A network (canvases (N, H, W, 3) uint8, valid (N, 2) int32) → outputs, called with one level and awaited."""

    def __init__(self, net: Net, stage: Stage) -> None:
        self._net = net
        self._stage = stage
        self._batchers: dict[tuple[int, int], Batcher] = {}
        self._life = AsyncExitStack()
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._life.aclose()

    async def __call__(self, level: Pixels) -> Outputs:
        """P-Net's outputs for a level (h, w, 3): (h', w') and (h', w', 4), h' = ⌈(h − 2) / 2⌉ − 4."""
        height, width = level.shape[:2]
        shape = _side(height), _side(width)
        canvas = np.zeros((1, *shape, 3), np.uint8)
        canvas[0, :height, :width] = level
        outputs = await (await self._batcher(shape))(canvas, np.array([[height, width]], np.int32))
        rows, columns = map_side(height), map_side(width)
        return tuple(output[0, :rows, :columns] for output in outputs)

    async def _batcher(self, shape: tuple[int, int]) -> Batcher:
        async with self._opening:
            if shape not in self._batchers:
                max_rows = max(1, _PIXELS_A_RUN // (shape[0] * shape[1]))
                batcher = Batcher(self._net, max_rows, stage=self._stage)
                self._batchers[shape] = await self._life.enter_async_context(batcher)
        return self._batchers[shape]


def _side(side_px: int) -> int:
    return _SIDES_PX[bisect_left(_SIDES_PX, side_px)]
