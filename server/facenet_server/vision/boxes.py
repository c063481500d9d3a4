"""Box arithmetic of the reference implementation (davidsandberg/facenet, ``align/detect_face.py``).

Boxes are (N, 4) float64 arrays of x1 y1 x2 y2 in pixels, corners inclusive: a box is x2 − x1 + 1 wide.
Where the reference leaves that + 1 out, so do these functions, and say so.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_server.vision.jit import compiled

Boxes = NDArray[np.float64]  # (N, 4) x1 y1 x2 y2, px
Scores = NDArray[np.float32]  # (N,)
Regressions = NDArray[np.float32]  # (N, 4) in fractions of width and height


class Faces(NamedTuple):
    """Faces of one image, by descending score; coordinates in pixels."""

    boxes: Boxes  # (N, 4) x1 y1 x2 y2
    scores: Scores  # (N,)
    landmarks: NDArray[np.float64]  # (N, 5, 2) x, y

    def take(self, indices: NDArray[np.intp] | slice) -> "Faces":
        """Some of the faces."""
        return Faces(self.boxes[indices], self.scores[indices], self.landmarks[indices])

    def enlarged(self, factor: int) -> "Faces":
        """The same in an image so many times as large, where pixel x has become pixels (x − 1)·factor + 1 … x·factor
        (boxes count from 1, landmarks from 0)."""
        if factor == 1:
            return self
        corners = (self.boxes - [1, 1, 0, 0]) * factor + [1, 1, 0, 0]
        return Faces(corners, self.scores, (self.landmarks + 0.5) * factor - 0.5)


NO_FACES = Faces(np.empty((0, 4)), np.empty(0, np.float32), np.empty((0, 5, 2)))


def suppress(
    boxes: Boxes, scores: Scores, max_overlap: float, measure: Literal["union", "min"] = "union"
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: indices of the boxes kept, by descending score.

    A box goes when its overlap with a kept one is > ``max_overlap``: the intersection over the union, or over
    the smaller of the two areas. Of equal scores the later box comes first.
    """
    one_piece = np.ascontiguousarray(boxes), np.ascontiguousarray(scores)  # anything else would have it compiled anew
    kept: NDArray[np.intp] = _kept(*one_piece, max_overlap, measure == "min")
    return kept


@compiled
def _kept(any_order: Any, scores: Any, max_overlap: float, of_smaller: bool) -> Any:
    """The indices that ``suppress`` returns."""
    order = np.argsort(scores, kind="mergesort")[::-1]  # stable
    boxes = any_order[order]
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    kept = np.ones(len(boxes), np.bool_)
    for best in range(len(boxes)):
        if not kept[best]:
            continue
        for other in range(best + 1, len(boxes)):
            width = min(boxes[best, 2], boxes[other, 2]) - max(boxes[best, 0], boxes[other, 0]) + 1
            height = min(boxes[best, 3], boxes[other, 3]) - max(boxes[best, 1], boxes[other, 1]) + 1
            shared = max(0.0, width) * max(0.0, height)
            whole = min(areas[best], areas[other]) if of_smaller else areas[best] + areas[other] - shared
            kept[other] &= shared / whole <= max_overlap
    return order[kept]


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
