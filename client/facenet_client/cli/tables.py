"""Results as tables for people and records for programs. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from facenet_client import Comparison, Detection, ServerInfo


def detections(files: Sequence[Path], found: Sequence[Detection]) -> Table:
    """A row per face; an image without faces, or with an error, has one too."""
    table = Table("image", "size", "face", "score", "box x1 y1 x2 y2, px", "eyes, nose, mouth, px")
    for file, detection in zip(files, found, strict=True):
        size = f"{detection.width}×{detection.height}"
        if detection.error is not None:
            table.add_row(Text(str(file)), "", "", "", Text(detection.error.args[0], style="red"), "")
        elif not detection.faces:
            table.add_row(Text(str(file)), size, "none", "", "", "")
        for number, face in enumerate(detection.faces, 1):
            points = "  ".join(f"{x:.0f},{y:.0f}" for x, y in face.landmarks)
            box = "  ".join(f"{edge:.1f}" for edge in face.box)
            table.add_row(Text(str(file)), size, str(number), f"{face.score:.4f}", box, points)
    return table


def comparisons(names: Iterable[tuple[Path, Path]], results: Iterable[Comparison]) -> Table:
    """A row per pair."""
    table = Table("a", "b", "distance", "threshold", "operating point", "verdict", "probability")
    for (a, b), result in zip(names, results, strict=True):
        if result.error is not None:
            table.add_row(Text(str(a)), Text(str(b)), "", "", "", Text(result.error.args[0], style="red"), "")
            continue
        verdict = {True: "[green]same[/green]", False: "different", None: "none"}[result.same]
        threshold = "" if result.threshold is None else f"{result.threshold:.4f}"
        probability = "" if result.probability is None else f"{result.probability:.4f}"
        figures = (f"{result.distance:.4f}", threshold, result.operating_point, verdict, probability)
        table.add_row(Text(str(a)), Text(str(b)), *figures)
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
    table.add_row("image formats", ", ".join(info.image_formats))
    for name, value in info.limits.items():
        table.add_row(name, f"{value:,}")
    return table


def detection_record(file: Path, detection: Detection) -> dict[str, Any]:
    """Everything an answer holds; embeddings as lists."""
    return {"path": str(file), **detection.to_dict()}


def comparison_record(names: tuple[Path, Path], result: Comparison) -> dict[str, Any]:
    """One pair; the figures are null where there is an error, and where the model is uncalibrated."""
    return {"a": str(names[0]), "b": str(names[1]), **result.to_dict()}


def server_info_record(info: ServerInfo) -> dict[str, Any]:
    """The fields of GetServerInfo."""
    return {
        "version": info.version,
        "providers": list(info.providers),
        "default_embedder": info.default_embedder,
        "models": [asdict(model) for model in info.models],
        "image_formats": list(info.image_formats),
        "limits": info.limits,
    }
