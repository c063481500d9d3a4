"""Files of results that a later run continues: JSON lines, comma-separated values, arrays for numpy.

A run keeps what a file has of answered images, and asks again for what failed. Each answer is written at once, so that
nothing is lost whatever happens next; arrays are written every minute and at the end. Beside the file lies another one,
with all that shaped its answers: a run with other options would mix what cannot be told apart.
"""

import csv
import io
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import click
import numpy as np

from facenet_client.cli.console import uninterrupted
from facenet_client.cli.files import fitting, portable, replaced
from facenet_client.cli.views import View, csv_rows, csv_text, json_line

_SAVE_EVERY_S = 60.0
_Opened = tuple[Callable[[Path, Any], None], set[str]]  # what writes an answer; the paths that are done


@contextmanager
def opened(out: Path, view: View[Any], made_with: Mapping[str, object]) -> Iterator[_Opened]:
    """What writes an answer to the file, and the paths of the images that the file has answers of.

    Raises UsageError where the file holds other results, or its suffix names no format.
    """
    suffixes = [suffix for suffix in _FORMATS if suffix != ".npz" or view.vectors]
    if out.suffix not in suffixes:
        raise click.UsageError(f"--out {out}: its suffix must be one of {', '.join(suffixes)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        path = out.resolve()
        _check_options(path, made_with)
        write, done = _FORMATS[out.suffix](path, view, stack)
        _options_file(path).write_text(json.dumps(made_with, indent=1) + "\n")

        def whole(image: Path, answer: Any) -> None:
            with uninterrupted():
                write(image, answer)

        yield whole, done


def _options_file(out: Path) -> Path:
    return out.with_name(fitting(out.name, ".options.json"))


def _check_options(out: Path, made_with: Mapping[str, object]) -> None:
    """Raises UsageError where a file that holds something was made with other options. One without them is taken."""
    if not (out.exists() and out.stat().st_size and _options_file(out).exists()):
        return
    try:
        then = json.loads(_options_file(out).read_text())
        now = json.loads(json.dumps(made_with))
        other = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    except (ValueError, TypeError) as error:
        raise click.UsageError(f"{_options_file(out)} cannot be read: {error}") from error
    if other:
        told = ", ".join(f"{name} {then.get(name)}, now {now.get(name)}" for name in other)
        raise click.UsageError(f"{out} was made with other options ({told}): give --out a new file")


def _foreign(out: Path, what: str) -> click.UsageError:
    return click.UsageError(f"{out} holds other results ({what}): give --out a new file")


# ---- lines ----


def _open_json(out: Path, view: View[Any], stack: ExitStack) -> _Opened:
    append, done = _append_to(out, b"", _json_blocks(out, view), stack)
    return lambda path, answer: append(json_line(view, path, answer)), done


def _open_csv(out: Path, view: View[Any], stack: ExitStack) -> _Opened:
    append, done = _append_to(out, csv_text([view.columns]).encode(), _csv_blocks(out, view), stack)
    return lambda path, answer: append(csv_rows(view, path, answer)), done


def _append_to(
    out: Path, heading: bytes, blocks: Iterable[tuple[str, bytes]], stack: ExitStack
) -> tuple[Callable[[str], None], set[str]]:
    """What appends a text to the file, and the paths of the blocks that were kept of it."""
    done: set[str] = set()
    with replaced(out) as new, new.open("wb") as file:
        file.write(heading)
        for path, block in blocks:
            if path not in done:
                done.add(path)
                file.write(block)
    appended = stack.enter_context(out.open("ab"))

    def append(text: str) -> None:
        appended.write(text.encode("utf-8", "backslashreplace"))
        appended.flush()

    return append, done


def _json_blocks(out: Path, view: View[Any]) -> Iterator[tuple[str, bytes]]:
    """Each answered image's path and line."""
    keys = {"path", *view.record(view.empty)}
    for number, line in enumerate(_whole_lines(out), 1):
        try:
            record = json.loads(line)
            is_ours = record.keys() == keys
        except (ValueError, AttributeError):
            is_ours = False
        if not is_ours:
            raise _foreign(out, f"line {number}")
        if record["error"] is None:
            yield record["path"], line


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Lines with their end: one that was cut short has none."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def _csv_blocks(out: Path, view: View[Any]) -> Iterator[tuple[str, bytes]]:
    """Each answered image's path and rows."""
    if not (out.exists() and out.stat().st_size):
        return
    width = len(view.columns)
    with out.open(newline="", encoding="utf-8", errors="replace") as text:
        rows = csv.reader(text)
        if next(rows, None) != list(view.columns):
            raise _foreign(out, "its columns")
        blocks = itertools.groupby(rows, key=lambda row: row[0] if row else "")
        for path, block in _complete(((path, list(block)) for path, block in blocks), width, out):
            if any(len(row) != width for row in block):
                raise _foreign(out, f"the rows of {path}")
            if not any(row[-1] for row in block):
                yield path, csv_text(block).encode("utf-8")


_Block = tuple[str, list[list[str]]]


def _complete(blocks: Iterable[_Block], width: int, out: Path) -> Iterator[_Block]:
    """All blocks; without the last two where the file ends within a row, whose path may be cut, too."""
    last: deque[_Block] = deque()
    for block in blocks:
        if len(last) == 2:
            yield last.popleft()
        last.append(block)
    with out.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        is_cut = file.read() != b"\n" or (last and len(last[-1][1][-1]) != width)
    yield from () if is_cut else last


# ---- arrays ----

_FACE_ARRAYS = ("paths", "faces", "embeddings", "scores", "boxes", "landmarks")
_FACE_TYPES = (str, np.int64, np.float32, np.float32, np.float32, np.float32)


def _open_arrays(out: Path, view: View[Any], stack: ExitStack) -> _Opened:
    arrays = _Arrays(out, view)
    stack.callback(arrays.save)
    return arrays.add, {path for path, error in arrays.images.items() if not error}


class _Arrays:
    """Vectors with their images: of each face a row of _FACE_ARRAYS, of each image its path and error ("" for none).

    They are in memory, and saved every minute at most, in at most a twentieth of the time.
    """

    def __init__(self, out: Path, view: View[Any]) -> None:
        self.images: dict[str, str] = {}
        self._out, self._view = out, view
        self._rows: dict[str, list[tuple[Any, ...]]] = {}  # by image
        self._save_at_s = time.monotonic() + _SAVE_EVERY_S
        if out.exists() and out.stat().st_size:
            self._read()

    def add(self, path: Path, answer: Any) -> None:
        """An answered image."""
        assert self._view.vectors is not None
        name = portable(path)
        self.images[name] = "" if answer.error is None else str(answer.error)
        self._rows[name] = [(name, number, *vector) for number, vector in enumerate(self._view.vectors(answer))]
        if time.monotonic() > self._save_at_s:
            self.save()

    def save(self) -> None:
        """Write them all, images in order."""
        start_s = time.monotonic()
        names = sorted(self.images)
        rows = [row for name in names for row in self._rows.get(name, ())]
        columns = list(zip(*rows, strict=True)) or [()] * len(_FACE_ARRAYS)
        arrays: Any = {
            name: np.array(part, kind) for name, part, kind in zip(_FACE_ARRAYS, columns, _FACE_TYPES, strict=True)
        }
        arrays["images"], arrays["errors"] = np.array(names, str), np.array([self.images[name] for name in names], str)
        with uninterrupted(), replaced(self._out) as new, new.open("wb") as file:
            np.savez(file, model=np.array(self._view.model), **arrays)
        self._save_at_s = time.monotonic() + max(_SAVE_EVERY_S, 20 * (time.monotonic() - start_s))

    def _read(self) -> None:
        try:
            stored = read_arrays(self._out)
            self.images = dict(zip(stored["images"].tolist(), stored["errors"].tolist(), strict=True))
            for row in zip(*(stored[name] for name in _FACE_ARRAYS), strict=True):
                self._rows.setdefault(str(row[0]), []).append((str(row[0]), *row[1:]))
        except (ValueError, KeyError) as error:
            raise _foreign(self._out, str(error)) from None


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file of vectors. Raises ValueError where it is none."""
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in (*_FACE_ARRAYS, "images", "errors", "model")}
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        raise ValueError("not the arrays of `facenet embed --out`, or cut short") from None


_FORMATS: dict[str, Callable[[Path, View[Any], ExitStack], _Opened]] = {
    ".jsonl": _open_json,
    ".csv": _open_csv,
    ".npz": _open_arrays,
}
