"""Pictures with boxes and landmarks."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import click
from PIL import Image, ImageDraw, ImageOps

from facenet_client import Detection

_BOX, _POINT = "#00e676", "#ff1744"


def annotate(files: Sequence[Path], found: Sequence[Detection], out: Path) -> None:
    """Draw each answered image's faces on it: into the file ``out`` for one image, else into that folder, where
    images of one name from several folders are numbered."""
    taken: set[Path] = set()
    for file, detection in zip(files, found, strict=True):
        if detection.error is None:
            target = out if len(files) == 1 and out.suffix else _free(out / f"{file.stem}.faces.png", taken)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with Image.open(file) as image:
                    draw(image, detection).save(target)
            except (OSError, ValueError) as error:
                raise click.ClickException(f"cannot write {target}: {error}") from error


def _free(target: Path, taken: set[Path]) -> Path:
    names = itertools.chain([target], (target.with_stem(f"{target.stem}.{n}") for n in itertools.count(2)))
    free = next(name for name in names if name not in taken)
    taken.add(free)
    return free


def draw(image: Image.Image, detection: Detection) -> Image.Image:
    """A copy of the image, turned as the detection saw it, with its faces drawn in."""
    upright = ImageOps.exif_transpose(image) if detection.exif_orientation != 1 else image
    picture = upright.convert("RGB")
    pen = ImageDraw.Draw(picture)
    width_px = max(2, picture.width // 300)
    for face in detection.faces:
        pen.rectangle(face.box, outline=_BOX, width=width_px)
        for x, y in face.landmarks:
            pen.ellipse((x - width_px, y - width_px, x + width_px, y + width_px), fill=_POINT)
        pen.text((face.box[0], face.box[1] - 14), f"{face.score:.3f}", fill=_BOX)
    return picture
