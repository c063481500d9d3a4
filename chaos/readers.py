"""Callers that send more than they take, or take nothing."""

import asyncio
import itertools
import math
import time
from typing import Any

import grpc
import numpy as np
from facenet_server.config import MIB

from chaos.drivers import PATIENT_S, Named, channels, open_loop, read, stream, tokens_of, written
from chaos.ledger import Ledger, Marked
from chaos.overload import CAPACITY, at_rest, rows_run
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour

_A_STREAM_MB = 1.25  # what HTTP/2 lets in, and what belongs to it
_CALM_S = 90.0
_ROOM = {"max_streams_per_connection": 300, "max_streams": 1024}
_SMALL_WINDOWS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
]


async def uploads(
    *,
    seconds: float,
    streams: int = 100,
    crops: tuple[int, ...] = (13,),
    budget_mib: int = 32,
    protected: bool = True,
) -> Report:
    """T4: callers that send without end and read nothing, to a server whose embedder is busy; a good caller beside
    them. ``crops``: of a message, stream by stream in turn; each is 77 kB. ``budget_mib``, the server's, holds the
    largest message of each caller, and one more. Unprotected: with gRPC's own flow control, and every other limit as
    it is."""
    report, beside = Report(), Ledger()
    most = {"max_items_per_message": max(64, *crops), "max_items_per_caller": max(64, *crops)}
    # Streams whose refusals fill their windows would end within a minute.
    limits = {**_ROOM, **most, "max_mib_in_flight": budget_mib, "max_batch_rows": 1, "max_write_stall_s": seconds + 60}
    async with Server(Behaviour(limits, default_flow_control=not protected)) as server:
        # The bad callers' windows are of no matter: they read nothing.
        async with channels(server.address, 1) as good, channels(server.address, 4) as bad:
            await open_loop(good, Ledger(), 5, 1)
            async with server.growth() as grown:
                calls = [stream(bad[n % 4])() for n in range(streams)]
                await server.seconds_until_streams(lambda count: count >= streams, 10)  # while there is room for all
                sizes = itertools.cycle(crops)
                floods = [asyncio.create_task(_flood(call, next(sizes), n)) for n, call in enumerate(calls)]
                await asyncio.sleep(1)
                # Five callers share the server: a fifth of the capacity is this one's.
                rows_before = rows_run(await server.stats())
                await open_loop(good, beside, CAPACITY / 5, seconds)
                stats = await server.stats()
                after, lag = stats.admission, stats.loop_lag
            for flood in floods:
                flood.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            counts = await server.quiet(10)
    report.note = f"{streams} streams of messages of {crops} crops; the good caller {dict(beside.outcomes)}; "
    report.note += f"event-loop lag p50 {1e3 * lag.p50_s:.0f}, p99 {1e3 * lag.p99_s:.0f}, p100 {1e3 * lag.max_s:.0f} ms"
    report.least("streams open at the end of it", after.streams, streams)
    rows = rows_run(stats) - rows_before
    report.least("crops embedded meanwhile, share of the capacity", rows / seconds / CAPACITY, 0.9)
    report.most("peak memory over base, MB", grown.mb, _A_STREAM_MB * streams + budget_mib * MIB / 1e6)
    report.least("the good caller's share of its fair share", beside.outcomes["answered"] / max(1, beside.offered), 0.8)
    report.most("the good caller's calls that broke, but for their deadlines", beside.broken_before_time, 0)
    report.most("wrong", beside.outcomes["wrong"], 0)
    at_rest(report, counts)
    return report


async def _flood(call: Any, crops: int, salt: int) -> None:
    """Write messages as fast as the connection takes them, and read no answer. Each makes its message first, so that
    they begin over some seconds: reads of so many large messages at once cost what ``max_streams`` and
    ``max_message_mib`` allow."""
    marked = Marked()
    data = marked.message(*(marked.crop(number, salt) for number in range(crops)))
    try:
        while await written(call, data):
            pass
    finally:
        call.cancel()


_FILLING_S = 3.0  # in which slow readers' messages fill their windows
_GOOD_PER_S = 50  # calls of the good caller beside them: a p99 needs hundreds


class _Slow:
    """What callers met who take one answer a second."""

    def __init__(self) -> None:
        self.right = self.wrong = self.ended = 0

    async def read(self, channel: grpc.aio.Channel, crops: Marked, salt: int, over: asyncio.Event) -> None:
        """Send as fast as the connection takes it, and take an answer a second."""
        call = stream(channel)()
        writing = asyncio.create_task(_write_all(call, crops, salt))
        for number in itertools.count():
            if over.is_set():
                break
            response = await read(call)
            if response is grpc.aio.EOF:
                self.ended += 1
                break
            vector = np.frombuffer(response.results[0].embedding.vector, "<f4")
            right = response.id == number and crops.is_right(crops.crop(number, salt), vector)
            self.right += right
            self.wrong += not right
            await asyncio.sleep(1)
        writing.cancel()
        call.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _write_all(call: Any, crops: Marked, salt: int) -> None:
    for number in itertools.count():
        if not await written(call, crops.message(crops.crop(number, salt), number=number)):
            return


async def slow_readers(*, seconds: float, stopped: int = 200, slow: int = 50, stall_s: float = 4.0) -> Report:
    """T5: callers that take no answers, and callers that take one a second, all sending as fast as they can.

    Beside them is a good caller. Its latency counts from when the others have filled the buffers on the way: two
    answers of 32 kB to each, 1 MiB of messages from each. Before the others begin, as many
    answers a second go to callers who take them.
    """
    crops, readers, over = Marked(side=80), _Slow(), asyncio.Event()
    calm, beside = Ledger(crops=crops), Ledger(crops=crops)
    # A quarter of the bytes holds four messages of each stalled stream.
    limits = {**_ROOM, "max_write_stall_s": stall_s, "max_mib_in_flight": 64, "max_batch_rows": 8}
    async with Server(Behaviour(limits, batch_s=0.005, side=crops.side, dimension=8192)) as server:
        async with channels(server.address, 1) as good, channels(server.address, 2, _SMALL_WINDOWS) as bad:
            await open_loop(good, Ledger(crops=crops), _GOOD_PER_S, 1)
            calm_s = min(seconds - _FILLING_S, _CALM_S)  # a p99 is compared with one of as many calls, or of many
            others = open_loop(bad[:1], Ledger(crops=crops), slow, calm_s)
            await asyncio.gather(open_loop(good, calm, _GOOD_PER_S, calm_s), others)
            async with server.growth() as grown:
                reading = [asyncio.create_task(readers.read(bad[0], crops, n, over)) for n in range(slow)]
                stalled = [stream(bad[1])() for _ in range(stopped)]
                start = time.monotonic()
                writing = [asyncio.create_task(_write_all(call, crops, 10**6 + n)) for n, call in enumerate(stalled)]
                goodly = asyncio.create_task(open_loop(good, beside, _GOOD_PER_S, seconds, PATIENT_S))
                ends_s = await _ends(server, start, stopped, slow, stall_s + 10)
                await goodly
            over.set()
            due = slow * (time.monotonic() - start)
            for call in stalled:
                call.cancel()
            await asyncio.gather(*writing, *reading, return_exceptions=True)
            counts = await server.quiet(10)
    report = _on_readers(readers, due, ends_s, stall_s)
    report.note = (
        f"{stopped} streams that take nothing, timeout {stall_s:g} s; {slow} slow ones; the good caller "
        f"{dict(beside.outcomes)}, p99 {beside.p99_ms('answered'):.0f} ms with the seconds in which all begin, "
        f"{beside.p99_ms('answered', start + _FILLING_S):.0f} ms without, {calm.p99_ms('answered'):.0f} ms before"
    )
    slowed = beside.p99_ms("answered", start + _FILLING_S) / calm.p99_ms("answered")
    report.most("the good caller's p99, over that without the others", slowed, 1.5)
    report.most("peak memory over base, MB", grown.mb, _A_STREAM_MB * stopped)
    report.least("the good caller's share of its fair share", beside.outcomes["answered"] / max(1, beside.offered), 0.8)
    report.most("the good caller's calls that broke", beside.broken_calls, 0)
    report.most("wrong", beside.outcomes["wrong"], 0)
    at_rest(report, counts)
    return report


def _on_readers(readers: _Slow, due: float, ends_s: tuple[float, float], stall_s: float) -> Report:
    """What becomes of those who take nothing, and of those who take one of the ``due`` answers a second."""
    report = Report()
    report.least("seconds until the first stalled stream's work is given up", ends_s[0], stall_s - 0.5)
    report.most("seconds until the last stalled stream's work is given up", ends_s[1], stall_s + 3)
    report.least("slow streams' answers, share of one a second", readers.right / due, 0.5)
    report.most("slow streams that were ended", readers.ended, 0)
    report.most("slow streams' answers wrong or out of order", readers.wrong, 0)
    return report


async def _ends(server: Server, start: float, stopped: int, others: int, within_s: float) -> tuple[float, float]:
    """Seconds until the first, and until the last, of the stopped streams gave its work and its room up.

    The first has when the server counts one stream as stalled. The last has when only the others are left that are not
    stalled. One more stream is the good caller's, now and then.
    """
    most, first_s = 0, 0.0
    while (now_s := time.monotonic() - start) < within_s:
        admission = (await server.stats()).admission
        streams = admission.streams - admission.stalled_streams
        most = max(most, streams)
        if not first_s and admission.stalled_streams:
            first_s = now_s
        if most >= stopped and streams <= others + 1:
            return first_s, now_s
        await asyncio.sleep(0.1)
    return first_s, math.inf


async def fairness(*, seconds: float, connections: int = 1, named: bool = False) -> Report:
    """T30: one caller, over so many connections, offers twenty times its share, nine 0.9 of theirs, and are to get 0.8.
    ``named``: callers are the subjects of their tokens; else, so near, each connection is one."""
    report, share = Report(), CAPACITY / 10
    limits = {"max_batch_rows": 1, "max_items_in_flight": 60, "max_items_per_caller": 20, "max_images_in_flight": 8}
    subjects = [*(f"fair-{number}" for number in range(9)), *(connections * ["greedy"])]
    with tokens_of(subjects) as tokens:
        behaviour = Behaviour(limits | ({"tokens": tokens} if named else {}))
        async with Server(behaviour) as server, channels(server.address, len(subjects)) as opened:
            callers = [Named(each, subject) for each, subject in zip(opened, subjects, strict=True)]
            nine, greedy = [[each] for each in callers[:9]], callers[9:]
            baseline = [Ledger() for _ in nine]
            await asyncio.gather(
                *(open_loop(c, each, share * 0.9, seconds) for c, each in zip(nine, baseline, strict=True))
            )
            hog, fair = Ledger(), [Ledger() for _ in nine]
            await asyncio.gather(
                open_loop(greedy, hog, 20 * share, seconds),
                *(open_loop(c, each, share * 0.9, seconds, PATIENT_S) for c, each in zip(nine, fair, strict=True)),
            )
    got = [each.outcomes["answered"] / (share * seconds) for each in fair]
    report.note = f"the hog {dict(hog.outcomes)}; fair ones asked for 0.9, and got {min(got):.2f} to {max(got):.2f}"
    report.least("the worst-off fair caller's share", min(got), 0.8)
    p99 = [max(each.p99_ms("answered") for each in ledgers) for ledgers in (fair, baseline)]
    report.most("fair callers' p99, over that without the greedy one", p99[0] / p99[1], 2)
    report.most("fair callers' calls that broke", sum(each.broken_calls for each in fair), 0)
    report.most("the greedy one's that broke, but for their deadlines", hog.broken_before_time, 0)
    report.most("wrong", sum(each.outcomes["wrong"] for each in (hog, *fair)), 0)
    return report
