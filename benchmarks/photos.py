"""What is looked at: two portraits that packages carry, a group photo where the research photos are, and mosaics."""

import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import matplotlib.cbook
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from benchmarks.environments import ROOT

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB

SMALL_PHOTOS, LARGE_PHOTOS = 96, 48
FACES = ((115, 10, 220), (115, 70, 300))  # left, top and side of a square around each portrait's face, px


@dataclass(frozen=True, slots=True)
class Photo:
    """An image, and the boxes (N, 4) of the faces that the reference implementation finds in it, where they are
    known."""

    name: str
    pixels: Pixels
    reference: NDArray[np.float64] | None


def portraits() -> tuple[Pixels, Pixels]:
    """The astronaut Eileen Collins (NASA) and Grace Hopper (US Navy), both in the public domain."""
    hopper = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    return np.asarray(skimage.data.astronaut()), np.asarray(hopper.convert("RGB"))


def small_photos() -> list[bytes]:
    """96 JPEG files of 250×250: of LFW where the research photos are, else of the portraits at many sizes."""
    folder = research_photos() / "lfw"
    files = sorted(folder.rglob("*.jpg"))[:SMALL_PHOTOS]
    if len(files) == SMALL_PHOTOS:
        return [file.read_bytes() for file in files]
    return [_jpeg(mosaic(1 + number % 2, 250, 250, 125 + number)) for number in range(SMALL_PHOTOS)]


def large_photos() -> list[bytes]:
    """48 JPEG files of 640×480 with one to three faces."""
    return [_jpeg(mosaic(1 + number % 3, 640, 480, 150 + number)) for number in range(LARGE_PHOTOS)]


def detection_photos() -> list[Photo]:
    """A portrait, and a group of six; where the group photo is missing, six portraits side by side."""
    folder = research_photos()
    golden = folder / "faces_golden.json"
    known = json.loads(golden.read_text()) if golden.exists() else {}

    def photo(name: str, file: str, pixels: Pixels) -> Photo:
        boxes = np.array(known[file]["compare"]["boxes"])[:, :4] if file in known else None
        return Photo(f"{name}, {pixels.shape[1]}×{pixels.shape[0]}", pixels, boxes)

    group = folder / "faces" / "multiface.jpg"
    if group.exists():
        crowd = photo("group", group.name, np.asarray(Image.open(group).convert("RGB")))
    else:
        crowd = photo("mosaic of six portraits", "", mosaic(6, 1200, 630))
    return [photo("astronaut", "astronaut.png", portraits()[0]), crowd]


def mosaic(faces: int, width: int, height: int, side_px: int | None = None) -> Pixels:
    """So many portraits, in turn, in a grid on grey; each as large as fits, or in a square of ``side_px``."""
    canvas = Image.new("RGB", (width, height), (128, 128, 128))
    side = side_px or _largest_square(faces, width, height)
    columns = width // side
    tiles = [_square(pixels, side) for pixels in portraits()]
    for number in range(faces):
        canvas.paste(tiles[number % len(tiles)], (number % columns * side, number // columns * side))
    return np.asarray(canvas)


def resized(pixels: Pixels, megapixels: float) -> Pixels:
    """The image at another area."""
    height, width = pixels.shape[:2]
    scale = math.sqrt(megapixels * 1e6 / (height * width))
    return np.asarray(Image.fromarray(pixels).resize((round(width * scale), round(height * scale))))


def crops(count: int) -> Pixels:
    """So many ready crops (N, 160, 160, 3), no two alike: the portraits' faces, each time a little further on."""
    faces = [
        pixels[top : top + side, left : left + side]
        for pixels, (left, top, side) in zip(portraits(), FACES, strict=True)
    ]
    made = [np.roll(faces[i % len(faces)], i // len(faces), axis=1) for i in range(count)]
    return np.stack([np.asarray(Image.fromarray(face).resize((160, 160))) for face in made])


def research_photos() -> Path:
    """Their folder, which need not be there."""
    return Path(os.environ.get("FACENET_TEST_DATA", ROOT.parent / "shared" / "data"))


def _jpeg(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _square(pixels: Pixels, side: int) -> Image.Image:
    """The upper square of a portrait, which holds the face."""
    edge = min(pixels.shape[:2])
    return Image.fromarray(pixels[:edge, :edge]).resize((side, side))


def _largest_square(count: int, width: int, height: int) -> int:
    """The side of the squares of which ``count`` fit in a grid."""
    side = math.isqrt(width * height // count)
    while (width // side) * (height // side) < count:
        side -= 1
    return side
