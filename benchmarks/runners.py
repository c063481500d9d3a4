"""Workers as the benchmark sees them."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import ROOT
from benchmarks.errors import BenchmarkError
from benchmarks.workers.protocol import Hello, Request, Slice

END_S = 10.0  # what a worker has to end by itself
LAST_WORDS = 4000  # bytes of its log that are shown where it failed


class Worker:
    """A module of ``benchmarks.workers`` as a process of its own, loaded and waiting while others run.

    ``python`` is the interpreter of its environment, None for the benchmark's own. ``rooms`` are the project's
    folders that an environment of its own may import.
    """

    def __init__(self, module: str, *arguments: str, python: Path | None = None, rooms: Sequence[str] = ()) -> None:
        self.name = module
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._pipe, theirs = multiprocessing.Pipe()
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if python is not None:
            environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / room) for room in rooms)
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", f"benchmarks.workers.{module}", str(theirs.fileno()), *arguments],
            cwd=ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @cached_property
    def _hello(self) -> Hello:
        hello: Hello = self._receive()
        return hello

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of what it loaded. Waits until it has."""
        return self._hello.versions

    @property
    def functions(self) -> Sequence[str]:
        """What it can run. Waits until it has loaded."""
        return self._hello.functions

    def run(self, function: str, rows: NDArray[np.uint8], seconds: float) -> Slice:
        """One slice of a function."""
        assert function in self.functions
        with suppress(BrokenPipeError):  # it ended: what it said is told below
            self._pipe.send(Request(function, rows, seconds))
        done: Slice = self._receive()
        return done

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (ConnectionResetError, EOFError):
            self._log.seek(0)
            said = self._log.read()[-LAST_WORDS:].decode(errors="replace")
            raise BenchmarkError(f"the worker {self.name} ended:\n{said}") from None
