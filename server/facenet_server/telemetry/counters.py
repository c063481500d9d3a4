"""What the server counts of its own work: numbers, never what they are of."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

_OVER_S = 60.0  # of the event loop's lag


@dataclass(slots=True)
class Stage:
    """One stage's work so far: ``runs`` of ``rows`` that waited ``queue_ns``, each row's wait counted, and took
    ``compute_ns``."""

    name: str
    runs: int = 0
    rows: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    under_way: int = 0
    ended: int = 0

    def begin(self) -> None:
        """A run is asked for."""
        self.under_way += 1

    def end(self) -> None:
        """A run has ended, in whatever way."""
        self.under_way -= 1
        self.ended += 1

    def give_up(self) -> None:
        """A run will never begin, which is no progress."""
        self.under_way -= 1

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around each run, however it ends: ``under_way`` are those that have not."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def add(self, *, rows: int, queue_ns: int, compute_ns: int) -> None:
        """Count one run. Called on the event loop only."""
        self.runs += 1
        self.rows += rows
        self.queue_ns += queue_ns
        self.compute_ns += compute_ns


class Lag(NamedTuple):
    """Percentiles of how late a timer was, seconds."""

    p50_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0


class LoopLag:
    """How late the running event loop comes to a timer of ``sample_s``, over about the last minute."""

    def __init__(self, sample_s: float = 0.05) -> None:
        self._sample_s = sample_s
        self._late_s: deque[float] = deque(maxlen=round(_OVER_S / sample_s))
        self._sampler: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sampler = asyncio.create_task(self._sample())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler is not None:
            self._sampler.cancel()
            await asyncio.wait({self._sampler})

    def now(self) -> Lag:
        """The percentiles; zeros before the first sample."""
        if not self._late_s:
            return Lag()
        return Lag(*(float(value) for value in np.percentile(self._late_s, (50, 99, 100))))

    async def _sample(self) -> None:
        while True:
            due = time.perf_counter() + self._sample_s
            await asyncio.sleep(self._sample_s)
            self._late_s.append(max(0.0, time.perf_counter() - due))


@dataclass(slots=True)
class WorkerCounts:
    """Worker processes that work, and stand by, now, and those that ended unasked.

    ``jobs_run_again``: jobs that ran once more because their worker ended. ``jobs_given_up``: jobs with which two
    workers ended, or which took too long.
    """

    working: int = 0
    standing_by: int = 0
    ended: int = 0
    jobs_run_again: int = 0
    jobs_given_up: int = 0


class Stats:
    """The stages of one server, by name, in the order in which they were first asked for."""

    def __init__(self, loop_lag: LoopLag | None = None) -> None:
        self.started = time.monotonic()
        self.loop_lag = loop_lag or LoopLag()
        self._stages: dict[str, Stage] = {}
        self.workers: Callable[[], WorkerCounts | None] = lambda: None  # where there are worker processes, theirs
        self.worker_pids: Callable[[], Sequence[int]] = lambda: ()

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return self._stages.setdefault(name, Stage(name))

    def __iter__(self) -> Iterator[Stage]:
        return iter(self._stages.values())

    def drain(self) -> list[tuple[str, int, int, int]]:
        """The name, runs, rows and compute time (ns) of each stage since the last call, which are counted from 0
        again."""
        drained = [(stage.name, stage.runs, stage.rows, stage.compute_ns) for stage in self if stage.runs]
        for stage in self:
            stage.runs = stage.rows = stage.queue_ns = stage.compute_ns = 0
        return drained

    def add(self, drained: Iterable[tuple[str, int, int, int]]) -> None:
        """Count what other stats have drained."""
        for name, runs, rows, compute_ns in drained:
            stage = self.stage(name)
            stage.runs += runs
            stage.rows += rows
            stage.compute_ns += compute_ns


def resident_bytes(pid: int | str = "self") -> int:
    """The memory that a process holds, this one unless another is named; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    return pages * _page_bytes()


def _page_bytes() -> int:
    import resource  # not on every system, but where /proc is

    return resource.getpagesize()
