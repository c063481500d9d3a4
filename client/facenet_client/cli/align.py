"""``facenet align``: a folder of labelled folders to one of face crops, as davidsandberg/facenet does it in
``align/align_dataset_mtcnn.py``."""

import errno
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import click

from facenet_client import Client, Detection
from facenet_client.cli import console, dataset, options
from facenet_client.cli.answers import answers
from facenet_client.cli.crops import crop_edges, most_central
from facenet_client.cli.files import fitting, save_png
from facenet_client.cli.photos import TWIN, Walk

_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what fails so fails for all


@click.command()
@options.folder("source")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--image-size", default=160, show_default=True, help="Side of the crops, px.")
@options.looking
@options.reference(margin_px=options.MARGIN_PX)
@click.option("--detect-multiple-faces", is_flag=True, help="Keep all faces of an image, not the most central one.")
@click.option("--random-order", is_flag=True, help="Shuffle, so that several processes can share the work.")
@click.pass_obj
def align(
    connect: Callable[[], Client],
    /,
    source: Path,
    out: Path,
    image_size: int,
    detect_multiple_faces: bool,
    random_order: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Crop the faces of SOURCE/person/photo.* into OUT/person/photo.png.

    An image whose crop is there is passed over. bounding_boxes_*.txt in OUT has the crops' edges in the images.
    """
    walk = Walk()
    found = dataset.people(source, walk, leave_out=out)
    work = targets(dataset.shuffled(found) if random_order else found, out, walk)
    request = options.request(given) | {"return_crops": True, "crop_size_px": image_size}
    crops = _Crops(work, request.setdefault("margin_px", options.MARGIN_PX), detect_multiple_faces)
    n_missing = len(list(crops.waiting()))
    _make_folders(out, found)
    with connect() as client, _bounding_boxes_file(out) as boxes_file, console.Progress(n_missing) as progress:
        for image, detection in answers(partial(client.detect_stream, **request), crops.waiting()):
            crops.save(image, detection, boxes_file)
            progress.advance()
    console.tell_passed_over(walk, verbose=verbose)
    if len(work) > n_missing or crops.failed:
        console.note(f"{len(work) - n_missing:,} images were aligned before, {crops.failed:,} failed")
    click.echo(f"Total number of images: {sum(map(len, found.values()))}")
    click.echo(f"Number of successfully aligned images: {crops.saved}")
    sys.exit(1 if crops.failed or walk.unreadable else 0)


class _Crops:
    """The crops of images: ``work`` says where each goes. ``saved`` and ``failed`` count them."""

    def __init__(self, work: Mapping[Path, Path], margin_px: int, multiple: bool) -> None:
        self.saved = self.failed = 0
        self._work, self._margin_px, self._multiple = work, margin_px, multiple

    def waiting(self) -> Iterator[Path]:
        """The images without a crop, each looked at when its turn comes: other processes may share the work."""
        return (image for image in self._work if not self._is_done(image))

    def save(self, image: Path, detection: Detection, boxes_file: TextIO) -> None:
        """Write an image's crops and their lines. What fails is told and counted; raises OSError of a full disk."""
        if detection.error is not None:
            self._fail(image, detection.error)
        elif not self._is_done(image):  # since it was asked for
            try:
                with console.uninterrupted():
                    lines = self._write(detection, self._work[image])
                    boxes_file.writelines(f"{line}\n" for line in lines or [_on_one_line(self._work[image])])
            except OSError as error:
                if error.errno in _FATAL:
                    raise
                return self._fail(image, error)
            self.saved += len(lines)
            if not lines:
                console.note(f'Unable to align "{console.shown(image)}"')

    def _fail(self, image: Path, error: object) -> None:
        self.failed += 1
        console.note_of(image, error)

    def _write(self, detection: Detection, target: Path) -> list[str]:
        """Write an image's crops: a line of path and edges each. A face outside the image has no crop."""
        target.parent.mkdir(parents=True, exist_ok=True)
        faces = [face for face in detection.faces if face.crop is not None]
        if faces and not self._multiple:
            faces = [most_central(faces, detection.width, detection.height)]
        lines = []
        for number, face in reversed(list(enumerate(faces))):  # the first face's file tells that all are there
            path = face_path(target, number) if self._multiple else target
            assert face.crop is not None
            save_png(path, face.crop)
            edges = crop_edges(face.box, detection.width, detection.height, self._margin_px)
            lines.append(" ".join(map(str, (_on_one_line(path), *edges))))
        return lines[::-1]

    def _is_done(self, image: Path) -> bool:
        target = self._work[image]
        return os.path.exists(face_path(target, 0) if self._multiple else target)


def targets(found: Mapping[str, Sequence[Path]], out: Path, walk: Walk) -> dict[Path, Path]:
    """Each image and its crop's path. Of images that differ in their suffix alone, the first counts; the others are
    passed over."""
    by_target: dict[Path, Path] = {}
    for name, images in found.items():
        for image in images:
            if by_target.setdefault(out / name / fitting(image.stem, ".png"), image) is not image:
                walk.passed_over.append((image, TWIN))
    return {image: target for target, image in by_target.items()}


def face_path(target: Path, number: int) -> Path:
    """Where the face of this number goes, if several of an image may be kept."""
    return target.with_name(fitting(target.stem, f"_{number}{target.suffix}"))


def _make_folders(out: Path, names: Iterable[str]) -> None:
    """A folder for each person, as the original has it, though nobody may have a crop."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        with suppress(OSError):  # told of each image that goes there
            (out / name).mkdir(exist_ok=True)


def _on_one_line(path: Path) -> str:
    return str(path).replace("\r", "\\r").replace("\n", "\\n")


def _bounding_boxes_file(out: Path) -> TextIO:
    """A new file, with a random key in its name: each process writes its own."""
    while True:
        try:
            path = out / f"bounding_boxes_{random.randrange(100_000):05d}.txt"
            # Names that are no text keep their bytes.
            return path.open("x", buffering=1, encoding="utf-8", errors="surrogateescape")
        except FileExistsError:
            continue
