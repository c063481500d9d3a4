"""Between commands and the terminal: files found, progress shown, results and notes printed."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from rich.console import Console
from rich.progress import track

from facenet_client import ItemError

T = TypeVar("T")

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class _Result(Protocol):
    @property
    def error(self) -> ItemError | None: ...


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The images meant by paths to files and folders. Raises UsageError where there is none."""
    files = [file for path in paths for file in images_at(path)]
    if not files:
        raise click.UsageError(f"no images there ({', '.join(sorted(SUFFIXES))})")
    return files


def images_at(path: Path) -> list[Path]:
    """A file as it is, whatever its name; of a folder, the files below it that are images by their suffix."""
    if not path.is_dir():
        return [path]
    return [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES]


def progress(results: Iterable[T], total: int) -> Iterator[T]:
    """The results, with a bar on stderr while they come."""
    console = Console(stderr=True)
    hidden = total == 1 or not console.is_terminal
    yield from track(results, "images", total, console=console, disable=hidden, transient=True)


def note(text: str) -> None:
    """A line about the work, apart from its results."""
    click.echo(text, err=True)


def show(as_json: bool, table: Any, records: Iterable[dict[str, Any]]) -> None:
    """The table for people, or a record a line for programs."""
    if not as_json:
        Console().print(table)
        return
    for record in records:
        click.echo(json.dumps(record))


def exit_code(results: Iterable[_Result]) -> None:
    """Exit with 1 where any of the results is an error."""
    if any(result.error is not None for result in results):
        sys.exit(1)
