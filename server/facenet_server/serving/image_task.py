"""What is asked of an image, and what comes of it: the same wherever the work is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_server.vision.boxes import Faces
from facenet_server.vision.options import DetectOptions, FaceSelection
from facenet_server.vision.sources import Image, Pixels


@dataclass(frozen=True, slots=True)
class ImageTask:
    """An image, how its faces are found, and what is wanted of them.

    ``selection``: those of the faces in sight that count; None: all that are found. ``input_px``: the side of the crops
    that an embedder takes, 0 where none does. ``max_crop_bytes``: where the crops that the options ask for are more,
    none is made.
    """

    image: Image
    options: DetectOptions
    selection: FaceSelection | None = None
    input_px: int = 0
    max_crop_bytes: int = 0

    @property
    def crop_bytes_each(self) -> int:
        """Of one crop that the options ask for; 0 where they ask for none."""
        return self.options.crop_size_px**2 * 3 if self.options.return_crops else 0


class FoundFaces(NamedTuple):
    """The faces of an upright image of height × width pixels, some of which may be ``damaged``, by descending score.

    ``aligned`` (N, S, S, 3) uint8 are an embedder's input. ``crops`` are (S, S, 3), None for a face outside the image.
    Each is there where it was asked for.
    """

    faces: Faces
    height: int
    width: int
    exif_orientation: int
    damaged: bool
    aligned: NDArray[np.uint8] | None = None
    crops: Sequence[Pixels | None] | None = None


class ReadyCrop(NamedTuple):
    """The pixels of a crop's file, with what decoding says of it."""

    pixels: Pixels
    exif_orientation: int = 1
    damaged: bool = False
