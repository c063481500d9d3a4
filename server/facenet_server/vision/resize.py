"""Resizing by area: the pyramid's levels and the networks' windows, with the very bits of OpenCV's INTER_AREA.

OpenCV's own code takes one value after the other, and by far most of what an image costs between the networks is
this. Here a weight is applied to a whole column of the image at once, which lies in one piece where the image is
stored by columns. Each value is made by the same operations in the same order, rounded as often: not near, equal.

The weights are those of OpenCV's ``computeResizeAreaTab`` where both sides shrink (or stay), else those of its
INTER_LINEAR as INTER_AREA uses it (modules/imgproc/src/resize.cpp).
"""

import math
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from facenet_server.vision.jit import compiled
from facenet_server.vision.sources import Pixels

Columns = NDArray[np.uint8]  # (W, 3, H) R, G, B

_FLOAT = np.float32


class Source(NamedTuple):
    """An image to be resized many times: its pixels (H, W, 3), and the same by columns (W, 3, H)."""

    pixels: Pixels
    columns: Columns


def by_columns(image: Pixels) -> Source:
    """An image made ready to be resized."""
    height, width = image.shape[:2]
    columns = cv2.transpose(image.reshape(height, 3 * width))  # a row of it is one channel of a column
    return Source(image, columns.reshape(width, 3, height))


def shrink(source: Source, height: int, width: int) -> Pixels:
    """The image at a size not above its own on either side, rounded to whole grey values."""
    old_height, old_width = source.pixels.shape[:2]
    if old_height % height == 0 and old_width % width == 0:  # OpenCV has a way of its own, which rounds halves up
        return cast(Pixels, cv2.resize(source.pixels, (width, height), interpolation=cv2.INTER_AREA))
    return cast(Pixels, _shrink(source.columns, height, width))


def cut(source: Source, boxes: NDArray[np.int64], side_px: int) -> NDArray[np.float32]:
    """The windows of boxes (N, 4) x1 y1 x2 y2 (1-based, inclusive), resized to (N, side, side, 3) float32 in 0…255,
    not rounded. What lies outside the image is zero."""
    windows: NDArray[np.float32] = _cut(source.columns, np.ascontiguousarray(boxes), side_px)
    return windows


@compiled
def _weigh(n_in: int, n_out: int, by_area: bool, starts: Any, index: Any, weight: Any) -> None:
    """What output value i is made of: from ``starts[i]`` up to ``starts[i + 1]``, input ``index`` times ``weight``."""
    ratio = n_out / n_in
    scale = 1.0 / ratio
    n = 0
    for i in range(n_out):
        starts[i] = n
        if by_area:
            begin = i * scale
            end = begin + scale
            width = min(scale, n_in - begin)
            last = min(math.floor(end), n_in - 1)
            first = min(math.ceil(begin), last)
            if first - begin > 1e-3:
                index[n], weight[n] = first - 1, (first - begin) / width
                n += 1
            for j in range(first, last):
                index[n], weight[n] = j, 1.0 / width
                n += 1
            if end - last > 1e-3:
                index[n], weight[n] = last, min(min(end - last, 1.0), width) / width
                n += 1
        else:
            at = math.floor(i * scale)
            share = _FLOAT((i + 1) - (at + 1) * ratio)
            share = _FLOAT(0) if share <= 0 else share - _FLOAT(math.floor(share))
            if at >= n_in - 1:
                at, share = n_in - 1, _FLOAT(0)
            index[n], weight[n] = at, _FLOAT(1) - share
            n += 1
            if share > 0:
                index[n], weight[n] = at + 1, share
                n += 1
    starts[n_out] = n


@compiled
def _shrink(columns: Any, height: int, width: int) -> Any:
    old_width, _, old_height = columns.shape
    x_starts, x_index, x_weight = _tables(old_width, width)
    y_starts, y_index, y_weight = _tables(old_height, height)
    _weigh(old_width, width, True, x_starts, x_index, x_weight)
    _weigh(old_height, height, True, y_starts, y_index, y_weight)
    # The same number of weights for every row, zeros at the end: then rows are made side by side.
    most = np.max(y_starts[1:] - y_starts[:-1])
    y_first = y_index[y_starts[:-1]].astype(np.int32)
    weights = np.zeros((most, height), _FLOAT)
    for y in range(height):
        for n in range(y_starts[y], y_starts[y + 1]):
            weights[n - y_starts[y], y] = y_weight[n]
    level = np.empty((height, width, 3), np.uint8)
    column = np.zeros(old_height + most, _FLOAT)
    made = np.empty(height, _FLOAT)
    for x in range(width):
        for channel in range(3):
            for n in range(x_starts[x], x_starts[x + 1]):
                weight, old = x_weight[n], columns[x_index[n], channel]
                if n == x_starts[x]:
                    for y in range(old_height):
                        column[y] = _FLOAT(old[y]) * weight
                else:
                    for y in range(old_height):
                        column[y] += _FLOAT(old[y]) * weight
            made[:] = 0
            for n in range(most):
                row_weights = weights[n]
                for y in range(height):
                    made[y] += row_weights[y] * column[y_first[y] + np.int32(n)]
            for y in range(height):
                level[y, x, channel] = np.uint8(np.rint(made[y]))
    return level


@compiled
def _cut(columns: Any, boxes: Any, side: int) -> Any:
    width, _, height = columns.shape
    windows = np.empty((len(boxes), side, side, 3), _FLOAT)
    longest = side
    for box in boxes:
        longest = max(longest, box[2] - box[0] + 1, box[3] - box[1] + 1)
    x_starts, x_index, x_weight = _tables(longest, side)
    y_starts, y_index, y_weight = _tables(longest, side)
    column = np.empty(longest, _FLOAT)
    last_wide = last_high = 0
    for window, box in zip(windows, boxes):  # noqa: B905 (numba knows no strict)
        left, top = box[0] - 1, box[1] - 1
        wide, high = box[2] - left, box[3] - top
        by_area = wide >= side and high >= side
        if by_area and wide % side == 0 and high % side == 0:
            _average(columns, left, top, wide // side, high // side, window)
            continue
        if wide != last_wide or high != last_high:
            _weigh(wide, side, by_area, x_starts, x_index, x_weight)
            _weigh(high, side, by_area, y_starts, y_index, y_weight)
            last_wide, last_high = wide, high
        above, below = min(max(top, 0), height), max(min(top + high, height), 0)
        column[:high] = 0
        inside = column[above - top : max(below, above) - top]
        n_inside = len(inside)
        for x in range(side):
            for channel in range(3):
                inside[:] = 0
                for n in range(x_starts[x], x_starts[x + 1]):
                    at = left + x_index[n]
                    if 0 <= at < width:
                        weight, old = x_weight[n], columns[at, channel, above : above + n_inside]
                        for y in range(n_inside):
                            inside[y] += _FLOAT(old[y]) * weight
                for y in range(side):
                    total = y_weight[y_starts[y]] * column[y_index[y_starts[y]]]
                    for n in range(y_starts[y] + 1, y_starts[y + 1]):
                        total += y_weight[n] * column[y_index[n]]
                    window[y, x, channel] = total
    return windows


@compiled
def _tables(n_in: int, n_out: int) -> Any:
    """Room for the starts, indices and weights of as many values."""
    most = n_in + 2 * n_out
    return np.empty(n_out + 1, np.int64), np.empty(most, np.int64), np.empty(most, _FLOAT)


@compiled
def _average(columns: Any, left: int, top: int, wide: int, high: int, window: Any) -> None:
    """A window whose values are each the mean of wide × high whole pixels: sums of integers, which are exact."""
    share = _FLOAT(1) / _FLOAT(wide * high)
    for y in range(window.shape[0]):
        first, last = max(top + y * high, 0), min(top + (y + 1) * high, columns.shape[2])
        for x in range(window.shape[1]):
            for channel in range(3):
                total = 0
                for at in range(max(left + x * wide, 0), min(left + (x + 1) * wide, columns.shape[0])):
                    for row in range(first, last):
                        total += columns[at, channel, row]
                window[y, x, channel] = _FLOAT(total) * share
