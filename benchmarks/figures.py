"""What the benchmark finds, as values: figures with their bounds, tables, and the sections that hold them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


class Verdict(Enum):
    """What a bound says of a figure."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_MEASURED = "not measured"
    UNBOUND = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. ``value`` None: it could not be measured, and ``note`` says why."""

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def bound(self) -> str:
        """The bound in words; empty where there is none."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    @property
    def verdict(self) -> Verdict:
        """Whether the bound holds."""
        if not self.bound:
            return Verdict.UNBOUND
        if self.value is None:
            return Verdict.NOT_MEASURED
        low = self.at_least is None or self.value >= self.at_least
        high = self.at_most is None or self.value <= self.at_most
        return Verdict.PASS if low and high else Verdict.FAIL


Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under their columns. None: not there."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the benchmark, done: ``plots`` are files beside the report, ``versions`` what ran in it."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def proven(figures: Iterable[Figure], *, quick: bool) -> bool:
    """Whether every bound holds. One that was not measured is not proven; a quick run lets that pass."""
    refused = {Verdict.FAIL} if quick else {Verdict.FAIL, Verdict.NOT_MEASURED}
    return refused.isdisjoint(figure.verdict for figure in figures)
