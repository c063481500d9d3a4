"""``facenet identify``: who of a gallery is in each image."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from facenet_client import Client, Detection, ItemError
from facenet_client.cli import console, dataset, options, results
from facenet_client.cli import gallery as galleries
from facenet_client.cli.answers import answers, embedder, threshold
from facenet_client.cli.crops import Box
from facenet_client.cli.files import portable
from facenet_client.cli.gallery import Gallery
from facenet_client.cli.photos import Walk
from facenet_client.cli.results import View

# A stranger is measured against everyone in the gallery, and the nearest of many is near: about as many strangers are
# named as the false-accept rate times the people there. docs/accuracy.md has figures.
_OPERATING_POINT = "far_1e-4"


@dataclass(frozen=True, slots=True)
class Answer:
    """Who an image shows: ``name`` is None for a stranger; ``box`` is None where there is no face, and then
    ``nearest`` and ``distance`` are None too."""

    name: str | None = None
    nearest: str | None = None
    distance: float | None = None
    box: Box | None = None
    error: ItemError | None = None


@click.command()
@options.folder("gallery")
@options.folder("folder")
@options.looking
@click.option("--threshold", "limit", type=float, help="Known under this distance.  [default: the operating point's]")
@options.operating_point(_OPERATING_POINT)
@options.faces(options.ONE_FACE, "most_central")
@options.MODEL
@click.option("--score", "scored", is_flag=True, help="Accuracy and false accepts, where FOLDER has labelled folders.")
@options.results(".jsonl", ".csv")
@click.pass_obj
def identify(
    connect: Callable[[], Client],
    /,
    gallery: Path,
    folder: Path,
    limit: float | None,
    operating_point: str | None,
    scored: bool,
    **given: Any,
) -> None:
    """Name the person in each image below FOLDER by the nearest face of GALLERY/person/photo.*, or "unknown"."""
    form = {name: given.pop(name) for name in ("as_json", "as_csv", "out")}
    if scored and form["out"] is not None:
        raise click.UsageError("--score judges all answers of one run: it goes with no --out")
    known_walk, walk, tally = Walk(), Walk(), results.Tally()
    people = dataset.people(gallery, known_walk)
    probes = console.image_files([folder], walk)
    if scored and any(path.parent == folder for path in probes):
        raise click.UsageError(f"--score takes labelled folders; {folder} has images of its own")
    judged: list[tuple[str, str | None]] = []
    with connect() as client:
        model = embedder(client.server_info(), given["model"])
        limit = threshold(model, limit, "--threshold", operating_point, _OPERATING_POINT)
        ask = partial(client.embed_stream, **options.request(given | {"model": model.name}))
        known, failed = _enrol(ask, people)
        with results.opened(probes, _VIEW, **form) as found, found.progress() as progress:
            for path, detection in answers(ask, found.missing):
                answer = _name(detection, known, limit)
                with console.uninterrupted():
                    found.write(path, answer)
                    tally.add(answer, len(detection.faces))
                    progress.advance()
                if scored and answer.box is not None:
                    judged.append((portable(path.relative_to(folder).parts[0]), answer.name))
    for each in (known_walk, walk):
        console.tell_passed_over(each, given["verbose"])
    tally.tell(found)
    if scored:
        _show_score(form, galleries.score(judged, known.labels), limit, tally.images - len(judged))
    if failed or tally.failed or known_walk.unreadable or walk.unreadable:
        raise SystemExit(1)


def _enrol(ask: Callable[[Iterable[Path]], Iterator[Detection]], people: dict[str, list[Path]]) -> tuple[Gallery, int]:
    """The gallery's vectors, and how many of its images failed. Raises ClickException where no face is left."""
    label_of = {path: portable(name) for name, files in people.items() for path in files}
    labels, vectors, failed = [], [], 0
    with console.Progress(len(label_of), "images of the gallery") as progress:
        for path, detection in answers(ask, label_of):
            progress.advance()
            failed += detection.error is not None
            if not detection.faces:
                why = console.shown(detection.error or "no face")
                console.note(f"{console.shown(path)}: {why}; left out of the gallery")
                continue
            labels.append(label_of[path])
            vectors.append(np.array(detection.faces[0].embedding, np.float32))
    if not vectors:
        raise click.ClickException("no face in the gallery")
    return Gallery(labels, np.array(vectors)), failed


def _name(detection: Detection, known: Gallery, limit: float) -> Answer:
    if not detection.faces:
        return Answer(error=detection.error)
    face = detection.faces[0]
    nearest, distance = galleries.nearest(known, np.array(face.embedding, np.float32))
    return Answer(nearest if distance < limit else None, nearest, distance, face.box)


def _lines(answer: Answer) -> Iterator[str]:
    if answer.distance is None:
        yield console.shown(answer.error or "no face")
    else:
        name = "unknown" if answer.name is None else answer.name
        yield f"{answer.distance:8.4f}  {console.shown(name)}" + (
            f"  nearest {console.shown(answer.nearest)}" if answer.name is None else ""
        )


def _rows(answer: Answer) -> Iterator[Sequence[object]]:
    error = ("", "") if answer.error is None else (answer.error.reason, answer.error.args[0])
    yield answer.name, answer.nearest, answer.distance, *(answer.box or ("",) * 4), *error


def _record(answer: Answer) -> dict[str, Any]:
    """An answer; ``name`` is null for a stranger, ``box`` where there is no face."""
    return {
        "name": answer.name,
        "nearest": answer.nearest,
        "distance": answer.distance,
        "box": answer.box,
        "error": answer.error and answer.error.to_dict(),
    }


_VIEW = View(
    heading="distance  name",
    lines=_lines,
    columns=("path", "name", "nearest", "distance", "x1", "y1", "x2", "y2", "error_reason", "error"),
    rows=_rows,
    record=_record,
)


def _show_score(form: Mapping[str, Any], score: galleries.IdentityScore, limit: float, left_out: int) -> None:
    accuracy, false_accepts = score.accuracy, score.false_accept_rate
    if form["as_json"]:
        shares = {"accuracy": accuracy, "false_accept_rate": false_accepts}
        numbers = {name: None if math.isnan(share) else share for name, share in shares.items()}
        record = score._asdict() | numbers | {"threshold": limit, "without_face": left_out}
        console.show(True, None, [{"score": record}])
        return
    right = score.named_right + score.strangers - score.strangers_named
    missed = score.known - score.named_right - score.named_wrong
    lines = [f"Accuracy: {accuracy:.5f} ({right:,} of {score.known + score.strangers:,} images)"]
    if score.strangers:
        named = f"{score.strangers_named:,} of {score.strangers:,} strangers"
        lines.append(f"False-accept rate: {false_accepts:.5f} ({named})")
    lines += [
        f"Known people: {score.named_right:,} of {score.known:,} named right, {score.named_wrong:,} as someone else, "
        f"{missed:,} called unknown",
        f"at threshold {limit:.4f}; {left_out:,} without a face or unreadable, left out",
    ]
    for line in lines:
        click.echo(line, err=form["as_csv"])
