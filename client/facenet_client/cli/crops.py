"""Which face of an image counts, and where its crop lies."""

from collections.abc import Sequence

import numpy as np

from facenet_client import Face

Box = tuple[float, float, float, float]


def most_central(faces: Sequence[Face], width: int, height: int) -> Face:
    """The face of largest area − 2·d², d its centre's distance from that of the image (width × height px): the
    choice of davidsandberg/facenet, ``align/align_dataset_mtcnn.py``. There must be a face."""
    boxes = np.array([face.box for face in faces])  # (N, 4) x1 y1 x2 y2, px
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    offsets = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array([width, height]) / 2
    return faces[int(np.argmax(areas - 2 * (offsets**2).sum(axis=1)))]


def crop_edges(box: Box, width: int, height: int, margin_px: int) -> tuple[int, int, int, int]:
    """A box with half the margin on each side, inside the image (width × height px), in whole pixels towards
    zero; x2 and y2 are exclusive. These are the pixels that the server's crop shows, but for an edge so near a whole
    number that float32, in which boxes travel, puts it on the other side."""
    half = margin_px / 2
    x1, y1, x2, y2 = box
    return int(max(x1 - half, 0)), int(max(y1 - half, 0)), int(min(x2 + half, width)), int(min(y2 + half, height))
