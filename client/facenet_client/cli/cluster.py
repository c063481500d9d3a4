"""``facenet cluster``: the faces of a folder, grouped by person, as davidsandberg/facenet does it in
``contributed/cluster.py``."""

import itertools
import math
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
from facenet_client.cli import console, grouping, options
from facenet_client.cli.answers import answers, embedder, threshold
from facenet_client.cli.crops import Box
from facenet_client.cli.files import fitting, portable, save_png
from facenet_client.cli.photos import Walk
from facenet_client.cli.results import csv_text

# DBSCAN chains: one wrong pair joins two people for good, and n faces make n²/2 pairs. So the default is the strictest
# operating point, not the one that suits single pairs: docs/accuracy.md has the figures of both.
_OPERATING_POINT = "far_1e-5"


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A face in an image: the how-manieth of its faces, from 0, and where; ``vector`` is (D,) float32."""

    path: Path
    number: int
    box: Box
    score: float
    vector: NDArray[np.float32]


@click.command()
@options.folder("folder")
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
    folder: Path,
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
    """Group the faces below FOLDER by person: DBSCAN on the embeddings."""
    _check_extra()
    walk = Walk()
    files = console.image_files([folder], walk)
    with connect() as client, _crop_store(out) as store:
        model = embedder(client.server_info(), given["model"])
        eps = threshold(model, eps, "--eps", operating_point, _OPERATING_POINT)
        request = options.request(given | {"model": model.name}) | {"return_crops": store is not None}
        with console.Progress(len(files)) as progress:
            asked = answers(partial(client.embed_stream, **request), files)
            faces, without, failed = _collect(asked, progress, min_score, store)
        with console.Progress(100, "% of the distances") as progress:
            vectors = np.array([face.vector for face in faces])
            labels = grouping.dbscan(vectors, eps, min_samples, on_progress=lambda share: progress.to(int(100 * share)))
        clusters = grouping.members(labels)
        if largest_only:
            clusters = {label: clusters[label] for label in clusters if label == 0}
        if out is not None and store is not None:
            _move_crops(store, out, clusters, faces)
    _show(clusters, faces, without, as_json, as_csv)
    console.tell_passed_over(walk, verbose)
    console.note(
        f"{len(files):,} images: {len(faces):,} faces in {sum(label != grouping.NOISE for label in clusters):,} "
        f"clusters, {len(without):,} images without a face, {failed:,} failed"
    )
    if scored:
        _show_score(as_json, as_csv, grouping.pair_score(labels, [str(face.path.parent) for face in faces]), eps)
    if failed or walk.unreadable:
        raise SystemExit(1)


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
    if any(out.iterdir()):
        raise click.UsageError(f"{out} is not empty: its files would mix with the clusters")
    with tempfile.TemporaryDirectory(prefix=".faces-", dir=out) as store:
        yield Path(store)


def _collect(
    answered: Iterable[tuple[Path, Detection]], progress: console.Progress, min_score: float, store: Path | None
) -> tuple[list[Sighting], list[Path], int]:
    """The faces above the score, their crops in the store; the images without one; and how many images failed."""
    faces: list[Sighting] = []
    without: list[Path] = []
    failed = 0
    for path, detection in answered:
        progress.advance()
        counted = [face for face in enumerate(detection.faces) if face[1].score > min_score]
        if detection.error is not None:
            failed += 1
            console.note(f"{console.shown(path)}: {console.shown(detection.error)}; left out")
        elif not counted:
            without.append(path)
            console.note(f"{console.shown(path)}: no face")
        for number, face in counted:
            if store is not None and face.crop is not None:
                save_png(store / f"{len(faces)}.png", face.crop)
            vector = np.array(face.embedding, np.float32)
            faces.append(Sighting(path, number, face.box, face.score, vector))
    return faces, without, failed


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


def _show(
    clusters: Mapping[int, Sequence[int]],
    faces: Sequence[Sighting],
    without: Sequence[Path],
    as_json: bool,
    as_csv: bool,
) -> None:
    """The clusters in the form asked for; as JSON, with a record of the images without a face."""
    if as_csv:
        click.echo(csv_text(_rows(clusters, faces)), nl=False)
        return
    missing = [{"without_face": list(map(portable, without))}] if without else []
    console.show(as_json, _table(clusters, faces), itertools.chain(_records(clusters, faces), missing))


def _rows(clusters: Mapping[int, Sequence[int]], faces: Sequence[Sighting]) -> Iterator[Sequence[object]]:
    """A heading, then a face each; the cluster of the noise is empty."""
    yield "cluster", "path", "face", "score", "x1", "y1", "x2", "y2"
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
