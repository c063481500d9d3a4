"""``facenet compare``: every two of some images."""

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from facenet_client import Client, Comparison, Detection, NoFaceError, raise_for_errors
from facenet_client.cli import console, matrix, options, tables
from facenet_client.cli.answers import answers
from facenet_client.cli.drawing import Drawings
from facenet_client.cli.photos import SUFFIXES, Walk

_MODEL_SUFFIXES = (".pb", ".h5", ".onnx", ".meta")


@click.command()
@options.PATHS
@options.looking
@options.reference(margin_px=44)
@click.option("--threshold", type=float, help="Same under this distance.  [default: the operating point's]")
@click.option(
    "--operating-point",
    help="The operating point whose threshold counts; `facenet info` shows them.  [default: best_accuracy]",
)
@options.faces(options.ONE_FACE, "best_score")
@options.MODEL
@options.DRAW
@options.AS_JSON
@click.pass_obj
def compare(
    connect: Callable[[], Client],
    /,
    paths: Sequence[Path],
    as_json: bool,
    draw: Path | None,
    threshold: float | None,
    operating_point: str | None,
    verbose: bool,
    **given: Any,
) -> None:
    """Compare every two of the images, a face of each: the distance matrix, then the verdicts.

    Images without a face, and unreadable ones, are named and left out.
    """
    _check_first(paths[0])
    walk = Walk()
    files = walk.photos(paths)  # one that is named twice may be compared with itself
    if len(files) < 2:
        raise click.UsageError("comparing takes two images at least")
    with connect() as client:
        found = _embed(client, files, options.request(given))
        compared = _compare(client, found, threshold, operating_point, given["model"])
    drawings = Drawings(draw, files, paths)
    for file, detection in zip(files, found, strict=True):
        drawings.add(file, detection)
    console.tell_passed_over(walk, verbose=verbose)
    lacking = [(file, detection) for file, detection in zip(files, found, strict=True) if not detection.faces]
    for file, detection in lacking:
        console.note(f"{console.shown(file)}: {console.shown(detection.error or 'no face')}; left out")
    if as_json:
        pairs = list(itertools.combinations(range(len(files)), 2))
        results = [compared.get((a, b)) or _without_face(found[a], found[b]) for a, b in pairs]
        names = [(files[a], files[b]) for a, b in pairs]
        console.show(True, None, map(tables.comparison_record, names, results))
    elif compared:
        _show(files, compared)
    sys.exit(1 if lacking or drawings.failed or walk.unreadable else 0)


def _check_first(path: Path) -> None:
    """Raises UsageError where the first path is a model, as that of the original compare.py is, or anything else that
    holds no images."""
    is_model_file = path.suffix in _MODEL_SUFFIXES
    is_missing = not (os.path.exists(path) or path.suffix.lower() in SUFFIXES)
    if is_model_file or is_missing or not Walk().photos([path]):
        name = path.stem if is_model_file else path.name
        raise click.UsageError(
            f"{'there is no' if is_missing else 'no images in'} {path}. If that is the model: one that the server runs "
            f"(`facenet info`) is chosen by its name, --model {name}"
        )


def _show(files: Sequence[Path], compared: dict[tuple[int, int], Comparison]) -> None:
    """The matrix of the images that have a face, then a row for each two of them."""
    kept = sorted({number for pair in compared for number in pair})
    place = {number: row for row, number in enumerate(kept)}
    distances = {(place[a], place[b]): result.distance for (a, b), result in compared.items()}
    click.echo(matrix.text([console.shown(files[number]) for number in kept], matrix.symmetric(distances, len(kept))))
    click.echo()
    names = [(files[a], files[b]) for a, b in compared]
    console.show(False, tables.comparisons(names, compared.values()), ())


def _embed(client: Client, files: Sequence[Path], request: Any) -> list[Detection]:
    """Each image's answer, however many others it is compared with."""
    found = []
    with console.Progress(len(files)) as progress:
        for _, detection in answers(partial(client.embed_stream, **request), files):
            found.append(detection)
            progress.advance()
    return found


def _compare(
    client: Client, found: Sequence[Detection], threshold: float | None, operating_point: str | None, model: str | None
) -> dict[tuple[int, int], Comparison]:
    """Every two of the images that have a face, by their numbers. Raises ItemError."""
    given = {"threshold": threshold, "operating_point": operating_point, "model": model}
    request: Any = {name: value for name, value in given.items() if value is not None}
    pairs = [(a, b) for a, b in itertools.combinations(range(len(found)), 2) if found[a].faces and found[b].faces]
    sides = ((found[a].faces[0], found[b].faces[0]) for a, b in pairs)
    compared = {}
    with console.Progress(len(pairs), "pairs") as progress:
        for pair, result in zip(pairs, client.compare_stream(sides, **request), strict=True):
            (compared[pair],) = raise_for_errors([result])
            progress.advance()
    return compared


def _without_face(a: Detection, b: Detection) -> Comparison:
    nan = float("nan")
    missing = NoFaceError("an image without a face", code=5, reason="NO_FACE")
    return Comparison(nan, error=a.error or b.error or missing)
