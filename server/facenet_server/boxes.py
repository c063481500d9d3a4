"""Box arithmetic of the reference implementation (davidsandberg/facenet, ``align/detect_face.py``).

Boxes are (N, 4) float64 arrays of x1 y1 x2 y2 in pixels, corners inclusive: a box is x2 − x1 + 1 wide.
Where the reference leaves that + 1 out, so do these functions, and say so.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]  # (N, 4) x1 y1 x2 y2, px
Scores = NDArray[np.float32]  # (N,)
Regressions = NDArray[np.float32]  # (N, 4) in fractions of width and height

_BEST_AT_ONCE = 32


def suppress(
    boxes: Boxes, scores: Scores, max_overlap: float, measure: Literal["union", "min"] = "union"
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: indices of the boxes kept, by descending score.

    A box goes when its overlap with a kept one is > ``max_overlap``: the intersection over the union, or over
    the smaller of the two areas. Of equal scores the later box comes first.
    """
    order = np.argsort(scores, kind="stable")[::-1]
    x1, y1, x2, y2 = boxes[order].T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    kept: list[int] = []
    while order.size:
        # The best boxes against all that are left, some dozens at a time: fewer and larger array operations.
        best = np.s_[:_BEST_AT_ONCE, np.newaxis]
        width = np.minimum(x2[best], x2) - np.maximum(x1[best], x1) + 1
        height = np.minimum(y2[best], y2) - np.maximum(y1[best], y1) + 1
        shared = np.maximum(0.0, width) * np.maximum(0.0, height)
        whole = np.minimum(areas[best], areas) if measure == "min" else areas[best] + areas - shared
        apart = shared / whole <= max_overlap  # (best, all)
        left = np.ones(len(order), bool)
        for index, apart_from_it in enumerate(apart):
            if left[index]:
                kept.append(order[index])
                left &= apart_from_it
        left[: len(apart)] = False
        order, areas, x1, y1, x2, y2 = (values[left] for values in (order, areas, x1, y1, x2, y2))
    return np.array(kept, np.intp)


def regress(boxes: Boxes, regressions: Regressions, *, inclusive: bool = True) -> Boxes:
    """Move each corner by its regression times the box's width or height.

    ``inclusive`` counts width and height with the + 1; the reference does not after P-Net.
    """
    sizes = boxes[:, 2:] - boxes[:, :2] + inclusive  # (N, 2) width, height
    return boxes + regressions * np.tile(sizes, 2)


def square(boxes: Boxes) -> Boxes:
    """Grow each box's shorter side around its centre to the longer one (width and height without + 1)."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    side = sizes.max(axis=1, keepdims=True)
    corner = boxes[:, :2] + sizes * 0.5 - side * 0.5
    return np.hstack([corner, corner + side])


def truncate(boxes: Boxes) -> Boxes:
    """Whole pixels, towards zero."""
    return np.trunc(boxes)
