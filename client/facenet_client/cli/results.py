"""Where results go, answer by answer: lines for people, JSON lines, comma-separated values, or an archive of arrays.

What was written stays, whatever happens next. A file that is there is continued.
"""

import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from zipfile import BadZipFile

import click
import numpy as np

from facenet_client import Detection, ItemError
from facenet_client.cli import console
from facenet_client.cli.files import portable, replaced


class _Answer(Protocol):
    @property
    def error(self) -> ItemError | None: ...


T = TypeVar("T", bound=_Answer)
_MAX_PATH_COLUMNS = 60


@dataclass(frozen=True, slots=True)
class View(Generic[T]):
    """How one kind of answer is told: in lines after the image's path, in rows under ``columns`` of which the path is
    the first and the error's text the last, and as a record with an ``error``. ``model`` made its embeddings."""

    heading: str
    lines: Callable[[T], Iterable[str]]
    columns: Sequence[str]
    rows: Callable[[T], Iterable[Sequence[object]]]
    record: Callable[[T], dict[str, Any]]
    model: str = ""

    @property
    def suffixes(self) -> Sequence[str]:
        """Of the files that it can be written to."""
        return [".jsonl", ".csv", *([".npz"] if self.model else [])]


@dataclass(frozen=True, slots=True)
class Results(Generic[T]):
    """Open results: the ``missing`` files, whose answers are to be written, and how many were there before."""

    write: Callable[[Path, T], None]
    missing: Sequence[Path]
    there: int
    are_lines: bool
    """Whether people see them as they come."""
    out: Path | None = None

    def progress(self) -> console.Progress:
        """Of the missing files; lines in a terminal are progress by themselves."""
        return console.Progress(len(self.missing), hidden=self.are_lines and sys.stdout.isatty())


@dataclass(slots=True)
class Tally:
    """What came of a run's images."""

    images: int = 0
    faces: int = 0
    without_face: int = 0
    failed: int = 0

    def add(self, answer: _Answer, n_faces: int) -> None:
        """Count an image."""
        self.images += 1
        self.faces += n_faces
        self.failed += answer.error is not None
        self.without_face += answer.error is None and not n_faces

    def tell(self, found: Results[Any]) -> None:
        """A line about them, where it says more than the results do."""
        if self.images > 1 or found.out is not None:
            console.note(
                f"{self.images:,} images: {self.faces:,} faces, {self.without_face:,} images without a face, "
                f"{self.failed:,} failed" + (f"; {found.there:,} were in {found.out} before" if found.there else "")
            )


@contextmanager
def opened(
    files: Sequence[Path], view: View[T], *, as_json: bool, as_csv: bool, out: Path | None
) -> Iterator[Results[T]]:
    """Results on stdout, or in a file that may be there already, by its suffix.

    Raises UsageError where the file holds other results, or its suffix says no format.
    """
    if out is None:
        yield Results(_on_stdout(view, files, as_json, as_csv), files, 0, not (as_json or as_csv))
        return
    if as_json or as_csv:
        raise click.UsageError("the suffix of --out says the format: leave out --json and --csv")
    formats = {suffix: _FORMATS[suffix] for suffix in view.suffixes}
    if out.suffix not in formats:
        raise click.UsageError(f"--out {out}: its suffix must be one of {', '.join(formats)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        write, done = formats[out.suffix](out, view, stack)
        missing = [file for file in files if portable(file) not in done]
        yield Results(_noting_errors(write), missing, len(files) - len(missing), False, out)


def _noting_errors(write: Callable[[Path, T], None]) -> Callable[[Path, T], None]:
    """The same; people, who do not see it, are told what failed."""

    def noting(path: Path, answer: T) -> None:
        write(path, answer)
        if answer.error is not None:
            console.note(f"{console.shown(path)}: {console.shown(answer.error)}")

    return noting


# ---- stdout ----


def _on_stdout(view: View[T], files: Sequence[Path], as_json: bool, as_csv: bool) -> Callable[[Path, T], None]:
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    if as_json:
        return _noting_errors(lambda path, answer: click.echo(_json_line(view, path, answer), nl=False))
    if as_csv:
        click.echo(csv_text([view.columns]), nl=False)
        return _noting_errors(lambda path, answer: click.echo(_csv_rows(view, path, answer), nl=False))
    return _lines(view, files)


def _lines(view: View[T], files: Sequence[Path]) -> Callable[[Path, T], None]:
    width = min(_MAX_PATH_COLUMNS, max((len(console.shown(file)) for file in files), default=0))
    click.echo(f"{'image':{width}}  {view.heading}")

    def write(path: Path, answer: T) -> None:
        for line in view.lines(answer):
            click.echo(f"{console.shown(path):{width}}  {line}")

    return write


def _json_line(view: View[T], path: Path, answer: T) -> str:
    return json.dumps({"path": portable(path), **view.record(answer)}) + "\n"


def _csv_rows(view: View[T], path: Path, answer: T) -> str:
    return csv_text([portable(path), *row] for row in view.rows(answer))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as text, whose lines end as those of this system's other tools."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---- files ----

_Opened = tuple[Callable[[Path, Any], None], set[str]]


def _open_json(out: Path, view: View[Any], stack: ExitStack) -> _Opened:
    append, done = _append_to(out, b"", _json_blocks(out, view), stack)
    return lambda path, answer: append(_json_line(view, path, answer)), done


def _open_csv(out: Path, view: View[Any], stack: ExitStack) -> _Opened:
    append, done = _append_to(out, csv_text([view.columns]).encode(), _csv_blocks(out, view), stack)
    return lambda path, answer: append(_csv_rows(view, path, answer)), done


def _append_to(
    out: Path, heading: bytes, blocks: Iterable[tuple[str, bytes]], stack: ExitStack
) -> tuple[Callable[[str], None], set[str]]:
    """What appends to the file, a piece at once, and the paths of the blocks that were kept of it."""
    done: set[str] = set()
    with replaced(out) as new, new.open("wb") as file:
        file.write(heading)
        for path, block in blocks:
            if path not in done:
                done.add(path)
                file.write(block)
    appended = out.open("ab", buffering=0)
    stack.callback(appended.close)
    return lambda text: _write_all(appended, text.encode("utf-8", "backslashreplace")), done


def _write_all(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _json_blocks(out: Path, view: View[Any]) -> Iterator[tuple[str, bytes]]:
    """Each answered image's path and line; what failed is tried again."""
    for number, line in enumerate(_whole_lines(out), 1):
        try:
            record = json.loads(line)
            path, error = record["path"], record["error"]
            models = {face.get("model", "") for face in record.get("faces", ())}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _foreign(out, f"line {number}") from None
        if not models <= {view.model}:
            raise _foreign(out, f"line {number} is of the model {', '.join(models)!r}")
        if error is None:
            yield path, line


def _csv_blocks(out: Path, view: View[Any]) -> Iterator[tuple[str, bytes]]:
    """Each answered image's path and rows; what failed is tried again, and an image whose rows were cut short."""
    if not (out.exists() and out.stat().st_size):
        return
    model = view.columns.index("model") if "model" in view.columns else None
    with out.open(newline="", encoding="utf-8", errors="replace") as text:
        rows = csv.reader(text)
        if next(rows, None) not in (None, list(view.columns)):
            raise _foreign(out, "its columns")
        blocks = itertools.groupby(rows, key=lambda row: row[0] if row else "")
        for path, block in _complete(((path, list(block)) for path, block in blocks), out):
            if any(len(row) != len(view.columns) or (model and row[model] not in ("", view.model)) for row in block):
                raise _foreign(out, f"the rows of {path}")
            if not any(row[-1] for row in block):
                yield path, csv_text(block).encode("utf-8")


def _complete(blocks: Iterable[tuple[str, list[list[str]]]], out: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """All but the last one where the file ends within a line."""
    last: list[tuple[str, list[list[str]]]] = []
    for block in blocks:
        yield from last
        last = [block]
    with out.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        if file.read() == b"\n":
            yield from last


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Lines with their end: one that was cut short has none."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def _foreign(out: Path, what: str) -> click.UsageError:
    return click.UsageError(f"{out} holds other results ({what}): give --out a new file")


# ---- arrays ----

_FACE_ARRAYS = ("paths", "faces", "embeddings", "scores", "boxes", "landmarks")


def _open_arrays(out: Path, view: View[Any], stack: ExitStack) -> _Opened:
    """Arrays in memory, in the file at the end, whatever the end is."""
    arrays = _Arrays(out, view.model)
    stack.callback(arrays.save)
    return arrays.add, {path for path, error in arrays.images.items() if not error}


class _Arrays:
    """Vectors with their images: of each face a row of _FACE_ARRAYS, of each image its path and error ("" for none)."""

    def __init__(self, out: Path, model: str) -> None:
        self.images: dict[str, str] = {}
        self._out, self._model = out, model
        self._rows: list[tuple[Any, ...]] = []
        if out.exists():
            self._read()

    def add(self, path: Path, detection: Detection) -> None:
        """An answered image."""
        self.images[portable(path)] = "" if detection.error is None else str(detection.error)
        for number, face in enumerate(detection.faces):
            vector = np.asarray(face.embedding, np.float32)
            self._rows.append((portable(path), number, vector, face.score, face.box, face.landmarks))

    def save(self) -> None:
        """Write them all."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(_FACE_ARRAYS)
        types = (str, np.int64, np.float32, np.float32, np.float32, np.float32)
        arrays: Any = {
            name: np.array(part, kind) for name, part, kind in zip(_FACE_ARRAYS, columns, types, strict=True)
        }
        arrays["images"], arrays["errors"] = np.array(list(self.images), str), np.array(list(self.images.values()), str)
        with replaced(self._out) as new, new.open("wb") as file:
            np.savez(file, model=np.array(self._model), **arrays)

    def _read(self) -> None:
        try:
            with np.load(self._out) as stored:
                model, images, errors = str(stored["model"]), stored["images"].tolist(), stored["errors"].tolist()
                rows = list(zip(*(stored[name] for name in _FACE_ARRAYS), strict=True))
        except (OSError, ValueError, KeyError, BadZipFile):
            raise _foreign(self._out, "other arrays") from None
        if model != self._model:
            raise _foreign(self._out, f"of the model {model!r}")
        self.images = dict(zip(images, errors, strict=True))
        self._rows = [(str(row[0]), *row[1:]) for row in rows]


_FORMATS: dict[str, Callable[[Path, View[Any], ExitStack], _Opened]] = {
    ".jsonl": _open_json,
    ".csv": _open_csv,
    ".npz": _open_arrays,
}
