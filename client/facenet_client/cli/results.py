"""Where the results of a run go, answer by answer: to stdout, or to a file that a later run continues."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

from facenet_client.cli import console, options, result_files
from facenet_client.cli.files import portable
from facenet_client.cli.views import Answer, View, csv_rows, csv_text, json_line

T = TypeVar("T", bound=Answer)
_MAX_PATH_COLUMNS = 60


@dataclass(frozen=True, slots=True)
class Results(Generic[T]):
    """Open results: ``write`` takes each answer of the ``missing`` images. ``n_before`` others have one in ``out``."""

    write: Callable[[Path, T], None]
    missing: Sequence[Path]
    n_before: int = 0
    out: Path | None = None

    def progress(self) -> console.Progress:
        """Of the missing images. Results that scroll through a terminal are progress by themselves."""
        return console.Progress(len(self.missing), hidden=self.out is None and sys.stdout.isatty())


@dataclass(slots=True)
class Tally:
    """What came of a run's images."""

    images: int = 0
    faces: int = 0
    without_face: int = 0
    failed: int = 0

    def add(self, answer: Answer, n_faces: int) -> None:
        """Count an image."""
        self.images += 1
        self.faces += n_faces
        self.failed += answer.error is not None
        self.without_face += answer.error is None and not n_faces

    def tell(self, results: Results[Any]) -> None:
        """Sum up on stderr, where there is more than one result."""
        if self.images > 1 or results.out is not None:
            before = f"; {results.n_before:,} were in {results.out} before" if results.n_before else ""
            console.note(
                f"{self.images:,} images: {self.faces:,} faces, {self.without_face:,} images without a face, "
                f"{self.failed:,} failed{before}"
            )


@contextmanager
def opened(
    files: Sequence[Path],
    view: View[T],
    made_with: Mapping[str, object],
    *,
    as_json: bool,
    as_csv: bool,
    out: Path | None,
) -> Iterator[Results[T]]:
    """Results on stdout, or in the file ``out``, which is continued if it is there. ``made_with`` is all that shapes
    the answers.

    Raises UsageError where the file holds other results, or its suffix names no format.
    """
    if out is None:
        yield Results(_on_stdout(view, files, as_json, as_csv), files)
        return
    if as_json or as_csv:
        raise click.UsageError("the suffix of --out says the format: leave out --json and --csv")
    here = {"folder": os.getcwd()} if any(not file.is_absolute() for file in files) else {}
    with result_files.opened(out, view, {**made_with, **here}) as (write, done):
        answered = set(map(os.path.abspath, done))
        missing = [file for file in files if os.path.abspath(portable(file)) not in answered]
        yield Results(_telling_errors(write), missing, len(files) - len(missing), out)


def _on_stdout(view: View[T], files: Sequence[Path], as_json: bool, as_csv: bool) -> Callable[[Path, T], None]:
    options.check_form(as_json, as_csv)
    if as_json:
        return _telling_errors(lambda path, answer: click.echo(json_line(view, path, answer), nl=False))
    if as_csv:
        click.echo(csv_text([view.columns]), nl=False)
        return _telling_errors(lambda path, answer: click.echo(csv_rows(view, path, answer), nl=False))
    return _as_lines(view, files)


def _as_lines(view: View[T], files: Sequence[Path]) -> Callable[[Path, T], None]:
    width = min(_MAX_PATH_COLUMNS, max((len(console.shown(file)) for file in files), default=0))
    click.echo(f"{'image':{width}}  {view.heading}")

    def write(path: Path, answer: T) -> None:
        for line in view.lines(answer):
            click.echo(f"{console.shown(path):{width}}  {line}")

    return write


def _telling_errors(write: Callable[[Path, T], None]) -> Callable[[Path, T], None]:
    """The same. What failed is told on stderr, too: people do not read the results."""

    def writing(path: Path, answer: T) -> None:
        write(path, answer)
        if answer.error is not None:
            console.note_of(path, answer.error)

    return writing
