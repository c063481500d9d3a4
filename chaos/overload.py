"""More than the server can do: what it keeps doing, what it refuses and how soon, what that costs."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
from facenet_proto.v1 import face_pb2 as pb

from chaos.drivers import CALL_S, bidi, channels, hurried, message_of, open_loop
from chaos.ledger import Ledger, Marked
from chaos.process import Growth, Server
from chaos.report import Report
from chaos.stub import LATE, Behaviour

CAPACITY = 50  # items a second: one every 20 ms; the load generator has one core, too
_HALF = 25  # of which ten times is still an easy load for it
BUDGET_MB = 16.8  # 16 MiB of request messages
SHIPPED_BUDGET_MB = 268.4  # 256 MiB
HEADROOM_MB = 64
LIMITS = {"max_items_in_flight": 24, "max_mib_in_flight": 16}
NO_LIMITS = {
    "max_items_in_flight": 10**6,
    "max_items_per_caller": 10**9,
    "max_items_per_stream": 10**9,
    "max_queued_rows": 10**9,
    "max_images_in_flight": 10**6,
    "max_images_per_stream": 10**6,
    "max_mib_in_flight": 10**6,
    "max_streams": 10**6,
    "max_streams_per_connection": 10**6,
}
_WARM_S = 2.0  # of the overload, before anything is counted
_RECOVERY_S = 5.0
_CAPACITY_S = 5.0  # in which it is measured


class _Phases:
    """What callers met before, during and after an overload."""

    def __init__(self, crops: Marked, crops_a_call: int) -> None:
        self._crops_a_call = crops_a_call
        self.calm, self.over, self.after, self.streamed = (Ledger(crops=crops) for _ in range(4))
        self.grown = Growth()
        self.start = self.end = 0.0  # of the counted time
        self.capacity_per_s = self.asked_per_s = self.offered_per_s = self.lag_ms = self.max_lag_ms = 0.0
        self.health_ms: list[float] = []
        self.counts: pb.AdmissionStats = pb.AdmissionStats()
        self.ends = Counter[str]()  # of long streams

    async def load(
        self, opened: Sequence[grpc.aio.Channel], ledger: Ledger, items_per_s: float, seconds: float
    ) -> float:
        """Items by the clock; the rate that was reached."""
        n = self._crops_a_call
        return n * await open_loop(opened, ledger, items_per_s / n, seconds, send=message_of(n))

    async def capacity(self, server: Server, seconds: float) -> float:
        """Items a second that a server does for callers who wait for their answers, over so long."""
        n, found = self._crops_a_call, 0.0
        for share in (0.4, 1.0):  # the networks' first runs are slow
            found = await server.capacity(Ledger(crops=self.calm.crops), share * seconds, 12 // n + 2, message_of(n))
        return found

    def goodput(self, seconds: float) -> float:
        """What was answered within the counted time, calls and streams, as a share of the capacity."""
        answered = sum(ledger.within("answered", self.start, self.end) for ledger in (self.over, self.streamed))
        return answered / seconds / self.capacity_per_s


async def sustained(
    *,
    seconds: float,
    rounds: int = 1,
    protected: bool = True,
    shipped: bool = False,
    models: str = "",
    crops: Marked | None = None,
    crops_a_call: int = 1,
    streams: int = 4,
    calm_s: float = 3.0,
) -> Report:
    """T1 and T31: ten times the capacity, by the clock, and the server's health asked meanwhile; so many times. The
    networks' capacity is measured before and after each, since a machine's speed drifts. Narrow limits bound what is in
    flight, or, with those that are ``shipped``, the calls' own time. Half of the capacity is asked for before, for
    ``calm_s``, whose latencies are the measure, and after. Long ``streams`` beside the overload send a message a second
    each."""
    limits = {} if shipped else LIMITS if protected else NO_LIMITS
    one_row = {} if models else {"max_batch_rows": 1}
    overloads = [_Phases(crops or Marked(), crops_a_call) for _ in range(rounds)]
    behaviour = Behaviour({**limits, **one_row}, models, batch_s=1 / _HALF, lets_hopeless_in=not protected)
    capacity_s = min(seconds, _CAPACITY_S)
    async with Server(behaviour) as server:
        after = await overloads[0].capacity(server, capacity_s) if models else float(_HALF)
        for phases in overloads:
            before = after
            await _overload(server, phases, before, seconds, streams, calm_s)
            after = await phases.capacity(server, capacity_s) if models else before
            phases.capacity_per_s = (before + after) / 2
    return _judged(overloads, seconds, shipped=shipped)


async def _overload(
    server: Server, phases: _Phases, capacity: float, seconds: float, streams: int, calm_s: float
) -> None:
    async with channels(server.address, 8) as opened:
        await phases.load(opened, Ledger(crops=phases.calm.crops), capacity / 2, 1)
        await phases.load(opened, phases.calm, capacity / 2, calm_s)
        async with server.growth() as phases.grown, server.probed() as phases.health_ms:
            phases.start = time.monotonic() + _WARM_S
            phases.end = phases.start + seconds
            phases.asked_per_s = 10 * capacity
            overloading = asyncio.create_task(phases.load(opened, phases.over, 10 * capacity, _WARM_S + seconds))
            over = asyncio.Event()
            streaming = [asyncio.create_task(bidi(opened[n], phases.streamed, n, over, 1)) for n in range(streams)]
            await asyncio.sleep(_WARM_S + seconds)
            over.set()
            lag = (await server.stats()).loop_lag
            phases.lag_ms, phases.max_lag_ms = 1e3 * lag.p99_s, 1e3 * lag.max_s
        await phases.load(opened, phases.after, capacity / 2, _after_s(seconds))
        phases.offered_per_s, phases.ends = await overloading, Counter(await asyncio.gather(*streaming))
        phases.counts = await server.quiet(5)


def _after_s(seconds: float) -> float:
    """How long the load after an overload of so many seconds lasts."""
    return min(_RECOVERY_S + 2, seconds)


def _judged(overloads: Sequence[_Phases], seconds: float, *, shipped: bool) -> Report:
    """Of several overloads the median goodput, the slowest recovery, the worst of everything else."""
    report, last = Report(), overloads[-1]
    calm = _sum([phases.calm for phases in overloads])
    over = _sum([phases.over for phases in overloads])
    after = _sum([phases.after for phases in overloads])
    streamed = _sum([phases.streamed for phases in overloads])
    capacity = float(np.median([phases.capacity_per_s for phases in overloads]))
    goodputs = [phases.goodput(seconds) for phases in overloads]
    calm_s, health_ms = calm.p99_ms("answered") / 1e3, np.concatenate([phases.health_ms for phases in overloads])
    report.note = (
        f"{last.offered_per_s:.0f} crops/s offered, capacity {capacity:.1f}; goodput "
        f"{', '.join(f'{goodput:.2f}' for goodput in goodputs)}; {dict(over.outcomes)}; answered p99 "
        f"{over.p99_ms('answered'):.0f} ms, before {1e3 * calm_s:.0f} ms; {len(health_ms)} health checks; long "
        f"streams {dict(streamed.outcomes)}, {dict(last.ends)}"
    )
    queue_s = CALL_S / 2 if shipped else LIMITS["max_items_in_flight"] / capacity
    most_mb = (SHIPPED_BUDGET_MB if shipped else BUDGET_MB) + HEADROOM_MB
    offered = min(phases.offered_per_s / phases.asked_per_s for phases in overloads)
    report.least("offered, share of ten times the capacity", offered, 0.95)
    report.least("goodput within the load, share of capacity", float(np.median(goodputs)), 0.9)
    told = over.outcomes["REFUSED"] / max(1, over.offered - over.outcomes["answered"])
    report.least("refused with a time to come back, share of what is not answered", told, 1)
    report.most("answered p99, ms", over.p99_ms("answered"), 1.5e3 * (queue_s + calm_s))
    report.most("refusals p99, ms", over.p99_ms("REFUSED"), 25)
    report.most("peak memory over base, MB", max(phases.grown.mb for phases in overloads), most_mb)
    recovery_s = max(phases.after.slow_until(phases.end, 2 * calm_s) for phases in overloads)
    report.most("seconds until latency is as before", recovery_s, min(_RECOVERY_S, _after_s(seconds)))
    report.most("event-loop lag p99, ms", max(phases.lag_ms for phases in overloads), 20)
    report.most("event-loop lag p100, ms", max(phases.max_lag_ms for phases in overloads), 100)
    report.most("health checks p99, ms", float(np.percentile(health_ms, 99)), 50)
    report.most("long streams that broke", sum(phases.ends.total() - phases.ends["stopped"] for phases in overloads), 0)
    ledgers = (over, after, streamed)
    report.most("lost", sum(ledger.lost for ledger in ledgers), 0)
    report.most("doubled", sum(ledger.doubled for ledger in ledgers), 0)
    report.most("wrong", sum(ledger.outcomes["wrong"] for ledger in ledgers), 0)
    at_rest(report, last.counts)
    return report


def _sum(ledgers: Sequence[Ledger]) -> Ledger:
    total = Ledger()
    for ledger in ledgers:
        total.add(ledger)
    return total


async def deadlines(*, seconds: float) -> Report:
    """T3: three times the capacity, each message with a random time of 20 to 200 ms.

    Two servers get it. One admits so much that most of it waits until its time is up. A faster one admits what it can
    do within 40 ms. The rate leaves the callers time to spare: a message that they send late would count as one that
    the server began late.
    """
    report = Report()
    for limits, batch_s in (({}, 0.02), ({"max_items_in_flight": 4}, 0.01)):
        hurry = await _hurry(limits, batch_s, seconds / 2)
        outcomes, counts = hurry.ledger.outcomes, hurry.counts
        report.note += f"{limits or 'default limits'}: {hurry.ran} rows ran, {hurry.late} late, {dict(outcomes)}. "
        name = "few let in" if limits else "many let in"
        late = max(0, hurry.late - 1) / max(1, hurry.ran)
        report.most(f"{name}: rows that began after their time, beyond one batch, share of those that ran", late, 0)
        told = outcomes["answered"] + outcomes["TIMED_OUT"] + outcomes["REFUSED"]
        wasted = 1 - outcomes["answered"] / max(1, hurry.ran)
        report.most(f"{name}: rows that ran for no answer, share", wasted, 0.05)
        report.most(f"{name}: ended otherwise than answered, TIMED_OUT or refused", hurry.ledger.offered - told, 0)
        report.most(f"{name}: wrong or lost", outcomes["wrong"] + hurry.ledger.lost, 0)
        at_rest(report, counts, f"{name}: ")
    return report


class _Hurry(NamedTuple):
    """What callers in a hurry met: rows that ran, and of them those that began after their time."""

    ledger: Ledger
    ran: int
    late: int
    counts: pb.AdmissionStats


async def _hurry(limits: dict[str, int], batch_s: float, seconds: float) -> _Hurry:
    ledger = Ledger(crops=Marked(side=8))
    async with Server(Behaviour({"max_batch_rows": 1, **limits}, batch_s=batch_s, side=8)) as server:
        async with channels(server.address, 8) as opened:
            await open_loop(opened, Ledger(crops=ledger.crops), 50, 1)
            before = rows_run(await server.stats())
            await open_loop(opened, ledger, 3 / batch_s, seconds, timeout_s=0.2, send=hurried)
            ran = rows_run(await server.stats()) - before
            late = sum(LATE in line for line in server.log)
            return _Hurry(ledger, ran, late, await server.quiet(5))


def rows_run(stats: pb.GetServerStatsResponse) -> int:
    """How many a server's embedder ran so far."""
    return sum(stage.rows for stage in stats.stages if stage.name == "embedder")


def at_rest(report: Report, counts: Any, of: str = "") -> None:
    """That the server has nothing left, and that every item that it accepted was answered or abandoned."""
    unaccounted = int(counts.accepted_items - counts.answered_items - counts.abandoned_items)
    report.most(f"{of}streams open afterwards", counts.streams, 0)
    report.most(f"{of}bytes in flight afterwards", counts.bytes_in_flight, 0)
    report.most(f"{of}items in flight afterwards", counts.items_in_flight, 0)
    report.most(f"{of}accepted − answered − abandoned", unaccounted, 0)
