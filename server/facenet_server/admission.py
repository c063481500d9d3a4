"""Who is let in: counts of what callers have with the server, and the limits that keep them bounded.

A message's bytes count from the moment it was read, its items from the moment they are accepted, both until the answer
is written. A new stream is refused where there is no room for anything of it, or its caller has its share of streams. A
running one is not read while there is none; a message whose bytes do not fit is refused, one whose items do not waits,
as its stream does, in turn with those of other callers. Pure counting on one event loop: no locks.
"""

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sized
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

_RATE_OVER_S = 1.0  # the answering rate is that of about the last second
_MIN_RETRY_S, _MAX_RETRY_S = 0.02, 5.0
_FIRST_BYTES = 64 * 1024  # what a stream's first message is taken to have
_EXPECTED_S = 0.2  # a read that takes longer is an idle stream's


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits: items of a stream, of a caller, of all; bytes of the messages that hold them; streams."""

    items_per_stream: int
    items_per_caller: int
    items: int
    n_bytes: int
    streams: int


@dataclass(slots=True)
class Counts:
    """What was let in and what came of it; at any time accepted = answered + abandoned + in flight."""

    streams: int = 0
    items_in_flight: int = 0
    bytes_in_flight: int = 0
    accepted_items: int = 0
    answered_items: int = 0
    abandoned_items: int = 0
    refused_items: int = 0
    refused_streams: int = 0


@dataclass(slots=True)
class _Share:
    """What one caller has in flight."""

    items: int = 0
    n_bytes: int = 0


class Refused(Exception):
    """There is no room for a stream; there may be after ``retry_after_s``."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the server has no room now")
        self.retry_after_s = retry_after_s


class Admission:
    """The door of one server."""

    def __init__(self, capacity: Capacity, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = Counts()
        self._capacity = capacity
        self._clock = clock
        self._of_caller: defaultdict[str, _Share] = defaultdict(_Share)
        self._streams_of = Counter[str]()
        self._expected_bytes = 0  # of reads that have just begun
        self._waiting: dict[str, deque[_Turn]] = {}  # callers in turn
        self._rate_per_s, self._rate_at = 0.0, clock()

    def enter(self, caller: str) -> "Visit":
        """A new stream of the caller's, to be entered as a context. Raises Refused where there is no room."""
        visit = Visit(self, caller)
        if not self._has_stream(caller) or not visit.has_room():
            self.counts.refused_streams += 1
            raise Refused(self.retry_after_s())
        return visit

    def retry_after_s(self) -> float:
        """About when what is in flight now will have been answered."""
        rate = self._rate_now()
        wait_s = self.counts.items_in_flight / rate if rate > 0 else _MAX_RETRY_S
        return min(max(wait_s, _MIN_RETRY_S), _MAX_RETRY_S)

    def _fits(self, visit: "Visit", n_items: int) -> bool:
        """Within every limit; what is larger than a whole limit fits where it is alone."""
        capacity, mine = self._capacity, self._of_caller.get(visit.caller, _Share())
        # What is held has its bytes, however small its caller's share of them has become since.
        return (bool(visit.held_bytes) or self._has_bytes(visit.caller, 1 + self._expected_bytes)) and all(
            not used or used + n_items <= limit
            for used, limit in (
                (visit.items, capacity.items_per_stream),
                (mine.items, min(capacity.items_per_caller, _share(capacity.items, self._of_caller))),
                (self.counts.items_in_flight, capacity.items),
            )
        )

    def _has_stream(self, caller: str) -> bool:
        """Whether there is room for another stream of the caller's: in all, and beside as many of a newcomer's."""
        mine, limit = self._streams_of[caller], self._capacity.streams
        return self.counts.streams < limit and (not mine or mine < _share(limit, self._streams_of))

    def _has_bytes(self, caller: str, n_bytes: int) -> bool:
        """Whether there is room for so many bytes more."""
        limit, used = self._capacity.n_bytes, self.counts.bytes_in_flight
        mine = self._of_caller.get(caller, _Share()).n_bytes
        return (not used or used + n_bytes <= limit) and (not mine or mine + n_bytes <= _share(limit, self._of_caller))

    def _change(self, visit: "Visit", n_items: int, n_bytes: int) -> None:
        visit.items += n_items
        visit.n_bytes += n_bytes
        self.counts.items_in_flight += n_items
        self.counts.bytes_in_flight += n_bytes
        caller = self._of_caller[visit.caller]
        caller.items += n_items
        caller.n_bytes += n_bytes
        if not caller.n_bytes:  # callers count as such while they have something here
            del self._of_caller[visit.caller]

    def _wake(self) -> None:
        """Let streams that wait go on, callers in turn, as far as there is room for what they have."""
        room = self._capacity.items - self.counts.items_in_flight
        expected, woken = self._expected_bytes, True
        while room > 0 and woken:
            woken = False
            for caller in list(self._waiting):
                n_items = self._wake_one(caller)
                woken |= n_items > 0
                room -= n_items
                if room <= 0:
                    break
        self._expected_bytes = expected  # from now on each counts its own

    def _wake_one(self, caller: str) -> int:
        """The caller's stream that waits longest, if there is room for it; the caller's others go behind other
        callers'. How many items it has."""
        queue = self._waiting.pop(caller)
        woken = 0
        if turn := self._first_that_fits(queue):
            queue.remove(turn)
            turn.comes.set_result(None)
            woken = turn.n_items
            self._expected_bytes += 0 if turn.visit.held_bytes else turn.visit.usual_bytes
        if queue:
            self._waiting[caller] = queue
        return woken

    def _first_that_fits(self, queue: "deque[_Turn]") -> "_Turn | None":
        """Who waits to be read may be passed: the bytes that it waits for may be those of messages held behind it."""
        for turn in queue:
            if turn.comes.done():  # it is about to be forgotten
                continue
            if self._fits(turn.visit, turn.n_items):
                return turn
            if turn.visit.held_bytes:
                break
        return None

    def _forget(self, turn: "_Turn") -> None:
        """It waits no longer."""
        queue = self._waiting.get(turn.visit.caller, deque())
        if turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[turn.visit.caller]

    def _rate_now(self) -> float:
        now = self._clock()
        self._rate_per_s *= math.exp((self._rate_at - now) / _RATE_OVER_S)
        self._rate_at = now
        return self._rate_per_s


def _share(limit: int, callers: Sized) -> int:
    """What one of so many callers may have of a limit: so much that there is as much for a newcomer."""
    return limit // (len(callers) + 1)


class Visit:
    """One stream's part in it, from its first message to its end, whatever that is."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self.caller = caller
        self.items = 0  # accepted and not answered
        self.n_bytes = 0  # of the messages that hold them, and of the one that is held
        self.held_bytes = 0  # of a message that was read and is not accepted yet
        self.usual_bytes = _FIRST_BYTES  # of its messages: as many as the last one had
        self._admission = admission

    def __enter__(self) -> Self:
        self._admission.counts.streams += 1
        self._admission._streams_of[self.caller] += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        admission = self._admission
        admission.counts.streams -= 1
        admission._streams_of[self.caller] -= 1
        if not admission._streams_of[self.caller]:
            del admission._streams_of[self.caller]
        admission.counts.abandoned_items += self.items
        admission._change(self, -self.items, -self.n_bytes)
        admission._wake()

    def has_room(self, n_items: int = 1) -> bool:
        """Whether there is room for so many items now."""
        return self._admission._fits(self, n_items)

    async def turn(self, n_items: int = 1) -> None:
        """Wait until there is; callers who wait take turns."""
        while not self.has_room(n_items):
            turn = _Turn(self, n_items, asyncio.get_running_loop().create_future())
            self._admission._waiting.setdefault(self.caller, deque()).append(turn)
            try:
                await turn.comes
            except asyncio.CancelledError:
                self._admission._forget(turn)
                raise

    def expect(self) -> Callable[[], None]:
        """A read begins: until what is returned is called, or nothing has come for a while, a message is expected, so
        that not all idle streams are read at once when there is little room."""
        admission, n_bytes = self._admission, self.usual_bytes
        admission._expected_bytes += n_bytes

        def over() -> None:
            nonlocal n_bytes
            timer.cancel()
            if n_bytes:
                admission._expected_bytes -= n_bytes
                n_bytes = 0
                admission._wake()

        timer = asyncio.get_running_loop().call_later(_EXPECTED_S, over)
        return over

    def hold(self, n_items: int, n_bytes: int) -> bool:
        """Count the bytes of a message that was read; False where there is no room for them, and it is refused."""
        self.usual_bytes = n_bytes
        if not self._admission._has_bytes(self.caller, n_bytes):
            self._admission.counts.refused_items += n_items
            return False
        self.held_bytes = n_bytes
        self._admission._change(self, 0, n_bytes)
        return True

    def refuse(self, n_items: int) -> None:
        """Count the items of the message that is held as not begun; its bytes go with its answer."""
        self.held_bytes = 0
        self._admission.counts.refused_items += n_items

    def accept(self, n_items: int) -> None:
        """Count the items of the message that is held."""
        self.held_bytes = 0
        self._admission.counts.accepted_items += n_items
        self._admission._change(self, n_items, 0)

    def answered(self, n_items: int, n_bytes: int) -> None:
        """A message's answer is written."""
        admission = self._admission
        admission.counts.answered_items += n_items
        admission._rate_per_s = admission._rate_now() + n_items / _RATE_OVER_S
        admission._change(self, -n_items, -n_bytes)
        admission._wake()


class _Turn(NamedTuple):
    """A stream that waits for room for so many items."""

    visit: Visit
    n_items: int
    comes: asyncio.Future[None]


def caller_of(peer: str) -> str:
    """Who a gRPC peer is ("ipv4:10.0.0.7:50312"): its host, or where the host says nothing its connection."""
    host = peer.rpartition(":")[0]
    is_near = peer.startswith(("unix", "ipv4:127.", "ipv6:%5B::1%5D", "ipv6:[::1]"))
    return peer if is_near or not host else host
