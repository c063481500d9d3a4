"""How answers are written as text: lines for people, records, rows. Pure."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from facenet_client import ItemError
from facenet_client.cli.files import portable


class Answer(Protocol):
    """What an image's answer has, whatever was asked."""

    @property
    def error(self) -> ItemError | None: ...


T = TypeVar("T", bound=Answer)
Vector: TypeAlias = tuple[Any, float, Sequence[float], Sequence[Sequence[float]]]


@dataclass(frozen=True, slots=True)
class View(Generic[T]):
    """How one kind of answer is written: as lines for people, as rows under ``columns``, as a record.

    The first column is the image's path, the last one the error's text; a record has an ``error``. ``empty`` is an
    answer of nothing. ``vectors`` gives each face's (D,) float32, score, box in px and landmarks in px, where there are
    embeddings; ``model`` made them.
    """

    heading: str
    lines: Callable[[T], Iterable[str]]
    columns: Sequence[str]
    rows: Callable[[T], Iterable[Sequence[object]]]
    record: Callable[[T], dict[str, Any]]
    empty: T
    vectors: Callable[[T], Iterable[Vector]] | None = None
    model: str = ""


def json_line(view: View[T], path: Path, answer: T) -> str:
    """An image's record, with its path."""
    return json.dumps({"path": portable(path), **view.record(answer)}) + "\n"


def csv_rows(view: View[T], path: Path, answer: T) -> str:
    """An image's rows, each with its path."""
    return csv_text([portable(path), *row] for row in view.rows(answer))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
