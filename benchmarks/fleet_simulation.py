"""A run of ``facenet bulk`` on a fleet, simulated shard by shard: its time, its core hours and its bytes.

    python -m benchmarks.fleet_simulation

It prints the tables of docs/scale.md. Two clocks run: seconds, and work, which is seconds of a worker that never waits
for the storage. All workers share the storage alike, so one clock of work serves all: it slows down while they wait.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from heapq import heappop, heappush
from math import ceil, inf, sqrt
from typing import Literal, NamedTuple, TypeAlias

Precision: TypeAlias = Literal["fp32", "int8"]
HOUR_S, DAY_S = 3600.0, 86_400.0
FLEETS = ((1, 16), (1, 64), (10, 64), (50, 64))  # nodes × cores
SHARD_SIZES = (1_000, 10_000, 100_000)  # photos
SEED = 5  # of the tables: one whose nodes die about as often as is to be expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one machine measured. ``photo_time_spread`` is the standard deviation of a photo's time over its mean."""

    photos_per_core_s_fp32: float = 12.5
    photos_per_core_s_int8: float = 13.7
    photo_time_spread: float = 0.5
    bytes_per_photo_read: float = 8.9e3
    bytes_per_face_written: float = 620.0
    faces_per_photo: float = 1.16
    listing_entries_per_s: float = 23e3
    worker_start_s: float = 8.0
    worker_memory_bytes: float = 540e6

    def photos_per_core_s(self, precision: Precision) -> float:
        """What a worker on a core of its own does in a second."""
        return self.photos_per_core_s_fp32 if precision == "fp32" else self.photos_per_core_s_int8

    @property
    def bytes_per_photo_written(self) -> float:
        """Of the part files."""
        return self.faces_per_photo * self.bytes_per_face_written


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The photos of a run, and how many of them are a shard."""

    photos: int = 100_000_000
    shard_photos: int = 10_000
    precision: Precision = "fp32"

    @property
    def n_shards(self) -> int:
        """Each of which becomes a part file."""
        return ceil(self.photos / self.shard_photos)

    def size(self, shard: int) -> int:
        """The photos of a shard: the last one has what is left."""
        return min(self.shard_photos, self.photos - shard * self.shard_photos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Machines with a worker a core. A node dies after ``node_mtbf_s`` in the mean, and another one takes its place
    ``node_away_s`` later. All workers share the storage's bandwidth."""

    nodes: int
    cores_per_node: int
    node_mtbf_s: float = inf
    node_away_s: float = 300.0
    storage_bytes_per_s: float = inf

    @property
    def cores(self) -> int:
        """Of all nodes."""
        return self.nodes * self.cores_per_node


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run took. A core is paid while its node lives. It is useful (at shards that were written, waits for the
    storage included), lost (at shards that died with their node), idle, or at its worker's start. The list is made
    before that: its time is in ``wall_s`` alone."""

    wall_s: float = 0.0
    listing_s: float = 0.0
    paid_core_s: float = 0.0
    useful_core_s: float = 0.0
    lost_core_s: float = 0.0
    idle_core_s: float = 0.0
    start_core_s: float = 0.0
    bytes_read: float = 0.0
    bytes_written: float = 0.0
    photos_done: float = 0
    part_files: float = 0
    deaths: float = 0

    @property
    def network_bytes_per_s(self) -> float:
        """Between storage and workers, in the mean, once the list is made."""
        return (self.bytes_read + self.bytes_written) / (self.wall_s - self.listing_s)


class _Begun(NamedTuple):
    """A shard under way, by both clocks."""

    photos: int
    at_s: float
    at_work_s: float
    ends_work_s: float


@dataclass(slots=True)
class _Run:
    """A run under way. A node has as many workers as cores: each of them starts, is idle, or is at a shard."""

    measured: Measured
    job: Job
    fleet: Fleet
    photo_times: random.Random
    lives: random.Random  # of nodes; apart from photos' times, so that shards of all sizes meet the same deaths
    n_fed: float  # workers that the storage can keep busy
    todo: deque[int]
    n_left: int  # shards that are not written
    starting: list[int]  # workers, by node
    idle: list[int]
    running: list[dict[int, _Begun]]  # by node, then by shard
    finishing: list[tuple[float, int, int]] = field(default_factory=list)  # a heap: the work at the end; shard, node
    events: list[tuple[float, int, "_Event"]] = field(default_factory=list)  # a heap: when, in seconds; node
    now_s: float = 0.0
    work_s: float = 0.0
    n_alive: int = 0  # cores of all nodes, as the next two
    n_starting: int = 0
    n_idle: int = 0
    total: Outcome = field(default_factory=Outcome)


_Event: TypeAlias = Callable[[_Run, int], None]


def simulate(measured: Measured, job: Job, fleet: Fleet, seed: int = 0) -> Outcome:
    """A run; the same for the same seed."""
    run = _Run(
        measured,
        job,
        fleet,
        photo_times=random.Random(f"photos {seed}"),
        lives=random.Random(f"nodes {seed}"),
        n_fed=_workers_fed(measured, job, fleet),
        todo=deque(range(job.n_shards)),
        n_left=job.n_shards,
        starting=[0] * fleet.nodes,
        idle=[0] * fleet.nodes,
        running=[{} for _ in range(fleet.nodes)],
    )
    for node in range(fleet.nodes):
        _join(run, node)
    while run.n_left:
        _step(run)
    listing_s = job.photos / measured.listing_entries_per_s
    return replace(run.total, listing_s=listing_s, wall_s=listing_s + run.now_s)


def _step(run: _Run) -> None:
    """Go on to what is next: a shard is finished, or something happens to a node."""
    pace = _pace(run)
    finish_s = run.now_s + (run.finishing[0][0] - run.work_s) / pace if run.finishing else inf
    if finish_s <= run.events[0][0]:
        _advance(run, finish_s, pace)
        _finish(run, *heappop(run.finishing))
        return
    event_s, node, event = heappop(run.events)
    _advance(run, event_s, pace)
    event(run, node)


def _advance(run: _Run, to_s: float, pace: float) -> None:
    seconds = to_s - run.now_s
    run.total.paid_core_s += run.n_alive * seconds
    run.total.idle_core_s += run.n_idle * seconds
    run.total.start_core_s += run.n_starting * seconds
    run.work_s += pace * seconds
    run.now_s = to_s


def _pace(run: _Run) -> float:
    """Work a second: 1, or less where there are more workers at shards than the storage feeds."""
    n_running = run.n_alive - run.n_starting - run.n_idle
    return 1.0 if n_running <= run.n_fed else run.n_fed / n_running


def _workers_fed(measured: Measured, job: Job, fleet: Fleet) -> float:
    """How many workers the storage can keep busy."""
    per_photo = measured.bytes_per_photo_read + measured.bytes_per_photo_written
    return fleet.storage_bytes_per_s / (per_photo * measured.photos_per_core_s(job.precision))


def _join(run: _Run, node: int) -> None:
    """A node takes its place: its workers start, and the time of its death is drawn."""
    ready_s = run.now_s + run.measured.worker_start_s
    dies_s = run.now_s + run.lives.expovariate(1.0) * run.fleet.node_mtbf_s
    run.starting[node] = run.fleet.cores_per_node
    run.n_starting += run.fleet.cores_per_node
    run.n_alive += run.fleet.cores_per_node
    heappush(run.events, (dies_s, node, _die))
    if ready_s < dies_s:
        heappush(run.events, (ready_s, node, _be_ready))


def _be_ready(run: _Run, node: int) -> None:
    run.idle[node], run.starting[node] = run.starting[node], 0
    run.n_idle += run.idle[node]
    run.n_starting -= run.idle[node]
    _take(run, node)


def _die(run: _Run, node: int) -> None:
    """The shards that the node has under way are lost: others do them again."""
    run.total.deaths += 1
    run.n_alive -= run.fleet.cores_per_node
    run.n_starting -= run.starting[node]
    run.n_idle -= run.idle[node]
    run.starting[node] = run.idle[node] = 0
    for shard, begun in run.running[node].items():
        run.total.lost_core_s += run.now_s - begun.at_s
        photos_read = begun.photos * (run.work_s - begun.at_work_s) / (begun.ends_work_s - begun.at_work_s)
        run.total.bytes_read += photos_read * run.measured.bytes_per_photo_read
        run.todo.append(shard)
    run.running[node].clear()
    heappush(run.events, (run.now_s + run.fleet.node_away_s, node, _join))
    for other in range(run.fleet.nodes):
        _take(run, other)


def _take(run: _Run, node: int) -> None:
    """The idle workers of a node take the next shards, a shard each."""
    while run.idle[node] and run.todo:
        shard = run.todo.popleft()
        photos = run.job.size(shard)
        ends_work_s = run.work_s + _draw_work_s(run, photos)
        run.running[node][shard] = _Begun(photos, run.now_s, run.work_s, ends_work_s)
        heappush(run.finishing, (ends_work_s, shard, node))
        run.idle[node] -= 1
        run.n_idle -= 1


def _draw_work_s(run: _Run, photos: int) -> float:
    """The work of a shard. The sum of so many photos' times is nearly normal, whatever the distribution of one
    photo's time (the central limit theorem), so one draw is enough."""
    mean_s = 1 / run.measured.photos_per_core_s(run.job.precision)
    spread_s = run.measured.photo_time_spread * mean_s
    return max(1e-9, run.photo_times.gauss(photos * mean_s, sqrt(photos) * spread_s))


def _finish(run: _Run, ends_work_s: float, shard: int, node: int) -> None:
    """A shard is written, and its worker takes another one. Nothing, where that worker has died."""
    begun = run.running[node].get(shard)
    if begun is None or begun.ends_work_s != ends_work_s:
        return
    del run.running[node][shard]
    run.total.useful_core_s += run.now_s - begun.at_s
    run.total.bytes_read += begun.photos * run.measured.bytes_per_photo_read
    run.total.bytes_written += begun.photos * run.measured.bytes_per_photo_written
    run.total.photos_done += begun.photos
    run.total.part_files += 1
    run.n_left -= 1
    run.idle[node] += 1
    run.n_idle += 1
    _take(run, node)


def closed_form(measured: Measured, job: Job, fleet: Fleet) -> Outcome:
    """The run as photos / rate: no node dies, all workers end together, each photo takes the mean time."""
    busy = min(fleet.cores, _workers_fed(measured, job, fleet))
    work_s = job.photos / (measured.photos_per_core_s(job.precision) * busy)
    listing_s = job.photos / measured.listing_entries_per_s
    return Outcome(
        wall_s=listing_s + measured.worker_start_s + work_s,
        listing_s=listing_s,
        paid_core_s=fleet.cores * (measured.worker_start_s + work_s),
        useful_core_s=fleet.cores * work_s,
        start_core_s=fleet.cores * measured.worker_start_s,
        bytes_read=job.photos * measured.bytes_per_photo_read,
        bytes_written=job.photos * measured.bytes_per_photo_written,
        photos_done=job.photos,
        part_files=job.n_shards,
    )


def lost_with_a_node_core_s(measured: Measured, job: Job, fleet: Fleet) -> float:
    """What a node loses when it dies: half a shard of each of its workers, in the mean."""
    return fleet.cores_per_node * job.shard_photos / measured.photos_per_core_s(job.precision) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of a table: a run under the name that it has there."""

    name: str
    fleet: Fleet
    job: Job = field(default_factory=Job)
    measured: Measured = field(default_factory=Measured)
    fleet_waits: bool = False  # for the list, and is paid

    def outcome(self) -> Outcome:
        """The run, simulated."""
        outcome = simulate(self.measured, self.job, self.fleet, SEED)
        waits = self.fleet.cores * outcome.listing_s if self.fleet_waits else 0.0
        return replace(outcome, paid_core_s=outcome.paid_core_s + waits, idle_core_s=outcome.idle_core_s + waits)


def fleet_of(nodes: int, cores: int) -> Fleet:
    """One whose nodes die more often than most: each once a day, in the mean."""
    return Fleet(nodes=nodes, cores_per_node=cores, node_mtbf_s=DAY_S)


def usual_cases() -> list[Case]:
    """Fleets of four sizes, in both precisions."""
    jobs = Job(precision="fp32"), Job(precision="int8")
    return [Case(name=job.precision, fleet=fleet_of(*size), job=job) for size in FLEETS for job in jobs]


def what_if_cases() -> list[Case]:
    """What changes with the size of shards, with the storage, and where the fleet waits for the list."""
    some, many = fleet_of(10, 64), fleet_of(50, 64)
    short_lived, narrow = replace(some, node_mtbf_s=DAY_S / 4), replace(many, storage_bytes_per_s=1e9)
    large = Measured(bytes_per_photo_read=150e3)
    name = "a node lives 6 h, shards of {:,}".format
    by_size = [Case(name=name(size), fleet=short_lived, job=Job(shard_photos=size)) for size in SHARD_SIZES]
    return [
        Case(name="no node dies", fleet=replace(some, node_mtbf_s=inf)),
        *by_size,
        Case(name="shards of 2,000", fleet=many, job=Job(shard_photos=2_000)),
        Case(name="the fleet is paid while the list is made", fleet=many, fleet_waits=True),
        Case(name="storage of 1 GB/s", fleet=narrow),
        Case(name="storage of 1 GB/s, photos of 150 kB", fleet=narrow, measured=large),
    ]


COLUMNS = (
    "run", "nodes × cores", "part files", "wall time, h", "core hours", "idle", "nodes that die", "lost", "GB read",
    "GB written", "network, MB/s",
)  # fmt: skip


def row(case: Case) -> tuple[str, ...]:
    """Its cells; in brackets the closed form, and how far the simulation is from it."""
    ours, closed = case.outcome(), closed_form(case.measured, case.job, case.fleet)
    return (
        case.name,
        f"{case.fleet.nodes} × {case.fleet.cores_per_node}",
        _number(ours.part_files),
        _beside(ours.wall_s, closed.wall_s, HOUR_S),
        _beside(ours.paid_core_s, closed.paid_core_s, HOUR_S),
        f"{100 * ours.idle_core_s / ours.paid_core_s:.1f} %",
        _number(ours.deaths),
        f"{100 * ours.lost_core_s / ours.paid_core_s:.2f} %",
        _beside(ours.bytes_read, closed.bytes_read, 1e9),
        _beside(ours.bytes_written, closed.bytes_written, 1e9),
        _beside(ours.network_bytes_per_s, closed.network_bytes_per_s, 1e6),
    )


def as_markdown() -> str:
    """The inputs and both tables, as docs/scale.md has them."""
    inputs = [(f"`{name}`", f"{value:,.12g}") for name, value in asdict(Measured()).items()]
    tables = [_table(COLUMNS, map(row, cases)) for cases in (usual_cases(), what_if_cases())]
    return "\n\n".join([_table(("measured", "value"), inputs), *tables, _sums(Measured(), fleet_of(1, 64))]) + "\n"


def _sums(measured: Measured, node: Fleet) -> str:
    lost = (lost_with_a_node_core_s(measured, Job(shard_photos=size), node) / HOUR_S for size in SHARD_SIZES)
    memory_gb = node.cores_per_node * measured.worker_memory_bytes / 1e9
    return (
        f"With shards of {', '.join(f'{size:,}' for size in SHARD_SIZES)} photos, in fp32, one node of "
        f"{node.cores_per_node} cores\nthat dies each day loses {', '.join(map(_number, lost))} core hours a day. "
        f"Its workers take {memory_gb:.0f} GB."
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows))


def _beside(ours: float, closed: float, unit: float) -> str:
    off = round((ours / closed - 1) * 100, 1) + 0.0  # no −0.0
    return f"{_number(ours / unit)} ({_number(closed / unit)}, {off:+.1f} %)".replace("-", "−")


def _number(value: float) -> str:
    """With three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    print(as_markdown(), end="")  # noqa: T201 (what it is run for)
