"""``facenet identify``: who of a gallery is in each image."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table
from rich.text import Text

from facenet_client import Client, Detection, ItemError
from facenet_client.cli import console, dataset, options
from facenet_client.cli import gallery as galleries
from facenet_client.cli.answers import answers, embedder, threshold
from facenet_client.cli.crops import Box
from facenet_client.cli.gallery import Gallery

# A stranger is measured against everyone in the gallery, and the nearest of many is near: about as many strangers are
# named as the false-accept rate times the people there. docs/accuracy.md has figures.
_OPERATING_POINT = "far_1e-4"


@dataclass(frozen=True, slots=True)
class Answer:
    """Who an image shows: ``name`` is None for a stranger; ``box`` is None where there is no face, and then
    ``nearest`` and ``distance`` are None too."""

    path: Path
    name: str | None = None
    nearest: str | None = None
    distance: float | None = None
    box: Box | None = None
    error: ItemError | None = None


@click.command()
@options.folder("gallery")
@options.folder("folder")
@options.reference(margin_px=32)
@click.option("--threshold", "limit", type=float, help="Known under this distance.  [default: the operating point's]")
@options.operating_point(_OPERATING_POINT)
@options.faces(options.ONE_FACE, "most_central")
@options.MODEL
@click.option("--score", "scored", is_flag=True, help="Accuracy and false accepts, where FOLDER has labelled folders.")
@options.AS_JSON
@click.pass_obj
def identify(
    connect: Callable[[], Client],
    /,
    gallery: Path,
    folder: Path,
    limit: float | None,
    operating_point: str | None,
    scored: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Name the person in each image below FOLDER by the nearest face of GALLERY/person/photo.*, or "unknown"."""
    people = dataset.people(gallery)
    probes = console.image_files([folder])
    if scored and any(path.parent == folder for path in probes):
        raise click.UsageError(f"--score takes labelled folders; {folder} has images of its own")
    with connect() as client:
        model = embedder(client.server_info(), given["model"])
        limit = threshold(model, limit, "--threshold", operating_point, _OPERATING_POINT)
        ask = partial(client.embed_stream, **options.request(given | {"model": model.name}))
        label_of = {path: name for name, files in people.items() for path in files}
        known, failed = _enrol(console.progress(answers(ask, label_of), len(label_of)), label_of)
        found = list(_name(console.progress(answers(ask, probes), len(probes)), known, limit))
    console.show(as_json, _table(found), map(_record, found))
    if scored:
        truth = {answer.path: answer.path.relative_to(folder).parts[0] for answer in found}
        pairs = [(truth[answer.path], answer.name) for answer in found if answer.box is not None]
        left_out = len(found) - len(pairs)
        _show_score(as_json, galleries.score(pairs, known.labels), limit, left_out)
    if failed or any(answer.error is not None for answer in found):
        raise SystemExit(1)


def _enrol(answered: Iterable[tuple[Path, Detection]], label_of: dict[Path, str]) -> tuple[Gallery, int]:
    """The gallery's vectors, and how many of its images failed. Raises ClickException where no face is left."""
    labels, vectors, failed = [], [], 0
    for path, detection in answered:
        failed += detection.error is not None
        if not detection.faces:
            console.note(f"{path}: {detection.error or 'no face'}; left out of the gallery")
            continue
        labels.append(label_of[path])
        vectors.append(np.array(detection.faces[0].embedding, np.float32))
    if not vectors:
        raise click.ClickException("no face in the gallery")
    return Gallery(labels, np.array(vectors)), failed


def _name(answered: Iterable[tuple[Path, Detection]], known: Gallery, limit: float) -> Iterator[Answer]:
    for path, detection in answered:
        if not detection.faces:
            yield Answer(path, error=detection.error)
            continue
        face = detection.faces[0]
        nearest, distance = galleries.nearest(known, np.array(face.embedding, np.float32))
        yield Answer(path, nearest if distance < limit else None, nearest, distance, face.box)


def _table(found: Sequence[Answer]) -> Table:
    table = Table("image", "name", "nearest", "distance")
    for answer in found:
        if answer.distance is None:
            table.add_row(Text(str(answer.path)), Text(str(answer.error or "no face"), style="red"), "", "")
            continue
        name = Text("unknown" if answer.name is None else answer.name, style="" if answer.name is None else "green")
        table.add_row(Text(str(answer.path)), name, Text(str(answer.nearest)), f"{answer.distance:.4f}")
    return table


def _record(answer: Answer) -> dict[str, Any]:
    """An answer; ``name`` is null for a stranger, ``box`` where there is no face."""
    return {
        "path": str(answer.path),
        "name": answer.name,
        "nearest": answer.nearest,
        "distance": answer.distance,
        "box": answer.box,
        "error": answer.error and answer.error.to_dict(),
    }


def _show_score(as_json: bool, score: galleries.IdentityScore, limit: float, left_out: int) -> None:
    accuracy, false_accepts = score.accuracy, score.false_accept_rate
    if as_json:
        shares = {"accuracy": accuracy, "false_accept_rate": false_accepts}
        numbers = {name: None if math.isnan(share) else share for name, share in shares.items()}
        record = score._asdict() | numbers | {"threshold": limit, "without_face": left_out}
        console.show(True, None, [{"score": record}])
        return
    right = score.named_right + score.strangers - score.strangers_named
    click.echo(f"Accuracy: {accuracy:.5f} ({right:,} of {score.known + score.strangers:,} images)")
    if score.strangers:
        click.echo(
            f"False-accept rate: {false_accepts:.5f} ({score.strangers_named:,} of {score.strangers:,} strangers)"
        )
    missed = score.known - score.named_right - score.named_wrong
    click.echo(
        f"Known people: {score.named_right:,} of {score.known:,} named right, {score.named_wrong:,} as someone "
        f"else, {missed:,} called unknown"
    )
    click.echo(f"at threshold {limit:.4f}; {left_out:,} without a face or unreadable, left out")
