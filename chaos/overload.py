"""More than the server can do: what it keeps doing, what it refuses and how soon, what that costs."""

import asyncio

from chaos.drivers import channels, open_loop, upload_for_ever
from chaos.ledger import Ledger
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour

CAPACITY = 50  # items a second: one every 20 ms; the load generator has one core, too
BUDGET_MB = 16.8  # 16 MiB of request messages
HEADROOM_MB = 64
_LIMITS = {"max_batch_rows": 1, "max_items_in_flight": 24, "max_mib_in_flight": 16}
_NO_LIMITS = {
    "max_batch_rows": 1,
    "max_items_in_flight": 10**9,
    "max_items_per_caller": 10**9,
    "max_items_per_stream": 10**9,
    "max_queued_rows": 10**9,
    "max_images_in_flight": 10**6,
    "max_images_per_stream": 10**6,
    "max_mib_in_flight": 10**6,
    "max_streams": 10**6,
    "max_streams_per_connection": 10**6,
}


async def sustained(*, seconds: float, protected: bool = True) -> Report:
    """T1: ten times the capacity, one crop a call, by the clock."""
    report = Report()
    async with Server(Behaviour({**(_LIMITS if protected else _NO_LIMITS)})) as server:
        async with channels(server.address, 8) as opened:
            await open_loop(opened, Ledger(), CAPACITY / 2, 2)
            calm = Ledger()
            await open_loop(opened, calm, CAPACITY / 2, 3)
            over, after = Ledger(), Ledger()
            async with server.growth() as grown:
                offered = await open_loop(opened, over, 10 * CAPACITY, seconds)
            await asyncio.sleep(2)
            await open_loop(opened, after, CAPACITY / 2, 3)
            lag_ms = 1e3 * (await server.stats()).loop_lag.p99_s
            counts = await server.quiet(5)
    outcomes = over.outcomes
    not_answered = max(1, over.offered - outcomes["answered"])
    refused_there = counts.refused_streams + counts.refused_items
    refused = sum(over.outcomes[name] for name in ("REFUSED", "OVERLOADED"))
    report.note = f"{offered:.0f} calls/s offered, capacity {CAPACITY}; {dict(outcomes)}"
    report.least("goodput, share of capacity", outcomes["answered"] / seconds / CAPACITY, 0.9)
    report.most("refusals p99, ms", max(over.p99_ms("REFUSED"), over.p99_ms("OVERLOADED")), 25)
    # grpc.aio tells a caller whose write fails, because the refusal came first, INTERNAL: the server knows better.
    report.least("refused, by the server's count, share of what is not answered", refused_there / not_answered, 0.999)
    report.least("refused, by the callers' count", refused / not_answered, 0.97)
    report.most("peak memory over base, MB", grown.mb, BUDGET_MB + HEADROOM_MB)
    report.most("lost", over.lost, 0)
    report.most("wrong", outcomes["wrong"], 0)
    report.most("p99 two seconds after, over before", after.p99_ms("answered") / calm.p99_ms("answered"), 2)
    report.most("event-loop lag p99, ms", lag_ms, 20)
    report.most("items in flight afterwards", counts.items_in_flight, 0)
    report.most("accepted − answered − abandoned", _difference(counts), 0)
    return report


async def uploads(*, seconds: float, streams: int = 100, protected: bool = True) -> Report:
    """T4: callers that send without end and read nothing, to a server whose embedder is busy; a good caller beside
    them."""
    report = Report()
    limits = {
        "max_mib_in_flight": 16,
        "max_streams_per_connection": 200,
        "max_batch_rows": 1,
        "max_items_per_caller": 64,
    }
    if not protected:
        limits = _NO_LIMITS | {"max_messages_in_flight": 10**6}
    async with Server(Behaviour(limits, default_flow_control=not protected)) as server:
        async with channels(server.address, 1) as good, channels(server.address, 4) as bad:
            beside = Ledger()
            await open_loop(good, Ledger(), 5, 2)
            async with server.growth() as grown:
                floods = [asyncio.create_task(upload_for_ever(bad[n % 4], 13, n)) for n in range(streams)]
                await asyncio.sleep(1)
                # Five callers share the server: a fifth of the capacity is this one's.
                await open_loop(good, beside, CAPACITY / 5, seconds)
            for flood in floods:
                flood.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            counts = await server.quiet(10)
    report.note = f"{streams} streams of 1 MB messages; the good caller {dict(beside.outcomes)}"
    report.most("peak memory over base, MB", grown.mb, 1.25 * streams + BUDGET_MB + HEADROOM_MB)
    report.least("the good caller's share of its fair share", beside.outcomes["answered"] / max(1, beside.offered), 0.8)
    report.most("wrong", beside.outcomes["wrong"], 0)
    report.most("items in flight afterwards", counts.items_in_flight, 0)
    report.most("streams open afterwards", counts.streams, 0)
    return report


async def fairness(*, seconds: float) -> Report:
    """T30: one caller offers twenty times its share, nine theirs."""
    report, share = Report(), CAPACITY / 10
    limits = {"max_batch_rows": 1, "max_items_in_flight": 60, "max_items_per_caller": 20, "max_images_in_flight": 8}
    async with Server(Behaviour(limits)) as server, channels(server.address, 10) as opened:
        baseline = [Ledger() for _ in range(9)]
        await asyncio.gather(*(open_loop([c], each, share * 0.9, seconds / 2) for c, each in zip(opened, baseline)))  # noqa: B905
        hog, fair = Ledger(), [Ledger() for _ in range(9)]
        await asyncio.gather(
            open_loop(opened[9:], hog, 20 * share, seconds),
            *(open_loop([c], each, share * 0.9, seconds) for c, each in zip(opened, fair)),  # noqa: B905
        )
    got = [each.outcomes["answered"] / max(1, each.offered) for each in fair]
    report.note = f"the hog {dict(hog.outcomes)}; fair ones got {min(got):.2f} to {max(got):.2f} of what they asked"
    report.least("the worst-off fair caller's share", min(got), 0.8)
    p99 = max(each.p99_ms("answered") for each in fair), max(each.p99_ms("answered") for each in baseline)
    report.most("their p99, ms", p99[0], max(2 * p99[1], 250))
    report.most("wrong", sum(each.outcomes["wrong"] for each in (hog, *fair)), 0)
    return report


def _difference(counts: object) -> int:
    return int(counts.accepted_items - counts.answered_items - counts.abandoned_items)  # type: ignore[attr-defined]  # generated
