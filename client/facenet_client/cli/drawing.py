"""Pictures with boxes and landmarks."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from facenet_client import Detection, Embedding
from facenet_client.cli import console
from facenet_client.cli.files import fitting

_BOX, _POINT = "#00e676", "#ff1744"


class Drawings:
    """Pictures of answered images: in the file ``out`` for one image, else in that folder, where they lie as the images
    do below ``roots``. ``failed`` counts those that cannot be drawn, each with a note."""

    def __init__(self, out: Path | None, files: Sequence[Path], roots: Sequence[Path]) -> None:
        self.failed = 0
        self._targets: dict[Path, Path] = {}
        if out is not None and len(files) == 1 and out.suffix:
            self._targets = {files[0]: out}
        elif out is not None:
            taken: set[Path] = set()
            self._targets = {file: _free(out / _below(file, roots), taken) for file in files}

    @property
    def wanted(self) -> bool:
        """Whether anything is to be drawn."""
        return bool(self._targets)

    def add(self, file: Path, detection: Detection | Embedding) -> None:
        """Draw an image's faces on it; no effect where it has no answer, or nothing is to be drawn."""
        if file not in self._targets or isinstance(detection, Embedding) or detection.error is not None:
            return
        target = self._targets[file]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                draw(image, detection).save(target)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            self.failed += 1
            console.note(f"{console.shown(file)}: not drawn: {console.shown(error)}")


def _below(file: Path, roots: Sequence[Path]) -> Path:
    """An image's path below the folder that it was found in; the name of one that was named itself."""
    root = next((root for root in roots if root in file.parents), file.parent)
    return file.relative_to(root)


def _free(place: Path, taken: set[Path]) -> Path:
    """A picture's path; numbered where images differ in their suffix alone."""
    endings = itertools.chain([".faces.png"], (f".faces.{number}.png" for number in itertools.count(2)))
    paths = (place.with_name(fitting(place.stem, ending)) for ending in endings)
    free = next(path for path in paths if path not in taken)
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
