"""The crops that a quantised embedder is calibrated and judged on: a folder of faces, or two portraits varied."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, UnidentifiedImageError

from facenet_convert import verify
from facenet_convert.errors import SourceError

Pixels = NDArray[np.uint8]  # (N, 160, 160, 3) RGB

SIDE_PX = 160
BATCH = 32
N_CALIBRATION = 128  # more widen the ranges, not the accuracy
N_HELD_OUT = 512
MIN_CROPS = 32
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

_SEED = 0


class Material(NamedTuple):
    """The crops that set the ranges, others that judge, and in words where they come from."""

    calibration: Pixels
    held_out: Pixels
    origin: str


def of_folder(folder: Path) -> Material:
    """Crops at random out of a folder, as ``facenet align`` fills it: one folder for each person. Nobody is among both
    kinds; without such folders every crop counts as a person.

    Raises SourceError where they are too few, or not of the network's size.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if len(files) < MIN_CROPS:
        raise SourceError(
            f"{folder} holds {len(files)} crops, at least {MIN_CROPS} are needed, and some hundred are better: make "
            "them with `facenet align`, or leave --crops out to take variations of two portraits"
        )
    rng = np.random.default_rng(_SEED)
    held_out, rest = _by_person([files[index] for index in rng.permutation(len(files))])
    calibration = rest[:N_CALIBRATION]
    return Material(load(calibration), load(held_out), f"{len(calibration)} of {len(files)} given crops")


def of_portraits() -> Material:
    """Variations of two public-domain portraits, always the same ones."""
    rng = np.random.default_rng(_SEED)
    n_calibration, n_held_out = N_CALIBRATION, N_HELD_OUT // 4
    varied = np.stack([_variation(rng) for _ in range(n_calibration + n_held_out)])
    return Material(varied[:n_calibration], varied[n_calibration:], f"{n_calibration} variations of two portraits")


def load(files: Sequence[Path]) -> Pixels:
    """The pixels of ready crops, (N, 160, 160, 3); raises SourceError."""
    return np.stack([_read(file) for file in files])


def batches(crops: Pixels) -> list[Pixels]:
    """The crops in their order, BATCH at a time."""
    return [crops[start : start + BATCH] for start in range(0, len(crops), BATCH)]


def _read(file: Path) -> Pixels:
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise SourceError(f"cannot read the crop {file}: {error}") from error
    if pixels.shape != (SIDE_PX, SIDE_PX, 3):
        height, width = pixels.shape[:2]
        raise SourceError(
            f"{file} is {width}×{height} pixels; ready crops are {SIDE_PX}×{SIDE_PX}: make them with `facenet align`"
        )
    return pixels


def _by_person(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Held out: all crops of people after people, up to half of the crops and N_HELD_OUT; then the others."""
    in_folders = len({file.parent for file in files}) > 1
    people: dict[Path, list[Path]] = {}
    for file in files:
        people.setdefault(file.parent if in_folders else file, []).append(file)
    wanted = min(N_HELD_OUT, len(files) // 2)
    held_out: list[Path] = []
    for crops in people.values():
        if len(held_out) + len(crops) <= wanted:
            held_out += crops
    if len(held_out) < MIN_CROPS // 4:
        raise SourceError("nearly all crops are of one person: give crops of more people")
    taken = set(held_out)
    return held_out, [file for file in files if file not in taken]


def _variation(rng: np.random.Generator) -> Pixels:
    """A window around a portrait's face, moved and scaled; perhaps mirrored, out of focus, in other light, noisy."""
    image = Image.fromarray(verify.face_window(rng, SIDE_PX))
    for change in (_mirrored, _blurred):
        if rng.random() < 0.5:
            image = change(image, rng)
    light = rng.uniform(0.5, 1.5) * rng.uniform(0.85, 1.15, 3)  # of each colour
    pixels = np.asarray(image) * light + rng.uniform(-40, 40)
    if rng.random() < 0.5:
        pixels = pixels + rng.normal(0, rng.uniform(0, 12), pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def _mirrored(image: Image.Image, _: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))
