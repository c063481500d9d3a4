"""Pictures with boxes and landmarks."""

import itertools
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from facenet_client import Detection
from facenet_client.cli import console
from facenet_client.cli.files import fitting

_BOX, _POINT = "#00e676", "#ff1744"


class Drawings:
    """Pictures of answered images: in the file ``out`` for one image, else in that folder, where images of one name
    are numbered. ``failed`` counts those that cannot be drawn, each with a note."""

    def __init__(self, out: Path | None, n_images: int) -> None:
        self.failed = 0
        self._out = out
        self._is_one = n_images == 1 and out is not None and out.suffix != ""
        self._taken: set[Path] = set()

    def add(self, file: Path, detection: Detection) -> None:
        """Draw an image's faces on it; no effect without ``out``, or where it has no answer."""
        if self._out is None or detection.error is not None:
            return
        target = self._out if self._is_one else self._free(self._out, file)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                draw(image, detection).save(target)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            self.failed += 1
            console.note(f"{console.shown(file)}: not drawn: {console.shown(error)}")

    def _free(self, folder: Path, file: Path) -> Path:
        endings = itertools.chain([".faces.png"], (f".faces.{n}.png" for n in itertools.count(2)))
        names = (folder / fitting(file.stem, ending) for ending in endings)
        free = next(name for name in names if name not in self._taken)
        self._taken.add(free)
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
