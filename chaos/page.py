"""The page of promises, docs/promises.md: its table of figures, which a run of the checks writes anew."""

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chaos.checks import CHECKS, Check
from chaos.report import Figure, Report, number

MOST = 160  # characters of a cell


class Row(NamedTuple):
    """A line of the table. A check's first row has its promise, and what its runs were given."""

    promise: str
    check: str
    bound: str = ""
    figure: str = ""
    control: str = ""


HEAD = [Row("promise", "check", "bound", "figure", "control"), Row(*5 * ("---",))]


def rows(name: str, check: Check, report: Report, control: Report | None) -> list[Row]:
    """A check's rows: its promise, then each figure of its long form, beside those that its control must break."""
    broken = {} if control is None else {figure.name: number(figure.value) for figure in control.named(check.bites)}
    without = "" if control is None else given(check.long_control or check.control or {})
    if control is not None and not check.is_broken(control):
        without += f"; **FAILS**: the control breaks no bound {control.error}"
    first = Row(
        check.promise, name, "", given(check.long) + (f"; **FAILS**: {report.error}" * bool(report.error)), without
    )
    figures = [Row(each.name, name, each.bound, _value(each), broken.get(each.name, "")) for each in report.figures]
    return [first, *figures]


def given(how: Mapping[str, Any]) -> str:
    """What a run is given, in words."""
    return ", ".join(f"{name} {value}" for name, value in how.items())


def _value(figure: Figure) -> str:
    return number(figure.value) if figure.holds else f"**FAILS**: {number(figure.value)}"


def parse(text: str) -> tuple[str, list[Row], str]:
    """A page: what is before the table of figures, the rows of that table, what is after it."""
    lines = text.splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if _cells(line) == list(HEAD[0])) + len(HEAD)
    end = next((number for number, line in enumerate(lines[start:], start) if not line.startswith("|")), len(lines))
    table = [Row(*_cells(line)) for line in lines[start:end]]
    return "".join(lines[: start - len(HEAD)]), table, "".join(lines[end:])


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _line(row: Row) -> str:
    cells = (textwrap.shorten(cell, MOST, placeholder=" …").replace("|", "\\|") for cell in row)
    return f"| {' | '.join(cells)} |\n".replace("|  |", "| |").replace("|  |", "| |")


def replaced(text: str, measured: Mapping[str, Iterable[Row]]) -> str:
    """The page with the rows of the checks that were measured, all others as they were, in the checks' order. A check
    that ended without a figure keeps those that it had."""
    before, old, after = parse(text)
    table = list(HEAD)
    for name in CHECKS:
        known, found = [row for row in old if row.check == name], [*measured.get(name, ())]
        table += [*found, *known[len(found) :]] if len(found) <= 1 else found
    return before + "".join(map(_line, table)) + after


def write(path: Path, measured: Mapping[str, Iterable[Row]]) -> None:
    """Put the rows of the checks that were measured into the page."""
    path.write_text(replaced(path.read_text("utf-8"), measured), "utf-8")
