"""The results as JSON, for machines, and as Markdown, for people."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.figures import Cell, Figure, Section, Table, Verdict
from benchmarks.machine import Machine

QUIET_SHARE = 0.03  # of the cores: what others may take before the figures are in doubt


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    machine: Machine
    quick: bool
    minutes: float
    others_share: float | None  # of the cores, taken by other programs meanwhile
    sections: list[Section]

    @property
    def figures(self) -> list[Figure]:
        """The figures of all sections."""
        return [figure for section in self.sections for figure in section.figures]


def as_json(report: Report) -> str:
    """Everything, with each figure's verdict."""

    def section(each: Section) -> dict[str, Any]:
        figures = [{**asdict(figure), "verdict": figure.verdict.value} for figure in each.figures]
        return {**asdict(each), "figures": figures}

    return json.dumps({**asdict(report), "sections": [section(each) for each in report.sections]}, indent=1) + "\n"


def as_markdown(report: Report) -> str:
    """The bounds first, then each section's tables and plots, then the machine."""
    parts = [_bounds(report.figures)]
    for section in report.sections:
        if body := _body(section):
            parts += [f"## {section.title}", *body]
    return "\n\n".join([*parts, _machine(report)]) + "\n"


def _body(section: Section) -> list[str]:
    parts = [_table(table) for table in section.tables if table.rows]
    if unbound := [figure for figure in section.figures if figure.verdict is Verdict.UNBOUND]:
        rows = [(figure.name, _figure(figure), figure.note) for figure in unbound]
        parts.append(_rows(("figure", "measured", "note"), rows))
    return [*parts, *section.notes, *(f"![{section.title}]({plot})" for plot in section.plots)]


def _bounds(figures: Iterable[Figure]) -> str:
    rows = [
        (figure.name, _figure(figure), figure.bound, figure.verdict.value, figure.note)
        for figure in figures
        if figure.verdict is not Verdict.UNBOUND
    ]
    return _rows(("bound", "measured", "must be", "verdict", "note"), rows)


def _figure(figure: Figure) -> str:
    return "—" if figure.value is None else f"{_cell(figure.value)} {figure.unit}".strip()


def _table(table: Table) -> str:
    return f"**{table.title}**\n\n{_rows(table.columns, table.rows)}"


def _rows(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(cell: Cell) -> str:
    """Floats with three digits that mean something."""
    if cell is None:
        return "—"
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def _machine(report: Report) -> str:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"Measured in {report.minutes:.0f} min on {machine.cores} cores of {machine.cpu} ({machine.instructions}), "
        f"{machine.memory_gib} GiB, {machine.system}, our networks on {machine.device}; Python {machine.python}, "
        f"{versions}.{_doubts(report)}"
    )


def _doubts(report: Report) -> str:
    """What speaks against the figures."""
    doubts = " A quick run: its figures are rough." if report.quick else ""
    if report.others_share is not None and report.others_share > QUIET_SHARE:
        doubts += f" **Other programs took {report.others_share:.0%} of the cores meanwhile: measure again when idle.**"
    return doubts
