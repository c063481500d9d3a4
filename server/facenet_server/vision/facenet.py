"""FaceNet before its network: which faces, and which pixels of them. Pure.

Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering" (2015). Crops and choices
follow davidsandberg/facenet: ``align/align_dataset_mtcnn.py`` and ``compare.py``.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facenet_server.vision.boxes import Boxes, Faces
from facenet_server.vision.options import FaceSelection
from facenet_server.vision.sources import Pixels


def select(faces: Faces, selection: FaceSelection, height: int, width: int) -> Faces:
    """The faces that count in an image of height × width pixels: all, or the one chosen (none of none)."""
    if selection is FaceSelection.ALL or not len(faces.boxes):
        return faces
    if selection is FaceSelection.BEST_SCORE:
        return faces.take(slice(0, 1))  # they come by descending score
    sizes = faces.boxes[:, 2:] - faces.boxes[:, :2]
    value = sizes.prod(axis=1)  # (N,) px²
    if selection is FaceSelection.MOST_CENTRAL:
        offsets = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2 - np.array([width, height]) / 2
        value = value - 2.0 * (offsets**2).sum(axis=1)
    best = int(value.argmax())
    return faces.take(slice(best, best + 1))


def visible(boxes: Boxes, height: int, width: int, margin_px: float) -> NDArray[np.intp]:
    """Indices of the boxes that, with their margin, cover at least one pixel of the image."""
    edges = crop_edges(boxes, height, width, margin_px)
    return np.flatnonzero((edges[:, 2:] > edges[:, :2]).all(axis=1))


def crop_edges(boxes: Boxes, height: int, width: int, margin_px: float) -> NDArray[np.int32]:
    """Boxes with half the margin on each side, inside the image, in whole pixels towards zero (N, 4);
    x2 and y2 are exclusive."""
    half = margin_px / 2
    low = np.maximum(boxes[:, :2] - half, 0)
    high = np.minimum(boxes[:, 2:] + half, [width, height])
    return np.hstack([low, high]).astype(np.int32)


def align(image: Pixels, boxes: Boxes, margin_px: float, size_px: int) -> NDArray[np.uint8]:
    """Each box's crop with its margin, resized bilinearly (antialiased, without keeping its aspect) to
    (N, size, size, 3) uint8. The boxes must be ``visible``."""
    height, width = image.shape[:2]
    crops = np.empty((len(boxes), size_px, size_px, 3), np.uint8)
    for crop, (x1, y1, x2, y2) in zip(crops, crop_edges(boxes, height, width, margin_px), strict=True):
        face = Image.fromarray(np.ascontiguousarray(image[y1:y2, x1:x2]))
        crop[:] = np.asarray(face.resize((size_px, size_px), Image.Resampling.BILINEAR))
    return crops


def crops(image: Pixels, boxes: Boxes, margin_px: float, size_px: int) -> list[Pixels | None]:
    """Each box's crop as ``align`` makes it; None for a box outside the image."""
    height, width = image.shape[:2]
    seen = visible(boxes, height, width, margin_px)
    made = dict(zip(seen.tolist(), align(image, boxes[seen], margin_px, size_px), strict=True))
    return [made.get(index) for index in range(len(boxes))]
