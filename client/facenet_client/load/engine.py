"""Who sends: callers, each with a stream of its own, and the tickets that say when their next message is due."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple, Protocol

import numpy as np

from facenet_client._call import Channel
from facenet_client.aio import AsyncClient
from facenet_client.errors import CallError, RequestRefused, ServerFault, ServerUnavailable
from facenet_client.load.report import Report, Tally
from facenet_client.load.workload import Message, Workload
from facenet_client.stats import ServerStats

_PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a workload is sent, by ``callers`` that have a stream each.

    It ends after ``duration_s`` or ``messages``, whichever comes first; what is under way then is waited for, and
    counts. In a closed loop each caller keeps ``window`` messages under way. With ``rate_per_s`` messages are due at
    that rate, at random times (``poisson``) or evenly, and callers send one at a time: with too few of them messages
    wait for one (``Report.late``). For ``warm_up_s`` all callers send before the clock starts, in a closed loop.
    """

    callers: int = 1
    window: int = 1
    duration_s: float | None = None
    messages: int | None = None
    rate_per_s: float | None = None
    poisson: bool = True
    seed: int = 0
    warm_up_s: float = 1.0

    def __post_init__(self) -> None:
        if self.duration_s is None and self.messages is None:
            raise ValueError("give duration_s or messages: otherwise it never ends")
        if self.callers < 1 or self.window < 1:
            raise ValueError("callers and window are 1 at least")
        if self.rate_per_s is not None and self.window != 1:
            raise ValueError("an open loop has no window: its callers send one message at a time")
        if self.rate_per_s is not None and not 0 < self.rate_per_s < float("inf"):
            raise ValueError(f"rate_per_s is {self.rate_per_s}; it is above 0")


class Progress(NamedTuple):
    """How far a load has come."""

    elapsed_s: float
    messages: int
    items: int
    errors: int


async def run(
    client: AsyncClient, work: Workload, plan: Plan, on_progress: Callable[[Progress], None] | None = None
) -> Report:
    """Send the work as planned; ``on_progress`` is told twice a second.

    What fails is counted. Raises CallError where the server cannot be reached or fails before the clock starts, and
    ValueError where the plan exceeds its limits.
    """
    await _check(client, work, plan)
    messages = cycle(work.messages)
    async with _open_callers(client, work, messages, plan) as callers:
        if plan.warm_up_s > 0:
            warm_up = Tally()
            await _send(callers, _Closed(None, plan.warm_up_s), warm_up)
            if warm_up.failures:
                raise CallError(f"while warming up: {warm_up.first_failure}")
        before = await _server_stats(client)
        tally, started, cpu_started = Tally(), time.perf_counter(), time.process_time()
        async with _telling(tally, started, on_progress):
            await _send(callers, _tickets(plan), tally)
        elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return tally.report(elapsed_s, cpu_s, _between(before, await _server_stats(client)))


class _Tickets(Protocol):
    """When messages are due; None: there are no more."""

    async def next(self) -> float | None: ...


class _Closed:
    """Each message is due when a caller is free."""

    def __init__(self, messages: int | None, duration_s: float | None) -> None:
        self._left = float("inf") if messages is None else messages
        self._end = float("inf") if duration_s is None else time.perf_counter() + duration_s

    async def next(self) -> float | None:
        self._left -= 1
        now = time.perf_counter()
        return now if self._left >= 0 and now < self._end else None


class _Open:
    """Messages are due by the clock. A caller that is free takes the next one, and waits for its time."""

    def __init__(self, plan: Plan) -> None:
        self._due = _due_times(plan, time.perf_counter())

    async def next(self) -> float | None:
        due_s = next(self._due, None)
        if due_s is not None:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        return due_s


def _due_times(plan: Plan, start_s: float) -> Iterator[float]:
    """The first is due one interval after the start."""
    assert plan.rate_per_s is not None
    rng, mean_s = np.random.default_rng(plan.seed), 1 / plan.rate_per_s
    due_s, sent = start_s, 0
    end_s = float("inf") if plan.duration_s is None else start_s + plan.duration_s
    while True:
        due_s += rng.exponential(mean_s) if plan.poisson else mean_s
        if due_s > end_s or sent == plan.messages:
            return
        sent += 1
        yield due_s


def _tickets(plan: Plan) -> _Tickets:
    return _Closed(plan.messages, plan.duration_s) if plan.rate_per_s is None else _Open(plan)


class _Caller:
    """One stream. It writes and reads in turn, which cannot lock up: the server reads as many messages as the window
    holds, whether or not their answers are taken."""

    def __init__(
        self, channel: Channel, work: Workload, messages: Iterator[Message], window: int, timeout_s: float | None
    ) -> None:
        self._address = channel.address
        self._response = work.exchange.response
        self._messages = messages
        self._window = window
        self._timeout_s = timeout_s
        self._call = channel.call(work.exchange.path)
        self._under_way: deque[tuple[float, int]] = deque()  # since when, and how many items

    async def work(self, tickets: _Tickets, tally: Tally) -> None:
        """Send while there are tickets, and take all answers; a failure ends it, and is counted."""
        try:
            for _ in range(self._window):
                await self._send(tickets, tally)
            while self._under_way:
                await self._take(tally)
                await self._send(tickets, tally)
        except CallError as error:
            tally.failed(error, len(self._under_way))
            self._under_way.clear()

    def close(self) -> None:
        """End the stream."""
        self._call.cancel()

    async def _send(self, tickets: _Tickets, tally: Tally) -> None:
        due_s = await tickets.next()
        if due_s is None:
            return
        message = next(self._messages)
        self._under_way.append((due_s, message.items))
        tally.late_s.add(time.perf_counter() - due_s)
        await self._call.write(message.data, self._timeout_s)

    async def _take(self, tally: Tally) -> None:
        if (data := await self._call.read(self._timeout_s)) is None:
            raise ServerFault(f"{self._address}: the server ended the stream with messages unanswered")
        response = self._response.FromString(data)
        if response.draining:
            raise ServerUnavailable(f"{self._address}: the server is shutting down")
        since_s, items = self._under_way[0]
        if len(response.results) != items:
            raise ServerFault(f"{self._address}: {items} items were answered with {len(response.results)}")
        self._under_way.popleft()
        tally.answered(response.results, time.perf_counter() - since_s)


@asynccontextmanager
async def _open_callers(
    client: AsyncClient, work: Workload, messages: Iterator[Message], plan: Plan
) -> AsyncIterator[list[_Caller]]:
    channels = cycle(client.channels())
    callers = [_Caller(next(channels), work, messages, plan.window, client.timeout_s) for _ in range(plan.callers)]
    try:
        yield callers
    finally:
        for caller in callers:
            caller.close()


async def _send(callers: list[_Caller], tickets: _Tickets, tally: Tally) -> None:
    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(caller.work(tickets, tally))


@asynccontextmanager
async def _telling(tally: Tally, started: float, on_progress: Callable[[Progress], None] | None) -> AsyncIterator[None]:
    async def tell(on_progress: Callable[[Progress], None]) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            errors = tally.errors.total() + tally.failures.total()
            on_progress(Progress(time.perf_counter() - started, tally.messages, tally.items, errors))

    if on_progress is None:
        yield
        return
    teller = asyncio.create_task(tell(on_progress))
    try:
        yield
    finally:
        teller.cancel()
        await asyncio.wait({teller})


async def _check(client: AsyncClient, work: Workload, plan: Plan) -> None:
    limits = (await client.server_info()).limits
    per_connection = limits["max_streams_per_connection"] - 1  # one is for asking what the server has done
    streams = len(client.channels()) * per_connection
    if plan.callers > streams:
        raise ValueError(
            f"{plan.callers} callers; the connections hold the streams of {streams}: open more connections"
        )
    for what, needed, limit in (
        ("messages of a stream under way", plan.window, limits["max_messages_in_flight"]),
        ("items of a message", max(message.items for message in work.messages), limits["max_items_per_message"]),
        ("bytes of a message", max(len(message.data) for message in work.messages), limits["max_message_bytes"]),
    ):
        if needed > limit:
            raise ValueError(f"{needed:,} {what}; the server takes {limit:,}")


async def _server_stats(client: AsyncClient) -> ServerStats | None:
    try:
        return await client.server_stats()
    except (RequestRefused, ServerUnavailable):  # an older one does not know the method; one may have gone
        return None


def _between(before: ServerStats | None, after: ServerStats | None) -> ServerStats | None:
    if before is None or after is None:
        return None
    try:
        return after.since(before)
    except ValueError:  # one was restarted meanwhile
        return None
