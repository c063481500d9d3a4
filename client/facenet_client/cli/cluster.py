"""``facenet cluster``: the faces of a folder, grouped by person, as davidsandberg/facenet does it in
``contributed/cluster.py``."""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from facenet_client import Client
from facenet_client.cli import console, grouping, options
from facenet_client.cli.answers import answers, embedder, threshold
from facenet_client.cli.crops import Box, save_png

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
@options.reference(margin_px=44)
@click.option("--eps", type=float, help="L2 distance of neighbours.  [default: the operating point's threshold]")
@options.operating_point(_OPERATING_POINT)
@click.option("--min-samples", type=click.IntRange(min=1), default=1, show_default=True, help="Faces of a cluster.")
@click.option("--min-score", default=0.95, show_default=True, help="Faces of a higher detection score count.")
@options.faces(options.SELECTIONS, "all")
@options.MODEL
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write a folder of crops per cluster.")
@click.option("--largest-only", is_flag=True, help="The largest cluster alone.")
@click.option("--score", "scored", is_flag=True, help="Pairwise precision and recall against the folders' names.")
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
    **given: Any,
) -> None:
    """Group the faces below FOLDER by person: DBSCAN on the embeddings."""
    _check_extra()
    files = console.image_files([folder])
    with connect() as client, _crop_store(out) as store:
        model = embedder(client.server_info(), given["model"])
        eps = threshold(model, eps, "--eps", operating_point, _OPERATING_POINT)
        request = options.request(given | {"model": model.name}) | {"return_crops": store is not None}
        asked = answers(partial(client.embed_stream, **request), files)
        faces, failed = _collect(console.progress(asked, len(files)), min_score, store)
        labels = grouping.dbscan(np.array([face.vector for face in faces]), eps, min_samples)
        clusters = grouping.members(labels)
        if largest_only:
            clusters = {label: clusters[label] for label in clusters if label == 0}
        if out is not None and store is not None:
            _move_crops(store, out, clusters, faces)
    console.show(as_json, _table(clusters, faces), _records(clusters, faces))
    if scored:
        _show_score(as_json, grouping.pair_score(labels, [str(face.path.parent) for face in faces]), eps)
    if failed:
        raise SystemExit(1)


def _check_extra() -> None:
    if find_spec("sklearn") is None:  # looked for before the work, imported after it: that takes seconds
        raise click.ClickException("clustering needs scikit-learn: pip install 'facenet-serve[evaluate]'")


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


def _collect(answered: Any, min_score: float, store: Path | None) -> tuple[list[Sighting], int]:
    """The faces above the score, their crops in the store, and how many images failed."""
    faces: list[Sighting] = []
    failed = 0
    for path, detection in answered:
        if detection.error is not None:
            failed += 1
            console.note(f"{path}: {detection.error}; left out")
        for number, face in enumerate(detection.faces):
            if face.score <= min_score:
                continue
            if store is not None:
                save_png(store / f"{len(faces)}.png", face.crop)
            vector = np.array(face.embedding, np.float32)
            faces.append(Sighting(path, number, face.box, face.score, vector))
    return faces, failed


def _move_crops(store: Path, out: Path, clusters: Mapping[int, Sequence[int]], faces: Sequence[Sighting]) -> None:
    for label, places in clusters.items():
        folder = out / _name(label)
        folder.mkdir()
        for count, place in enumerate(places, 1):
            face = faces[place]
            (store / f"{place}.png").rename(folder / f"{count}_{face.path.stem}_{face.number}.png")


def _name(label: int) -> str:
    return "noise" if label == grouping.NOISE else str(label)


def _table(clusters: Mapping[int, Sequence[int]], faces: Sequence[Sighting]) -> Table:
    """A row per face, a section per cluster."""
    table = Table("cluster", "faces", "image", "face", "score", "box x1 y1 x2 y2, px")
    for label, places in clusters.items():
        for row, place in enumerate(places):
            face = faces[place]
            head = (_name(label), str(len(places))) if row == 0 else ("", "")
            box = "  ".join(f"{edge:.1f}" for edge in face.box)
            table.add_row(*head, Text(str(face.path)), str(face.number), f"{face.score:.4f}", box)
        table.add_section()
    return table


def _records(clusters: Mapping[int, Sequence[int]], faces: Sequence[Sighting]) -> Iterator[dict[str, Any]]:
    """A cluster each; the one of the noise is null."""
    for label, places in clusters.items():
        members = [
            {"path": str(face.path), "face": face.number, "box": face.box, "score": face.score}
            for face in (faces[place] for place in places)
        ]
        yield {"cluster": None if label == grouping.NOISE else label, "size": len(places), "members": members}


def _show_score(as_json: bool, score: grouping.PairScore, eps: float) -> None:
    precision, recall = score.precision, score.recall
    if as_json:
        record = score._asdict() | {
            "precision": None if math.isnan(precision) else precision,
            "recall": None if math.isnan(recall) else recall,
            "eps": eps,
        }
        console.show(True, None, [{"pairs": record}])
        return
    click.echo(f"Pairwise precision: {precision:.5f} ({score.both:,} of {score.together:,} pairs put together)")
    click.echo(f"Pairwise recall: {recall:.5f} ({score.both:,} of {score.same:,} pairs of the same folder)")
    click.echo(f"at eps {eps:.4f}")
