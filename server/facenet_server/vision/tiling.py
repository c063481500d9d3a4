"""P-Net for pyramid levels of all sizes in one shape, so that levels of many images share batches.

A level is cut into canvases of one size, which overlap by what a cell sees beyond its stride; where the level ends
within a canvas, the network is told how much of it counts. Its outputs there are exactly those of the whole level. An
accelerator then meets no new shapes, for each of which it would plan and allocate. On the CPU, which does neither, the
larger area only costs time.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from facenet_server.vision.mtcnn import STRIDE_PX, Outputs, map_side
from facenet_server.vision.sources import Pixels

SIDE_PX = 128
ROWS_A_RUN = 64  # canvases: a million pixels
AT_ONCE = 128  # canvases of one image on their way to P-Net: 15 MB with its maps, and as much of those before
_CELLS = map_side(SIDE_PX)  # of P-Net's map, on each side of a canvas


Canvases = tuple[Pixels, NDArray[np.int32]]
"""(N, S, S, 3) uint8, and how much of each counts, (N, 2): height and width."""


class Tiles:
    """Levels (h, w, 3) on canvases, some at a time, and what P-Net makes of them.

    Call ``pack`` and ``unpack`` in turn, until there are no more; then read ``maps``.
    """

    def __init__(self, levels: Sequence[Pixels]) -> None:
        self._levels = levels
        self._corners = [
            (number, *corner) for number, level in enumerate(levels) for corner in _corners(*level.shape[:2])
        ]
        self._start = self._stop = 0  # of the corners whose canvases are on their way
        self.maps: list[Outputs] = [_empty_maps(*level.shape[:2]) for level in levels]

    def pack(self) -> Canvases | None:
        """The next canvases; None after the last."""
        self._start, self._stop = self._stop, min(self._stop + AT_ONCE, len(self._corners))
        corners = self._corners[self._start : self._stop]
        if not corners:
            return None
        pixels = np.zeros((len(corners), SIDE_PX, SIDE_PX, 3), np.uint8)
        valid = np.empty((len(corners), 2), np.int32)
        for canvas, extent, (number, row, column) in zip(pixels, valid, corners, strict=True):
            top, left = STRIDE_PX * row, STRIDE_PX * column
            piece = self._levels[number][top : top + SIDE_PX, left : left + SIDE_PX]
            extent[:] = piece.shape[:2]
            canvas[: len(piece), : piece.shape[1]] = piece
        return pixels, valid

    def unpack(self, outputs: Outputs) -> None:
        """P-Net's outputs for the canvases that were laid last."""
        corners = self._corners[self._start : self._stop]
        for (number, row, column), *answers in zip(corners, *outputs, strict=True):
            for whole, part in zip(self.maps[number], answers, strict=True):
                place = whole[row : row + _CELLS, column : column + _CELLS]
                place[:] = part[: place.shape[0], : place.shape[1]]


def count(height: int, width: int) -> int:
    """The canvases that a level takes."""
    return sum(1 for _ in _corners(height, width))


def _empty_maps(height: int, width: int) -> Outputs:
    """Room for P-Net's maps of a level, (h', w') and (h', w', 4); h' = ⌈(h − 2) / 2⌉ − 4."""
    shape = map_side(height), map_side(width)
    return np.empty(shape, np.float32), np.empty((*shape, 4), np.float32)


def _corners(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The first cell, row and column, of each canvas of a level."""
    return itertools.product(range(0, map_side(height), _CELLS), range(0, map_side(width), _CELLS))
