"""``facenet identify``: who of a gallery is in each image."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from facenet_client import Client, Detection, ItemError
from facenet_client.cli import console, dataset, options, results, tables
from facenet_client.cli import gallery as galleries
from facenet_client.cli.answers import answers, embedder, threshold
from facenet_client.cli.crops import Box
from facenet_client.cli.files import portable
from facenet_client.cli.gallery import Gallery
from facenet_client.cli.photos import Walk
from facenet_client.cli.views import View

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

    @property
    def status(self) -> str:
        """In a word: known, unknown, no_face or failed."""
        if self.error is not None:
            return "failed"
        return "no_face" if self.box is None else "unknown" if self.name is None else "known"


@click.command()
@options.folder("gallery")
@click.argument("probes", metavar="PATH", type=click.Path(exists=True, path_type=Path))
@options.looking
@click.option("--threshold", "limit", type=float, help="Known under this distance.  [default: the operating point's]")
@options.operating_point(_OPERATING_POINT)
@options.faces(options.ONE_FACE, "most_central")
@options.MODEL
@click.option("--score", "scored", is_flag=True, help="Accuracy and false accepts, where PATH has labelled folders.")
@options.results(".jsonl", ".csv")
@click.pass_obj
def identify(
    connect: Callable[[], Client],
    /,
    gallery: Path,
    probes: Path,
    limit: float | None,
    operating_point: str | None,
    scored: bool,
    **given: Any,
) -> None:
    """Name the person in each image at PATH by the nearest face of GALLERY/person/photo.*.

    The status is known, unknown (nobody of the gallery is near), no_face or failed.
    """
    form = {name: given.pop(name) for name in ("as_json", "as_csv", "out")}
    walks, tally = (Walk(), Walk()), results.Tally()
    people = dataset.people(gallery, walks[0])
    files = console.image_files([probes], walks[1])
    if scored:
        _check_score(probes, files, form["out"])
    names: dict[Path, str | None] = {}  # of the images with a face
    with connect() as client:
        model = embedder(client.server_info(), given["model"])
        limit = threshold(model, limit, "--threshold", operating_point, _OPERATING_POINT)
        request = options.request(given | {"model": model.name})
        ask = partial(client.embed_stream, **request)
        known, failed = _enrol(ask, people)
        made_with = {"method": "identify", "threshold": limit, "gallery": _digest(people), **request}
        with results.opened(files, _VIEW, made_with, **form) as opened, opened.progress() as progress:
            for path, detection in answers(ask, opened.missing):
                answer = _name(detection, known, limit)
                opened.write(path, answer)
                tally.add(answer, len(detection.faces))
                progress.advance()
                if answer.box is not None:
                    names[path] = answer.name
    console.tell_passed_over(*walks, verbose=given["verbose"])
    tally.tell(opened)
    if scored:
        judged = [(portable(path.relative_to(probes).parts[0]), name) for path, name in names.items()]
        _show_score(form, galleries.score(judged, known.labels), limit, tally.images - len(judged))
    if failed or tally.failed or any(walk.unreadable for walk in walks):
        raise SystemExit(1)


def _check_score(probes: Path, files: Sequence[Path], out: Path | None) -> None:
    if out is not None:
        raise click.UsageError("--score judges all answers of one run: it goes with no --out")
    if any(path.parent == probes or path == probes for path in files):
        raise click.UsageError(f"--score takes labelled folders; {probes} has images of its own")


def _digest(people: Mapping[str, Sequence[Path]]) -> str:
    """What tells a gallery from another one, or from itself after a change: names, sizes and times of its files."""
    digest = hashlib.sha256()
    for name, files in people.items():
        for file in files:
            with suppress(OSError):  # told where it is read
                status = file.stat()
                digest.update(repr((name, file.name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


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
    yield answer.status, answer.name, answer.nearest, answer.distance, *(answer.box or ("",) * 4), *error


def _record(answer: Answer) -> dict[str, Any]:
    """An answer; ``name`` is null for a stranger, ``box`` where there is no face."""
    return {
        "status": answer.status,
        "name": answer.name,
        "nearest": answer.nearest,
        "distance": answer.distance,
        "box": answer.box,
        "error": answer.error and answer.error.to_dict(),
    }


_VIEW = View(
    heading="distance  name",
    lines=_lines,
    columns=("path", "status", "name", "nearest", "distance", *tables.BOX, "error_reason", "error"),
    rows=_rows,
    record=_record,
    empty=Answer(),
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
