"""MTCNN: the three stages around the three networks, exactly as the reference implementation runs them.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks" (2016);
davidsandberg/facenet, ``align/detect_face.py``. Pure: networks are passed in, or their outputs are.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_server.errors import InvalidInput
from facenet_server.vision import resize
from facenet_server.vision.boxes import (
    Boxes,
    Faces,
    Regressions,
    Scores,
    regress,
    square,
    suppress,
    truncate,
)
from facenet_server.vision.jit import compiled
from facenet_server.vision.resize import Source
from facenet_server.vision.sources import Pixels

STRIDE_PX, CELL_PX = 2, 12  # P-Net's output cells: their distance and their field of view

_STRIP_PIXELS = 30_000  # of a level: what P-Net makes of them lies in a core's own caches
_LEVEL_OVERLAP = 0.5  # of windows of one level, at most
_MIN_STRIP_ROWS = 8  # of the map: a strip reads ten rows of the level beside its own

Array = NDArray[np.float32]
Outputs = tuple[Array, ...]
Net = Callable[[NDArray[np.generic]], Outputs]


class Windows(NamedTuple):
    """What P-Net found in one level or in all: boxes in pixels of the image."""

    boxes: Boxes  # (N, 4)
    scores: Scores  # (N,)
    regressions: Regressions  # (N, 4)


def scales(height: int, width: int, min_face_px: float, factor: float) -> list[float]:
    """The scales of an image's pyramid: the first shrinks ``min_face_px`` to P-Net's 12, each further one is
    ``factor`` times the last, down to the level whose shorter side is still 12."""
    first = CELL_PX / min_face_px
    shorter = min(height, width) * first
    found: list[float] = []
    while shorter >= CELL_PX:
        found.append(first * factor ** len(found))
        shorter *= factor
    return found


def pyramid_pixels(height: int, width: int, min_face_px: float, factor: float) -> int:
    """The pixels of the whole pyramid, by which the work of P-Net grows."""
    return sum(math.prod(level_size(height, width, scale)) for scale in scales(height, width, min_face_px, factor))


def propose(image: Source, pnet: Net, scale: float, threshold: float, max_windows: int) -> Windows:
    """Stage 1 of one level, given by its scale: where P-Net sees faces in it.

    Raises InvalidInput, reason TOO_MUCH_WORK, where suppression leaves more than ``max_windows`` windows.
    """
    # 1. Shrink the image, and let P-Net score every cell.
    probability, regression = score(shrink(image, scale), pnet)
    # 2. Keep the cells that pass, and suppress within the level.
    return sift(probability, regression, scale, threshold, max_windows)


def shrink(image: Source, scale: float) -> Pixels:
    """A level of the pyramid: by area, its sides rounded up."""
    height, width = image.pixels.shape[:2]
    return resize.shrink(image, *level_size(height, width, scale))


def level_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """The sides of a level of an image."""
    return math.ceil(height * scale), math.ceil(width * scale)


def map_side(side_px: int) -> int:
    """P-Net's cells along a side of a level: ⌈(side − 2) / 2⌉ − 4."""
    return (side_px - 1) // STRIDE_PX - 4


def score(level: Pixels, pnet: Net) -> tuple[Array, Array]:
    """P-Net's maps (h', w') and (h', w', 4) of a level, made in strips that fit the caches.

    Exactly those of the level at once: a cell sees 12 rows, and every strip begins at an even one, as the pooling does.
    """
    height, width = level.shape[:2]
    rows = map_side(height)
    n_strips = max(1, min(rows // _MIN_STRIP_ROWS, round(height * width / _STRIP_PIXELS)))
    strips: list[Sequence[Array]] = []
    for start, stop in itertools.pairwise(rows * strip // n_strips for strip in range(n_strips + 1)):
        end = height if stop == rows else STRIDE_PX * stop + CELL_PX - STRIDE_PX
        maps = pnet(level[np.newaxis, STRIDE_PX * start : end])
        strips.append([values[0, : stop - start] for values in maps])
    probability, regression = (np.concatenate(maps) for maps in zip(*strips, strict=True))
    return probability, regression


def sift(probability: Array, regression: Array, scale: float, threshold: float, max_windows: int) -> Windows:
    """A level's windows: its cells whose probability is ≥ ``threshold``, less those that non-maximum suppression takes.

    It takes those of an intersection over union of more than 0.5 with a kept one. Windows come by descending score; of
    equal scores, the last by column, then row, comes first.

    ``probability`` is P-Net's (h, w) map, ``regression`` its (h, w, 4). Where exactly one cell passes, its regression
    is read from the horizontally mirrored cell, as in the reference. Raises InvalidInput as ``propose``.
    """
    # In one piece: anything else would have it compiled anew.
    maps = np.ascontiguousarray(probability), np.ascontiguousarray(regression)
    windows = Windows(*_sifted(*maps, scale, threshold, _LEVEL_OVERLAP, max_windows))
    _check_count(len(windows.boxes), max_windows)
    return windows


def merge(levels: Sequence[Windows], max_windows: int) -> Boxes:
    """Stage 1 of the whole pyramid, the largest level first: square, whole-pixel boxes (N, 4) where P-Net sees faces.

    Raises InvalidInput as ``propose``.
    """
    _check_count(sum(len(level.boxes) for level in levels), max_windows)
    if not any(len(level.boxes) for level in levels):
        return np.empty((0, 4))
    # 3. Suppress over all levels, move the boxes by their regressions, make them square.
    boxes, scores, regressions = map(np.concatenate, zip(*levels, strict=True))
    kept = suppress(boxes, scores, 0.7)
    return _whole_windows(square(regress(boxes[kept], regressions[kept], inclusive=False)))


def _check_count(windows: int, max_windows: int) -> None:
    if windows > max_windows:
        raise InvalidInput(
            "TOO_MUCH_WORK",
            f"over {max_windows} windows look like faces; raise min_face_px or the proposal threshold",
        )


@compiled
def _sifted(probability: Any, regression: Any, scale: float, threshold: float, max_overlap: float, most: int) -> Any:
    """The arrays that ``sift`` returns, of at most ``most`` + 1 windows.

    Windows of a level have one size, to a pixel, so that a kept one's rivals are found in the few cells around its own.
    The time grows with the cells, not with the square of the windows.
    """
    height, width = probability.shape
    least = np.float32(threshold)  # so numpy compares them
    place = np.zeros(width + 1, np.int64)  # of each column's next window; first, how many the column before it has
    for row in range(height):
        for column in range(width):
            place[column + 1] += probability[row, column] >= least
    place = np.cumsum(place)
    count = place[width]
    rows, columns = np.empty(count, np.int32), np.empty(count, np.int32)
    scores = np.empty(count, np.float32)
    undecided = np.zeros((height, width), np.bool_)
    for row in range(height if count else 0):
        for column in range(width):
            if probability[row, column] >= least:
                n = place[column]
                place[column] += 1
                rows[n], columns[n], scores[n] = row, column, probability[row, column]
                undecided[row, column] = True
    # The edges of a cell's window, by its column and by its row, px.
    left, right = np.empty(width), np.empty(width)
    for column in range(width):
        left[column] = np.trunc((STRIDE_PX * column + 1) / scale)
        right[column] = np.trunc((STRIDE_PX * column + CELL_PX) / scale)
    top, bottom = np.empty(height), np.empty(height)
    for row in range(height):
        top[row] = np.trunc((STRIDE_PX * row + 1) / scale)
        bottom[row] = np.trunc((STRIDE_PX * row + CELL_PX) / scale)
    # Sides are over 11/scale and at most 11/scale + 2. Beyond that many cells two windows overlap less, along one side.
    reach = int((CELL_PX - 1) / STRIDE_PX * (1 - max_overlap) / (1 + max_overlap) + 1.5 * scale)

    kept = np.empty(min(count, most + 1), np.int64)
    n_kept = 0
    for n in np.argsort(scores, kind="mergesort")[::-1]:  # stable
        row, column = rows[n], columns[n]
        if not undecided[row, column]:
            continue
        undecided[row, column] = False
        kept[n_kept] = n
        n_kept += 1
        if n_kept > most:
            break
        area = (right[column] - left[column] + 1) * (bottom[row] - top[row] + 1)
        for r in range(max(0, row - reach), min(height, row + reach + 1)):
            for c in range(max(0, column - reach), min(width, column + reach + 1)):
                if undecided[r, c]:
                    shared_width = min(right[column], right[c]) - max(left[column], left[c]) + 1
                    shared_height = min(bottom[row], bottom[r]) - max(top[row], top[r]) + 1
                    shared = max(0.0, shared_width) * max(0.0, shared_height)
                    other = (right[c] - left[c] + 1) * (bottom[r] - top[r] + 1)
                    undecided[r, c] = shared / (area + other - shared) <= max_overlap
    boxes, best = np.empty((n_kept, 4)), np.empty(n_kept, np.float32)
    regressions = np.empty((n_kept, 4), np.float32)
    for i in range(n_kept):
        row, column = rows[kept[i]], columns[kept[i]]
        boxes[i] = left[column], top[row], right[column], bottom[row]
        best[i] = scores[kept[i]]
        regressions[i] = regression[row, width - 1 - column if count == 1 else column]
    return boxes, best, regressions


def refine(boxes: Boxes, probability: Scores, regression: Regressions, threshold: float) -> Boxes:
    """Stage 2: from R-Net's outputs for ``boxes`` to fewer, square, whole-pixel boxes."""
    passed = probability > threshold
    boxes, scores, regression = boxes[passed], probability[passed], regression[passed]
    kept = suppress(boxes, scores, 0.7)
    return _whole_windows(square(regress(boxes[kept], regression[kept])))


def finish(boxes: Boxes, probability: Scores, regression: Regressions, landmarks: Array, threshold: float) -> Faces:
    """Stage 3: from O-Net's outputs for ``boxes`` to faces."""
    passed = probability > threshold
    boxes, scores, regression = boxes[passed], probability[passed], regression[passed]
    # Landmarks are fractions of the square window; only after them the box is regressed.
    sizes = boxes[:, np.newaxis, 2:] - boxes[:, np.newaxis, :2] + 1
    points = landmarks[passed] * sizes + boxes[:, np.newaxis, :2] - 1
    boxes = regress(boxes, regression)
    return Faces(boxes, scores, points).take(suppress(boxes, scores, 0.7, "min"))


def _whole_windows(boxes: Boxes) -> Boxes:
    """Whole pixels, without the boxes that a regression turned inside out (the reference crashes on them)."""
    boxes = truncate(boxes)
    return boxes[(boxes[:, 2:] >= boxes[:, :2]).all(axis=1)]
