"""``facenet cluster``: the faces of a folder, grouped by person, as davidsandberg/facenet does it in
``contributed/cluster.py``."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.table import Column, Table
from rich.text import Text

from facenet_client import Client, Detection
from facenet_client.cli import console, grouping, options, result_files, tables
from facenet_client.cli.answers import answers, embedder, threshold
from facenet_client.cli.crops import Box
from facenet_client.cli.files import fitting, portable, save_png
from facenet_client.cli.photos import Walk
from facenet_client.cli.views import csv_text

# DBSCAN chains: one wrong pair joins two people for good, and n faces make n²/2 pairs. So the default is the strictest
# operating point, not the one that suits single pairs: docs/accuracy.md has the figures of both.
_OPERATING_POINT = "far_1e-5"
_STORE = ".faces-"


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A face in an image: its number there, from 0, its box in px and its score; ``vector`` is (D,) float32."""

    path: Path
    number: int
    box: Box
    score: float
    vector: NDArray[np.float32]


@dataclass(slots=True)
class _Found:
    """The faces of some images, how many images there were and failed, and the model, where a file names it."""

    faces: list[Sighting]
    images: int
    failed: int = 0
    model: str = ""


@click.command()
@click.argument("source", metavar="PATH", type=click.Path(exists=True, path_type=Path))
@options.looking
@click.option(
    "--eps",
    type=click.FloatRange(min=0, min_open=True),
    help="L2 distance of neighbours.  [default: the operating point's threshold]",
)
@options.operating_point(_OPERATING_POINT)
@click.option("--min-samples", type=click.IntRange(min=1), default=1, show_default=True, help="Faces of a cluster.")
@click.option("--min-score", default=0.95, show_default=True, help="Faces of a higher detection score count.")
@options.faces(options.SELECTIONS, "all")
@options.MODEL
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write a folder of crops per cluster.")
@click.option("--largest-only", is_flag=True, help="The largest cluster alone.")
@click.option("--score", "scored", is_flag=True, help="Pairwise precision and recall against the folders' names.")
@options.AS_CSV
@options.AS_JSON
@click.pass_obj
def cluster(
    connect: Callable[[], Client],
    /,
    source: Path,
    eps: float | None,
    operating_point: str | None,
    min_samples: int,
    min_score: float,
    out: Path | None,
    largest_only: bool,
    scored: bool,
    as_json: bool,
    as_csv: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Group faces by person: DBSCAN on the embeddings.

    PATH is a folder with photos below it, or FILE.npz of `facenet embed --out`: many groupings of vectors that were
    computed once.
    """
    _check_extra()
    options.check_form(as_json, as_csv)
    if source.suffix == ".npz" and out is not None:
        raise click.UsageError("--out takes a folder of photos: a file of vectors has no crops")
    walk = Walk()
    found = _stored(source, min_score) if source.suffix == ".npz" else None
    eps = eps or _default_eps(connect, found.model if found else given["model"], operating_point)
    with _crop_store(out) as store:
        found = found or _search(connect, console.image_files([source], walk), min_score, store, given)
        labels = _group(found.faces, eps, min_samples)
        clusters = {label: each for label, each in grouping.members(labels).items() if label == 0 or not largest_only}
        if out is not None and store is not None:
            _move_crops(store, out, clusters, found.faces)
    if as_csv:
        click.echo(csv_text(_rows(clusters, found.faces)), nl=False)
    else:
        console.show(as_json, _table(clusters, found.faces), _records(clusters, found.faces))
    console.tell_passed_over(walk, verbose=verbose)
    _sum_up(found, clusters)
    if scored:
        people = [str(face.path.parent) for face in found.faces]
        _show_score(as_json, as_csv, grouping.pair_score(labels, people), eps)
    if found.failed or walk.unreadable:
        raise SystemExit(1)


def _default_eps(connect: Callable[[], Client], model: str | None, operating_point: str | None) -> float:
    """The operating point's threshold. Raises BadParameter where the server has no such model, and UsageError where it
    has no such point."""
    with connect() as client:
        return threshold(embedder(client.server_info(), model), None, "--eps", operating_point, _OPERATING_POINT)


def _search(
    connect: Callable[[], Client], files: Sequence[Path], min_score: float, store: Path | None, given: dict[str, Any]
) -> _Found:
    """The faces of the images."""
    with connect() as client:
        request = options.request(given) | {"return_crops": store is not None}
        return _collect(partial(client.embed_stream, **request), files, min_score, store)


def _check_extra() -> None:
    if find_spec("scipy") is None:  # looked for before the work, imported after it: that takes seconds
        raise click.ClickException('clustering needs SciPy: pip install "facenet-serve[evaluate]"')


@contextmanager
def _crop_store(out: Path | None) -> Iterator[Path | None]:
    """Where crops wait for their clusters: a folder inside ``out``, which must be empty."""
    if out is None:
        yield None
        return
    out.mkdir(parents=True, exist_ok=True)
    for unfinished in out.glob(f"{_STORE}*"):  # of a run that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    if any(out.iterdir()):
        raise click.UsageError(f"{out} is not empty: its files would mix with the clusters")
    with tempfile.TemporaryDirectory(prefix=_STORE, dir=out) as store:
        yield Path(store)


def _stored(source: Path, min_score: float) -> _Found:
    """The faces of a file of vectors above the score. Raises UsageError where it is none."""
    try:
        arrays = result_files.read_arrays(source)
    except ValueError as error:
        raise click.UsageError(f"{source}: {error}") from error
    faces = [
        Sighting(Path(str(path)), int(number), tuple(box.tolist()), float(score), vector)
        for path, number, vector, score, box in zip(
            *(arrays[name] for name in ("paths", "faces", "embeddings", "scores", "boxes")), strict=True
        )
        if not score <= min_score  # ready crops have none
    ]
    errors = arrays["errors"].tolist()
    return _Found(faces, len(errors), sum(error != "" for error in errors), str(arrays["model"]))


def _collect(
    ask: Callable[[Iterable[Path]], Iterator[Detection]], files: Sequence[Path], min_score: float, store: Path | None
) -> _Found:
    """The faces above the score, their crops in the store. Images that fail or have no such face are told."""
    found = _Found([], len(files))
    with console.Progress(len(files)) as progress:
        for path, detection in answers(ask, files):
            progress.advance()
            counted = [(number, face) for number, face in enumerate(detection.faces) if face.score > min_score]
            if detection.error is not None:
                found.failed += 1
                console.note_of(path, f"{detection.error}; left out")
            elif not counted:
                why = "no face" if not detection.faces else f"no face over the score {min_score:g}"
                console.note_of(path, why)
            for number, face in counted:
                if store is not None and face.crop is not None:
                    save_png(store / f"{len(found.faces)}.png", face.crop)
                vector = np.array(face.embedding, np.float32)
                found.faces.append(Sighting(path, number, face.box, face.score, vector))
    return found


def _group(faces: Sequence[Sighting], eps: float, min_samples: int) -> NDArray[np.int64]:
    """Each face's cluster, (N,)."""
    vectors = np.array([face.vector for face in faces])
    with console.Progress(100, "% of the distances") as progress:
        return grouping.dbscan(vectors, eps, min_samples, on_progress=lambda share: progress.to(int(100 * share)))


def _sum_up(found: _Found, clusters: Mapping[int, Sequence[int]]) -> None:
    n_without = found.images - found.failed - len({face.path for face in found.faces})
    n_noise = len(clusters.get(grouping.NOISE, ()))
    noise = f" and {n_noise:,} in none" if n_noise else ""
    console.note(
        f"{found.images:,} images: {len(found.faces):,} faces in {len(clusters) - bool(n_noise):,} clusters{noise}, "
        f"{n_without:,} images without a face, {found.failed:,} failed"
    )


def _move_crops(store: Path, out: Path, clusters: Mapping[int, Sequence[int]], faces: Sequence[Sighting]) -> None:
    for label, places in clusters.items():
        folder = out / _name(label)
        folder.mkdir()
        for count, place in enumerate(places, 1):
            face = faces[place]
            name = fitting(f"{count}_{face.path.stem}", f"_{face.number}.png")
            (store / f"{place}.png").rename(folder / name)


def _name(label: int) -> str:
    return "noise" if label == grouping.NOISE else str(label)


def _rows(clusters: Mapping[int, Sequence[int]], faces: Sequence[Sighting]) -> Iterator[Sequence[object]]:
    """A heading, then a face each; the cluster of the noise is empty."""
    yield "cluster", "path", "face", "score", *tables.BOX
    for label, places in clusters.items():
        for face in (faces[place] for place in places):
            name = "" if label == grouping.NOISE else label
            yield name, portable(face.path), face.number, face.score, *face.box


def _table(clusters: Mapping[int, Sequence[int]], faces: Sequence[Sighting]) -> Table:
    """A row per face, a section per cluster."""
    table = Table("cluster", "faces", Column("image", overflow="fold"), "face", "score", "box x1 y1 x2 y2, px")
    for label, places in clusters.items():
        for row, place in enumerate(places):
            face = faces[place]
            head = (_name(label), str(len(places))) if row == 0 else ("", "")
            box = "  ".join(f"{edge:.1f}" for edge in face.box)
            table.add_row(*head, Text(console.shown(face.path)), str(face.number), f"{face.score:.4f}", box)
        table.add_section()
    return table


def _records(clusters: Mapping[int, Sequence[int]], faces: Sequence[Sighting]) -> Iterator[dict[str, Any]]:
    """A cluster each; the one of the noise is null."""
    for label, places in clusters.items():
        members = [
            {"path": portable(face.path), "face": face.number, "box": face.box, "score": face.score}
            for face in (faces[place] for place in places)
        ]
        yield {"cluster": None if label == grouping.NOISE else label, "size": len(places), "members": members}


def _show_score(as_json: bool, as_csv: bool, score: grouping.PairScore, eps: float) -> None:
    precision, recall = score.precision, score.recall
    if as_json:
        record = score._asdict() | {
            "precision": None if math.isnan(precision) else precision,
            "recall": None if math.isnan(recall) else recall,
            "eps": eps,
        }
        console.show(True, None, [{"pairs": record}])
        return
    for line in (
        f"Pairwise precision: {precision:.5f} ({score.both:,} of {score.together:,} pairs put together)",
        f"Pairwise recall: {recall:.5f} ({score.both:,} of {score.same:,} pairs of the same folder)",
        f"at eps {eps:.4f}",
    ):
        click.echo(line, err=as_csv)
