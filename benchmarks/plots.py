"""Curves as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Line:
    """One curve and its name."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def draw(path: Path, lines: Sequence[Line], x: str, y: str) -> str:
    """Write an SVG with both axes logarithmic; its name."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        axes.plot(line.x, line.y, marker="o", markersize=3, label=line.name)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.set_xticks(lines[0].x, [f"{value:g}" for value in lines[0].x], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    return path.name
