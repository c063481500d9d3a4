"""What a check measured, beside what it must be."""

import math
from dataclasses import dataclass, field

import click


def number(value: float) -> str:
    """A figure for people: four digits that count, whole numbers in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 and math.isfinite(value) else f"{value:.4g}"


@dataclass(frozen=True)
class Figure:
    """One figure of a check with its bound."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the bound does."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def bound(self) -> str:
        """The bound as people write it."""
        if self.at_most is not None:
            return f"≤ {number(self.at_most)}"
        return f"≥ {number(self.at_least)}" if self.at_least is not None else ""

    def __str__(self) -> str:
        return f"{self.name}: {number(self.value)} ({self.bound}) {'PASS' if self.holds else 'FAIL'}"


@dataclass
class Report:
    """A check's figures; ``note`` says under what they were measured, ``error`` why there are none."""

    figures: list[Figure] = field(default_factory=list)
    note: str = ""
    error: str = ""

    def most(self, name: str, value: float, bound: float) -> None:
        """A figure that must not be above its bound."""
        self.figures.append(Figure(name, value, at_most=bound))

    def least(self, name: str, value: float, bound: float) -> None:
        """A figure that must not be below its bound."""
        self.figures.append(Figure(name, value, at_least=bound))

    @property
    def holds(self) -> bool:
        """Whether every bound does."""
        return not self.error and all(figure.holds for figure in self.figures)

    def named(self, names: tuple[str, ...]) -> list[Figure]:
        """The figures whose names begin so."""
        return [figure for figure in self.figures if figure.name.startswith(names)]

    def show(self, title: str) -> None:
        """Print it."""
        click.echo(f"{title}{': ' + self.note if self.note else ''}")
        if self.error:
            click.echo(f"  {self.error} FAIL")
        for figure in self.figures:
            click.echo(f"  {figure}")
