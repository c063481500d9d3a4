"""``facenet align``: a folder of labelled folders to one of face crops, as davidsandberg/facenet does it in
``align/align_dataset_mtcnn.py``."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import Progress, TaskID

from facenet_client import Client, Detection
from facenet_client.cli import dataset, options
from facenet_client.cli.answers import answers
from facenet_client.cli.crops import crop_edges, most_central, save_png


@click.command()
@options.folder("source")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--image-size", default=160, show_default=True, help="Side of the crops, px.")
@options.reference(margin_px=32)
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
    **given: Any,
) -> None:
    """Crop the faces of SOURCE/person/photo.* into OUT/person/photo.png.

    An image whose crop is there is passed over. bounding_boxes_*.txt in OUT has the crops' edges in the images.
    """
    found = dataset.people(source, leave_out=out)
    work = targets(dataset.shuffled(found) if random_order else found, out)
    for name in found:
        (out / name).mkdir(parents=True, exist_ok=True)
    request = options.request(given) | {"return_crops": True, "crop_size_px": image_size}
    margin_px = given["margin_px"]
    aligned = unreadable = 0
    with connect() as client, _bounding_boxes_file(out) as boxes_file, _progress() as bar:
        task = bar.add_task("images", total=len(work))
        waiting = _waiting(work, detect_multiple_faces, bar, task)
        for image, detection in answers(partial(client.detect_stream, **request), waiting):
            bar.advance(task)
            if detection.error is not None:
                unreadable += 1
                _note(bar, f"{image}: {detection.error}")
                continue
            if _is_done(work[image], detect_multiple_faces):
                continue  # by another process, meanwhile
            saved = _save(detection, work[image], margin_px, detect_multiple_faces)
            aligned += len(saved)
            if not saved:
                _note(bar, f'Unable to align "{image}"')
            boxes_file.writelines(f"{line}\n" for line in saved or [str(work[image])])
    click.echo(f"Total number of images: {sum(map(len, found.values()))}")
    click.echo(f"Number of successfully aligned images: {aligned}")
    sys.exit(1 if unreadable else 0)


def targets(found: Mapping[str, Sequence[Path]], out: Path) -> dict[Path, Path]:
    """Each image and its crop's path. Of images that differ in their suffix alone, the first counts."""
    by_target: dict[Path, Path] = {}
    for name, images in found.items():
        for image in images:
            by_target.setdefault(out / name / f"{image.stem}.png", image)
    return {image: target for target, image in by_target.items()}


def face_path(target: Path, number: int) -> Path:
    """Where the face of this number goes, if several of an image may be kept."""
    return target.with_name(f"{target.stem}_{number}{target.suffix}")


def _is_done(target: Path, multiple: bool) -> bool:
    return (face_path(target, 0) if multiple else target).exists()


def _waiting(work: Mapping[Path, Path], multiple: bool, bar: Progress, task: TaskID) -> Iterator[Path]:
    # Looked at again before it is saved: what is asked for goes ahead of the answers.
    for image, target in work.items():
        if _is_done(target, multiple):
            bar.advance(task)
        else:
            yield image


def _save(detection: Detection, target: Path, margin_px: int, multiple: bool) -> list[str]:
    """Write an image's crops: a line of path and edges each. A face outside the image has no crop."""
    faces = [face for face in detection.faces if face.crop is not None]
    if faces and not multiple:
        faces = [most_central(faces, detection.width, detection.height)]
    lines = []
    for number, face in reversed(list(enumerate(faces))):  # the first face's file tells that all are there
        path = face_path(target, number) if multiple else target
        assert face.crop is not None
        save_png(path, face.crop)
        edges = crop_edges(face.box, detection.width, detection.height, margin_px)
        lines.append(" ".join(map(str, (path, *edges))))
    return lines[::-1]


def _bounding_boxes_file(out: Path) -> TextIO:
    """A new file, with a random key in its name: each process writes its own."""
    while True:
        try:
            path = out / f"bounding_boxes_{random.randrange(100_000):05d}.txt"
            return path.open("x", buffering=1, encoding="utf-8")
        except FileExistsError:
            continue


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal, transient=True)


def _note(bar: Progress, text: str) -> None:
    bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
