"""Between commands and the terminal: progress, notes and tables. Results go to stdout, all else to stderr."""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from unicodedata import category

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from facenet_client.cli.photos import SUFFIXES, Walk

T = TypeVar("T")

TELL_S = 10.0  # between two lines that say where a run is, without a terminal
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_UNLIMITED = 1 << 16  # columns of a table that no terminal cuts


def set_up_streams() -> None:
    """Let both streams take any file name: what they cannot say is escaped, as JSON does it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end_on_sigterm() -> None:
    """As at Ctrl-C: what was answered is kept."""
    is_heard = signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
    if is_heard and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def image_files(paths: Sequence[Path], walk: Walk) -> list[Path]:
    """The photos that paths to files and folders name, each once. Raises UsageError where there is none."""
    files = list({os.path.abspath(file): file for file in walk.photos(paths)}.values())
    if not files:
        tell_passed_over(walk)
        where = ", ".join(map(shown, paths))
        raise click.UsageError(f"no images at {where} ({' '.join(sorted(SUFFIXES))}, or a file named by itself)")
    return files


def shown(path: object) -> str:
    """A path on one line: characters that do not print, as line ends and bytes that are no text, are escaped."""
    return "".join(
        letter
        if letter.isprintable() or category(letter) == "Zs"
        else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in str(path)
    )


def note(text: str) -> None:
    """A line about the work, apart from its results."""
    click.echo(text, err=True)


def note_of(path: Path, what: object) -> None:
    """A line about one file."""
    note(f"{shown(path)}: {shown(what)}")


def tell_passed_over(*walks: Walk, verbose: bool = False) -> None:
    """What walks passed over, by reason, or by name; folders that they could not read by name always."""
    for folder, reason in (each for walk in walks for each in walk.unreadable):
        note(f"cannot read the folder {shown(folder)}: {reason}")
    passed_over = [each for walk in walks for each in walk.passed_over]
    if verbose:
        for path, reason in passed_over:
            note(f"passed over: {shown(path)} ({reason})")
    if counts := Counter(reason for _, reason in passed_over):
        told = ", ".join(f"{reason} ({count:,})" for reason, count in counts.items())
        note(f"passed over: {told}" + ("" if verbose else "; -v names them"))


class Progress(AbstractContextManager["Progress"]):
    """How far a run is, on stderr: a bar in a terminal, otherwise a line every ten seconds; where it is cut short, how
    many were done. ``total`` is None where nobody knows. ``hidden`` for what shows its progress by its results."""

    def __init__(self, total: int | None, what: str = "images", hidden: bool = False, tell_s: float = TELL_S) -> None:
        self._total, self._what, self._tell_s = total, what, tell_s
        self._done, self._note, self._start_s = 0, "", time.monotonic()
        is_terminal = sys.stderr.isatty()
        is_shown = (total is None or total > 1) and not hidden
        self._is_told = is_shown and not is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True, force_terminal=is_terminal)
        # Results go to stdout by themselves: redirected, they would end up on stderr.
        disabled = not (is_shown and is_terminal)
        self._bar = Bar(*columns, console=console, disable=disabled, transient=True, redirect_stdout=False)
        self._task = self._bar.add_task(what, total=total, note="")
        self._ended = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self._bar.start()
        if self._is_told:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._bar.stop()
        is_unread = isinstance(error, BrokenPipeError)  # as by `| head`, which has what it wants
        if error is not None and (self._total is None or self._total > 1) and not is_unread:
            note(f"cut short: {self._so_far} were done")

    def advance(self, count: int = 1, note: str = "") -> None:
        """So many more are done; with a note on what came of them."""
        self._note = note
        self.to(self._done + count)

    def to(self, done: int) -> None:
        """So many are done."""
        self._done = done
        self._bar.update(self._task, completed=done, note=f"{self._per_s:,.1f}/s {self._note}".rstrip())

    @property
    def _per_s(self) -> float:
        return self._done / max(1e-9, time.monotonic() - self._start_s)

    @property
    def _so_far(self) -> str:
        of_all = "" if self._total is None else f" of {self._total:,}"
        return f"{self._done:,}{of_all} {self._what}"

    def _tell(self) -> None:
        while not self._ended.wait(self._tell_s):
            left = ""
            if self._total is not None and self._done:
                left_s = (self._total - self._done) / self._per_s
                left = f", {timedelta(seconds=round(left_s))} left"
            note(f"{self._so_far}, {self._per_s:,.1f}/s{left}{'; ' if self._note else ''}{self._note}")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Finish what belongs together, as a crop and its line: Ctrl-C and SIGTERM wait for the end of the block, which
    raises KeyboardInterrupt then. Nothing in the block may wait for others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    heard = [
        number for number in _INTERRUPTS if signal.getsignal(number) is not signal.SIG_IGN
    ]  # nohup, or a shell's &
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def show(as_json: bool, table: Any, records: Iterable[dict[str, Any]]) -> None:
    """The table for people, or a record a line for programs."""
    if as_json:
        for record in records:
            click.echo(json.dumps(record))
        return
    is_terminal = sys.stdout.isatty()
    # A pipe has no width: what is read by programs is not to be cut.
    Console(force_terminal=is_terminal, width=None if is_terminal else _UNLIMITED).print(table)
