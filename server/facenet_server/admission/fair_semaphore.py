"""The one queueing mechanism of admission: a semaphore whose units go to callers by start-time fair queueing."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

_MAX_IDLE = 1024  # flows that wait for nothing and are remembered, while others wait


class _Request(NamedTuple):
    cost: tuple[int, ...]
    granted: asyncio.Future[None]


@dataclass(slots=True)
class _Flow:
    """One caller: its requests, first come, first served, the units that it holds, by kind, and the share of a limit by
    which others were served past its head."""

    held: list[int]
    queue: deque[_Request] = field(default_factory=deque)
    passed: float = 0.0


class FairSemaphore:
    """A semaphore of one or two kinds of units, as seats and pixels, which flows (callers) share.

    Goyal, Vin, Cheng, "Start-time Fair Queueing" (1996), in the words of Kubernetes' API Priority and Fairness. In
    virtual time a flow's next request starts where its last one finished, and the flow with the earliest start goes
    first. A request costs the larger share that it takes of a limit. One that costs more than a limit runs alone.

    Where units come back by the server's own progress, the head of the line waits, and so do all behind it. ``passes``
    is for units that come back when callers read or write. A flow may then hold limit / (flows + 1) of each kind. A
    head that does not fit is passed, until others were served one whole limit past it. ``caps`` are what a flow may
    hold at most, of each kind. A flow at its cap is skipped and keeps its turn; a flow that holds nothing may exceed
    its cap once.
    """

    def __init__(self, *limits: int, passes: bool = False, caps: Sequence[int] | None = None) -> None:
        self._limits = limits
        self._passes = passes
        self._caps = limits if caps is None else caps
        self._used = [0] * len(limits)  # of each kind
        self._flows: dict[str, _Flow] = {}  # that hold or wait for something
        self._waiting: dict[str, _Flow] = {}  # those of them that wait
        self._clock = 0.0  # virtual: the start of the request that was granted last
        self._starts: dict[str, float] = {}  # of each flow's next request

    @asynccontextmanager
    async def acquired(self, flow: str, *cost: int) -> AsyncIterator[None]:
        """Hold so many units of each kind."""
        await self.acquire(flow, *cost)
        try:
            yield
        finally:
            self.release(flow, *cost)

    async def acquire(self, name: str, *cost: int) -> None:
        """Wait for so many units of each kind, in the flow's turn. Whoever holds them releases them."""
        if not any(cost):
            return
        flow, request = self._flow(name), _Request(cost, asyncio.get_running_loop().create_future())
        if not flow.queue:  # a head keeps its place
            self._starts[name] = max(self._starts.get(name, 0.0), self._clock)
        flow.queue.append(request)
        self._waiting[name] = flow
        self._grant()
        if request.granted.done():
            return
        try:
            await request.granted
        except asyncio.CancelledError:
            if not request.granted.cancelled():  # it was granted just before
                self._hold(flow, cost, -1)
            self._settle(name)  # it may have been in the way of others
            raise

    def would_wait(self, name: str, *cost: int) -> bool:
        """Whether ``acquire`` would have to wait; true as well where that is not sure."""
        is_behind = name in self._waiting or any(not self._may_be_passed(flow) for flow in self._waiting.values())
        return is_behind or not self.has_room(name, *cost)

    def has_room(self, name: str, *cost: int) -> bool:
        """Whether so much more of the flow's fits beside what is held, whoever waits."""
        flow = self._flow(name)
        has_room = self._is_within_cap(flow, cost) and self._fits(cost)
        self._forget(name)
        return has_room

    def exchange(self, name: str, held: Sequence[int], wanted: Sequence[int]) -> bool:
        """Hold ``wanted`` instead of ``held``, at once, whoever waits. Where it is more and does not fit, neither is
        held, and the answer is False."""
        flow = self._flow(name)
        self._hold(flow, held, -1)
        is_no_more = all(more <= less for more, less in zip(wanted, held, strict=True))
        fits = is_no_more or (self._is_within_cap(flow, wanted) and self._fits(wanted))
        if fits:
            self._hold(flow, wanted, 1)
        self._settle(name)
        return fits

    def release(self, name: str, *cost: int) -> None:
        """Give back so many units of each kind."""
        if any(cost):
            self._hold(self._flows[name], cost, -1)
            self._settle(name)

    def share(self, name: str) -> int:
        """How many units of the first kind the flow may hold in all."""
        self._flow(name)
        share = self._caps_now()[0]
        self._forget(name)
        return share

    @property
    def used(self) -> Sequence[int]:
        """The units held, of each kind."""
        return tuple(self._used)

    def _flow(self, name: str) -> _Flow:
        return self._flows.setdefault(name, _Flow([0] * len(self._limits)))

    def _hold(self, flow: _Flow, cost: Sequence[int], sign: int) -> None:
        for kind, units in enumerate(cost):
            self._used[kind] += sign * units
            flow.held[kind] += sign * units

    def _settle(self, name: str) -> None:
        """A flow has given something up: grant what may be granted, and once more where the flow has left."""
        self._grant()
        if self._forget(name):
            self._grant()

    def _grant(self) -> None:
        while True:
            name, passed = self._next()
            if name is None:
                return
            flow = self._waiting[name]
            request = flow.queue.popleft()
            self._hold(flow, request.cost, 1)
            self._clock = max(self._clock, self._starts[name])
            share = max(units / limit for units, limit in zip(request.cost, self._limits, strict=True))
            self._starts[name] = self._clock + share
            flow.passed = 0.0
            for other in passed:
                other.passed += share
            request.granted.set_result(None)

    def _next(self) -> tuple[str | None, Sequence[_Flow]]:
        """The flow whose head is to be granted now, and those that it passes."""
        for name in [name for name, flow in self._waiting.items() if not self._has_head(flow)]:
            del self._waiting[name]
        caps = self._caps_now()
        able = [name for name, flow in self._waiting.items() if self._is_within_cap(flow, flow.queue[0].cost, caps)]
        passed: list[_Flow] = []
        for name in sorted(able, key=self._starts.__getitem__):
            flow = self._waiting[name]
            if self._fits(flow.queue[0].cost):
                return name, passed
            if not self._may_be_passed(flow):
                break
            passed.append(flow)
        return None, ()

    def _may_be_passed(self, flow: _Flow) -> bool:
        return self._passes and flow.passed < 1

    def _has_head(self, flow: _Flow) -> bool:
        while flow.queue and flow.queue[0].granted.cancelled():
            flow.queue.popleft()
            flow.passed = 0.0
        return bool(flow.queue)

    def _fits(self, cost: Sequence[int]) -> bool:
        kinds = zip(self._used, cost, self._limits, strict=True)
        return all(not used or not units or used + units <= limit for used, units, limit in kinds)

    def _caps_now(self) -> Sequence[int]:
        if not self._passes:
            return self._caps
        n = len(self._flows) + 1  # what callers give back when they like leaves as much for a newcomer
        return [min(cap, limit // n) for cap, limit in zip(self._caps, self._limits, strict=True)]

    def _is_within_cap(self, flow: _Flow, cost: Sequence[int], caps: Sequence[int] | None = None) -> bool:
        """Whether the flow may hold so much beside what it has."""
        if not any(flow.held):
            return True
        kinds = zip(flow.held, cost, caps or self._caps_now(), strict=True)
        return all(held + min(units, cap) <= cap for held, units, cap in kinds)

    def _forget(self, name: str) -> bool:
        """Whether the flow has left: it holds nothing and waits for nothing."""
        flow = self._flows.get(name)  # None: it left with its last units, and its cancelled request comes after
        has_left = flow is not None and not (any(flow.held) or flow.queue)
        if has_left:
            del self._flows[name]
        if not self._waiting:  # nobody is behind anybody
            self._starts.clear()
        elif len(self._starts) > len(self._flows) + _MAX_IDLE:
            self._starts = {other: start for other, start in self._starts.items() if other in self._flows}
        return has_left
