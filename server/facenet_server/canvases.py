"""P-Net for pyramid levels of all sizes in one shape, so that levels of many images share batches.

A level is cut into canvases of one size, which overlap by what a cell sees beyond its stride; where the level ends
within a canvas, the network is told how much of it counts. Its outputs there are exactly those of the whole level. An
accelerator then meets no new shapes, for each of which it would plan and allocate. On the CPU, which does neither, the
larger area only costs time.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_server.batching import Outputs
from facenet_server.images import Pixels
from facenet_server.mtcnn import STRIDE_PX, map_side

SIDE_PX = 128
ROWS_A_RUN = 64  # canvases: a million pixels
_CELLS = map_side(SIDE_PX)  # of P-Net's map, on each side of a canvas


class Canvases(NamedTuple):
    """Levels on canvases: (N, S, S, 3) uint8, how much of each counts, (N, 2) int32 height and width, and each level's
    own size."""

    pixels: Pixels
    valid: NDArray[np.int32]
    sizes: Sequence[tuple[int, int]]


def lay(levels: Sequence[Pixels]) -> Canvases:
    """Levels (h, w, 3) cut into canvases, one after the other, row by row."""
    sizes = [(level.shape[0], level.shape[1]) for level in levels]
    corners = [(level, *corner) for level, size in zip(levels, sizes, strict=True) for corner in _corners(*size)]
    pixels = np.zeros((len(corners), SIDE_PX, SIDE_PX, 3), np.uint8)
    valid = np.empty((len(corners), 2), np.int32)
    for canvas, extent, (level, row, column) in zip(pixels, valid, corners, strict=True):
        top, left = STRIDE_PX * row, STRIDE_PX * column
        piece = level[top : top + SIDE_PX, left : left + SIDE_PX]
        extent[:] = piece.shape[:2]
        canvas[: len(piece), : piece.shape[1]] = piece
    return Canvases(pixels, valid, sizes)


def maps(canvases: Canvases, outputs: Outputs) -> list[Outputs]:
    """P-Net's maps of each level, (h', w') and (h', w', 4), from those of the canvases; h' = ⌈(h − 2) / 2⌉ − 4."""
    found: list[Outputs] = []
    rows = zip(*outputs, strict=True)
    for height, width in canvases.sizes:
        shape = map_side(height), map_side(width)
        level = tuple(np.empty((*shape, *output.shape[3:]), np.float32) for output in outputs)
        for (row, column), answers in zip(_corners(height, width), rows, strict=False):
            for whole, part in zip(level, answers, strict=True):
                place = whole[row : row + _CELLS, column : column + _CELLS]
                place[:] = part[: place.shape[0], : place.shape[1]]
        found.append(level)
    return found


def _corners(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The first cell, row and column, of each canvas of a level."""
    return itertools.product(range(0, map_side(height), _CELLS), range(0, map_side(width), _CELLS))
