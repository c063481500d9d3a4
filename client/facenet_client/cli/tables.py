"""Results as text for people, and as records and rows for programs. Pure."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column, Table
from rich.text import Text

from facenet_client import Comparison, Detection, Embedding, ModelInfo, ServerInfo, ServerStats
from facenet_client.cli.console import shown
from facenet_client.cli.files import portable
from facenet_client.cli.views import Vector, View

MIB = 1 << 20


def detections(model: ModelInfo | None = None) -> View[Detection]:
    """Faces: a line and a row each; an image without faces, or with an error, has one, too. With a model their
    embeddings are columns."""
    dimension = 0 if model is None else model.dimension

    def rows(detection: Detection) -> Iterator[list[object]]:
        size = [detection.width, detection.height]
        for number, face in enumerate(detection.faces):
            values = np.array(
                [face.score, *face.box, *itertools.chain(*face.landmarks)], np.float32
            )  # they print shorter
            vector = [] if face.embedding is None else [face.embedding.model, *face.embedding.vector]
            yield [*size, number, *values, *vector, "", ""]
        if detection.error is not None:
            yield [*_EMPTY, *_nothing(dimension), detection.error.reason, detection.error.args[0]]
        elif not detection.faces:
            yield [*size, *_EMPTY[2:], *_nothing(dimension), "", ""]

    return View(
        heading=f"{'size':>11}  {'face':>4}  {'score':6}  box x1 y1 x2 y2, px",
        lines=_detection_lines,
        columns=("path", *_FACE, *_vector_columns(dimension), "error_reason", "error"),
        rows=rows,
        record=Detection.to_dict,
        empty=Detection((), 0, 0),
        vectors=_face_vectors if model else None,
        model=model.name if model else "",
    )


def embeddings(model: ModelInfo) -> View[Embedding]:
    """Of ready crops: a line and a row each."""

    def rows(embedding: Embedding) -> Iterator[list[object]]:
        if embedding.error is None:
            yield [embedding.model, *embedding.vector, "", ""]
        else:
            yield [*_nothing(model.dimension), embedding.error.reason, embedding.error.args[0]]

    return View(
        heading="embedding",
        lines=lambda embedding: [shown(embedding.error.args[0]) if embedding.error else f"{model.dimension}-D"],
        columns=("path", *_vector_columns(model.dimension), "error_reason", "error"),
        rows=rows,
        record=lambda embedding: {"embedding": embedding.vector.tolist(), **_without_vector(embedding)},
        empty=Embedding(np.empty(0, np.float32), ""),
        vectors=lambda embedding: [] if embedding.error else [(embedding.vector, *_NOWHERE)],
        model=model.name,
    )


_NOWHERE: tuple[float, tuple[float, ...], tuple[tuple[float, float], ...]] = (nan, (nan,) * 4, ((nan, nan),) * 5)


def _without_vector(embedding: Embedding) -> dict[str, Any]:
    return {name: value for name, value in embedding.to_dict().items() if name != "vector"}


def _face_vectors(detection: Detection) -> Iterator[Vector]:
    for face in detection.faces:
        yield np.asarray(face.embedding, np.float32), face.score, face.box, face.landmarks


def _vector_columns(dimension: int) -> list[str]:
    return ["model", *(f"embedding_{place}" for place in range(dimension))] if dimension else []


_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
BOX = ("x1", "y1", "x2", "y2")
_FACE = ("width", "height", "face", "score", *BOX, *(f"{point}_{axis}" for point in _POINTS for axis in "xy"))
_EMPTY = [""] * len(_FACE)


def _nothing(dimension: int) -> list[str]:
    return [""] * (dimension + 1 if dimension else 0)


def _detection_lines(detection: Detection) -> Iterator[str]:
    size = f"{detection.width}×{detection.height}"
    if detection.error is not None:
        yield shown(detection.error.args[0])
    elif not detection.faces:
        yield f"{size:>11}  none"
    for number, face in enumerate(detection.faces):
        box = " ".join(f"{edge:.1f}" for edge in face.box)
        yield f"{size:>11}  {number:>4}  {face.score:.4f}  {box}"


def comparisons(names: Iterable[tuple[Path, Path]], results: Iterable[Comparison]) -> Table:
    """A row per pair."""
    table = Table(
        Column("a", overflow="fold"),
        Column("b", overflow="fold"),
        "distance",
        "threshold",
        "operating point",
        "verdict",
        "probability",
    )
    for (a, b), result in zip(names, results, strict=True):
        if result.error is not None:
            table.add_row(Text(shown(a)), Text(shown(b)), "", "", "", Text(result.error.args[0], style="red"), "")
            continue
        verdict = {True: "[green]same[/green]", False: "different", None: "none"}[result.same]
        threshold = "" if result.threshold is None else f"{result.threshold:.4f}"
        probability = "" if result.probability is None else f"{result.probability:.4f}"
        figures = (f"{result.distance:.4f}", threshold, result.operating_point, verdict, probability)
        table.add_row(Text(shown(a)), Text(shown(b)), *figures)
    return table


def server_info(info: ServerInfo) -> Table:
    """Models, then limits."""
    table = Table("", "", title=f"FaceNet Serve {info.version} on {', '.join(info.providers)}", show_header=False)
    for model in info.models:
        default = ", default" if model.name == info.default_embedder else ""
        about = f"{model.kind}{default}; {model.precision}; {model.preprocessing} preprocessing; {model.source}"
        if model.dimension:
            decision = f"same under {model.threshold:.3f}" if model.calibration else "uncalibrated"
            about += f"; {model.dimension}-D, {decision}"
        if model.interchangeable_with:
            about += f"; interchangeable with {', '.join(model.interchangeable_with)}"
        table.add_row(model.name, about)
        for point in model.calibration.operating_points if model.calibration else ():
            rates = f"false accepts {point.false_accept_rate:.1e}, true accepts {point.true_accept_rate:.3f}"
            table.add_row(f"  {point.name}", f"{point.threshold:.4f}: {rates}")
    table.add_section()
    if info.workers:
        table.add_row("workers", f"{info.workers:,}, each with {info.worker_bytes / MIB:,.0f} MiB for itself")
    else:
        table.add_row("workers", "none: the server's own process does the work")
    table.add_row("image formats", ", ".join(info.image_formats))
    for name, value in info.limits.items():
        table.add_row(name, f"{value:,}")
    return table


def comparison_record(names: tuple[Path, Path], result: Comparison) -> dict[str, Any]:
    """One pair; the figures are null where there is an error, and where the model is uncalibrated."""
    return {"a": portable(names[0]), "b": portable(names[1]), **result.to_dict()}


def server_info_record(info: ServerInfo) -> dict[str, Any]:
    """The fields of GetServerInfo."""
    return {
        "version": info.version,
        "providers": list(info.providers),
        "default_embedder": info.default_embedder,
        "models": [asdict(model) for model in info.models],
        "workers": info.workers,
        "worker_bytes": info.worker_bytes,
        "image_formats": list(info.image_formats),
        "limits": info.limits,
    }


def server_stats(stats: ServerStats) -> Table:
    """What a server did in some seconds, stage by stage, and what it holds now."""
    table = Table("stage", "runs", "rows", "rows/run", "queue/row", "compute/run", "busy")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in stats.stages:
        if stage.runs:
            busy = stage.compute_ns / 1e9 / stats.uptime_s if stats.uptime_s else 0.0
            counts = (f"{stage.runs:,}", f"{stage.rows:,}", f"{stage.mean_rows:.1f}")
            table.add_row(
                stage.name, *counts, milliseconds(stage.mean_queue_s), milliseconds(stage.mean_compute_s), f"{busy:.2f}"
            )
    return table


def server_state(stats: ServerStats) -> str:
    """A server's load in two lines, and its worker processes in one."""
    now, workers = stats.admission, stats.workers
    of_workers = (
        f"\nworkers: {workers.working} and {workers.standing_by} standing by; {workers.ended:,} ended, "
        f"{workers.jobs_run_again:,} jobs run again, {workers.jobs_given_up:,} given up"
    )
    return (
        f"{stats.uptime_s:,.0f} s: {now.accepted_items:,} items accepted, {now.answered_items:,} answered, "
        f"{now.abandoned_items:,} abandoned, {now.refused_items:,} refused; {now.refused_streams:,} streams refused\n"
        f"now: {now.streams:,} streams ({now.stalled_streams:,} stalled), {now.items_in_flight:,} items, "
        f"{now.bytes_in_flight / MIB:,.1f} MiB in flight; "
        f"event loop late by p99 {milliseconds(stats.loop_lag.p99_s)}, memory {stats.resident_bytes / MIB:,.0f} MiB"
    ) + (of_workers if workers.working or workers.ended else "")


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{seconds * 1e3:,.1f} ms"
