"""``facenet align``: a folder of labelled folders to one of face crops, as davidsandberg/facenet does it in
``align/align_dataset_mtcnn.py``."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    for name in found:
        (out / name).mkdir(parents=True, exist_ok=True)
    request = options.request(given) | {"return_crops": True, "crop_size_px": image_size}
    margin_px = request.setdefault("margin_px", options.MARGIN_PX)
    aligned = failed = 0
    there = [image for image in work if _is_done(work[image], detect_multiple_faces)]
    with connect() as client, _bounding_boxes_file(out) as boxes_file, console.Progress(len(work)) as progress:
        waiting = _waiting(work, detect_multiple_faces, progress)
        for image, detection in answers(partial(client.detect_stream, **request), waiting):
            progress.advance()
            if detection.error is not None:
                failed += 1
                console.note(f"{console.shown(image)}: {console.shown(detection.error)}")
                continue
            if _is_done(work[image], detect_multiple_faces):
                continue  # by another process, meanwhile
            with console.uninterrupted():
                saved = _save(detection, work[image], margin_px, detect_multiple_faces)
                boxes_file.writelines(f"{line}\n" for line in saved or [str(work[image])])
            aligned += len(saved)
            if not saved:
                console.note(f'Unable to align "{console.shown(image)}"')
    console.tell_passed_over(walk, verbose)
    if there:
        console.note(f"{len(there):,} images were aligned before")
    if failed:
        console.note(f"{failed:,} images failed")
    click.echo(f"Total number of images: {sum(map(len, found.values()))}")
    click.echo(f"Number of successfully aligned images: {aligned}")
    sys.exit(1 if failed or walk.unreadable else 0)


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


def _is_done(target: Path, multiple: bool) -> bool:
    return (face_path(target, 0) if multiple else target).exists()


def _waiting(work: Mapping[Path, Path], multiple: bool, progress: console.Progress) -> Iterator[Path]:
    # Looked at again before it is saved: what is asked for goes ahead of the answers.
    for image, target in work.items():
        if _is_done(target, multiple):
            progress.advance()
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
            # Names that are no text keep their bytes.
            return path.open("x", buffering=1, encoding="utf-8", errors="surrogateescape")
        except FileExistsError:
            continue
