"""What a server says about its own work: counts that only grow. The difference of two answers is the work between
them."""

from __future__ import annotations  # since() takes and returns its own class

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import nan


@dataclass(frozen=True, slots=True)
class StageStats:
    """One step of the pipeline, or one network. ``runs`` computed ``rows``, in ``compute_ns`` nanoseconds. ``queue_ns``
    is the sum of all rows' waits for their runs."""

    name: str
    runs: int = 0
    rows: int = 0
    queue_ns: int = 0
    compute_ns: int = 0

    @property
    def mean_rows(self) -> float:
        """Mean number of rows per run, which says how full the batches are; NaN if there was no run."""
        return self.rows / self.runs if self.runs else nan

    @property
    def mean_queue_s(self) -> float:
        """Mean seconds that a row waited for its run; NaN if there was no row."""
        return self.queue_ns / self.rows / 1e9 if self.rows else nan

    @property
    def mean_compute_s(self) -> float:
        """Mean seconds that a run took; NaN if there was no run."""
        return self.compute_ns / self.runs / 1e9 if self.runs else nan

    def since(self, earlier: StageStats) -> StageStats:
        """The work after ``earlier``. Raises ValueError if ``earlier`` has higher counts."""
        counts = {name: getattr(self, name) - getattr(earlier, name) for name in _COUNTS}
        if min(counts.values()) < 0:
            raise ValueError(f"{self.name}: the earlier counts are higher: another server, or one that was restarted")
        return replace(self, **counts)

    def plus(self, other: StageStats) -> StageStats:
        """The sum of both."""
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in _COUNTS})


_COUNTS = ("runs", "rows", "queue_ns", "compute_ns")


@dataclass(frozen=True, slots=True)
class LoopLag:
    """How late a server's event loop ran its timers, over about the last minute: percentiles in seconds."""

    p50_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Admission:
    """Counts of accepted and refused items and streams. ``streams``, ``items_in_flight``, ``bytes_in_flight`` and
    ``stalled_streams`` (whose callers read no answers) are values of now. The others are counts since the start:
    accepted = answered + abandoned (their stream ended first) + in flight."""

    streams: int = 0
    items_in_flight: int = 0
    bytes_in_flight: int = 0
    accepted_items: int = 0
    answered_items: int = 0
    abandoned_items: int = 0
    refused_items: int = 0
    refused_streams: int = 0
    stalled_streams: int = 0

    def since(self, earlier: Admission) -> Admission:
        """The work after ``earlier``. Values of now stay as they are."""
        return replace(self, **{name: getattr(self, name) - getattr(earlier, name) for name in _TOTALS})

    def plus(self, other: Admission) -> Admission:
        """The sum of both."""
        return Admission(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Admission)))


_TOTALS = ("accepted_items", "answered_items", "abandoned_items", "refused_items", "refused_streams")


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """A server's worker processes. ``working`` and ``standing_by`` (spares) are values of now. ``ended`` counts workers
    that ended since the start although the server did not end them.

    ``jobs_run_again``: jobs that ran once more because their worker ended. ``jobs_given_up``: jobs that failed because
    two workers crashed with them, three were killed, or they took too long.
    """

    working: int = 0
    standing_by: int = 0
    ended: int = 0
    jobs_run_again: int = 0
    jobs_given_up: int = 0

    def since(self, earlier: WorkerStats) -> WorkerStats:
        """The work after ``earlier``. Values of now stay as they are."""
        return replace(self, **{name: getattr(self, name) - getattr(earlier, name) for name in _OF_WORKERS})

    def plus(self, other: WorkerStats) -> WorkerStats:
        """The sum of both."""
        return WorkerStats(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(WorkerStats)))


_OF_WORKERS = ("ended", "jobs_run_again", "jobs_given_up")


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a server has done in ``uptime_s``. ``resident_bytes`` (0: unknown) and ``loop_lag`` are values of now.
    ``workers`` is all zeros if the server's own process does the work.

    ``later.since(earlier)`` is what the server did between two answers.
    """

    uptime_s: float
    stages: tuple[StageStats, ...]
    resident_bytes: int
    loop_lag: LoopLag
    admission: Admission = Admission()
    workers: WorkerStats = WorkerStats()

    def stage(self, name: str) -> StageStats:
        """The stage of that name; a stage with zero counts if the server has none of that name."""
        return next((stage for stage in self.stages if stage.name == name), StageStats(name))

    def since(self, earlier: ServerStats) -> ServerStats:
        """The work and the time after ``earlier``. Memory and lag stay those of the later answer.

        Raises ValueError where ``earlier`` is no earlier answer of the same server.
        """
        if self.uptime_s < earlier.uptime_s:
            raise ValueError("the server's clock went back: another server, or one that was restarted")
        stages = tuple(stage.since(earlier.stage(stage.name)) for stage in self.stages)
        admission = self.admission.since(earlier.admission)
        workers = self.workers.since(earlier.workers)
        uptime_s = self.uptime_s - earlier.uptime_s
        return replace(self, uptime_s=uptime_s, stages=stages, admission=admission, workers=workers)


def together(servers: Sequence[ServerStats]) -> ServerStats:
    """Several servers as one: the sums of work and memory, the shortest uptime, the worst lags."""
    stages: dict[str, StageStats] = {}
    for stage in (stage for server in servers for stage in server.stages):
        stages[stage.name] = stages[stage.name].plus(stage) if stage.name in stages else stage
    lags = [server.loop_lag for server in servers]
    admission, workers = Admission(), WorkerStats()
    for server in servers:
        admission, workers = admission.plus(server.admission), workers.plus(server.workers)
    return ServerStats(
        uptime_s=min(server.uptime_s for server in servers),
        stages=tuple(stages.values()),
        resident_bytes=sum(server.resident_bytes for server in servers),
        loop_lag=LoopLag(*(max(values) for values in zip(*((x.p50_s, x.p99_s, x.max_s) for x in lags), strict=True))),
        admission=admission,
        workers=workers,
    )
