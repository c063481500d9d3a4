"""Who is let in: counts of what callers have with the server, and the limits that keep them bounded.

An item counts from the moment its message was read until its answer is written. A new stream is refused where there is
no room for anything of it; a running one is not read while there is none, and waits in turn with those of other
callers. Pure counting on one event loop: no locks.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_RATE_OVER_S = 1.0  # the answering rate is that of about the last second
_MIN_RETRY_S, _MAX_RETRY_S = 0.02, 5.0


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
        self._of_caller: Counter[str] = Counter()
        self._waiting: dict[str, deque[tuple[Visit, asyncio.Future[None]]]] = {}  # callers in turn
        self._rate_per_s, self._rate_at = 0.0, clock()

    def enter(self, caller: str) -> "Visit":
        """A new stream of the caller's, to be entered as a context. Raises Refused where there is no room."""
        counts, capacity = self.counts, self._capacity
        if counts.streams >= capacity.streams or not self._has_room(caller):
            counts.refused_streams += 1
            raise Refused(self.retry_after_s())
        return Visit(self, caller)

    def retry_after_s(self) -> float:
        """About when what is in flight now will have been answered."""
        rate = self._rate_now()
        wait_s = self.counts.items_in_flight / rate if rate > 0 else _MAX_RETRY_S
        return min(max(wait_s, _MIN_RETRY_S), _MAX_RETRY_S)

    def _has_room(self, caller: str) -> bool:
        counts, capacity = self.counts, self._capacity
        return (
            counts.items_in_flight < capacity.items
            and counts.bytes_in_flight < capacity.n_bytes
            and self._of_caller[caller] < capacity.items_per_caller
        )

    def _fits(self, visit: "Visit", n_items: int, n_bytes: int) -> bool:
        """Within every limit; what is larger than a whole limit fits where it is alone."""
        counts, capacity = self.counts, self._capacity
        return all(
            not used or used + more <= limit
            for used, more, limit in (
                (visit.items, n_items, capacity.items_per_stream),
                (self._of_caller[visit.caller], n_items, capacity.items_per_caller),
                (counts.items_in_flight, n_items, capacity.items),
                (counts.bytes_in_flight, n_bytes, capacity.n_bytes),
            )
        )

    def _change(self, visit: "Visit", n_items: int, n_bytes: int) -> None:
        visit.items += n_items
        visit.n_bytes += n_bytes
        self.counts.items_in_flight += n_items
        self.counts.bytes_in_flight += n_bytes
        self._of_caller[visit.caller] += n_items
        if not self._of_caller[visit.caller]:
            del self._of_caller[visit.caller]

    def _wake(self) -> None:
        """Let waiting streams read on, callers in turn, as far as there seems to be room for what they send."""
        room = self._capacity.items - self.counts.items_in_flight
        woken = True
        while room > 0 and woken:
            woken = False
            for caller in list(self._waiting):
                visit = self._wake_one(caller)
                if visit is not None:
                    woken = True
                    room -= visit.usual_items
                if room <= 0:
                    return

    def _wake_one(self, caller: str) -> "Visit | None":
        """The caller's stream that waits longest and may read; the caller's others go behind other callers'."""
        queue = self._waiting.pop(caller)
        while queue and queue[0][1].done():  # its stream has ended
            queue.popleft()
        woken = None
        if queue and self._may_read(queue[0][0]):
            woken, turn = queue.popleft()
            turn.set_result(None)
        if queue:
            self._waiting[caller] = queue
        return woken

    def _may_read(self, visit: "Visit") -> bool:
        return visit.items < self._capacity.items_per_stream and self._has_room(visit.caller)

    def _rate_now(self) -> float:
        now = self._clock()
        self._rate_per_s *= math.exp((self._rate_at - now) / _RATE_OVER_S)
        self._rate_at = now
        return self._rate_per_s


class Visit:
    """One stream's part in it, from its first message to its end, whatever that is."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self.caller = caller
        self.items = self.n_bytes = 0  # in flight
        self.usual_items = 1  # of its messages: as many as the last one had
        self._admission = admission

    def __enter__(self) -> Self:
        self._admission.counts.streams += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        admission = self._admission
        admission.counts.streams -= 1
        admission.counts.abandoned_items += self.items
        admission._change(self, -self.items, -self.n_bytes)
        admission._wake()

    @property
    def may_read(self) -> bool:
        """Whether there is room for a message, as far as can be told before it is read."""
        return self._admission._may_read(self)

    async def turn(self) -> None:
        """Wait until there is; callers who wait take turns."""
        while not self.may_read:
            turn = asyncio.get_running_loop().create_future()
            self._admission._waiting.setdefault(self.caller, deque()).append((self, turn))
            await turn

    def accept(self, n_items: int, n_bytes: int) -> bool:
        """Count a message that was read; False where there is no room for it."""
        counts = self._admission.counts
        self.usual_items = max(1, n_items)
        if not self._admission._fits(self, n_items, n_bytes):
            counts.refused_items += n_items
            return False
        counts.accepted_items += n_items
        self._admission._change(self, n_items, n_bytes)
        return True

    def answered(self, n_items: int, n_bytes: int) -> None:
        """A message's answer is written."""
        admission = self._admission
        admission.counts.answered_items += n_items
        admission._rate_per_s = admission._rate_now() + n_items / _RATE_OVER_S
        admission._change(self, -n_items, -n_bytes)
        admission._wake()


def caller_of(peer: str) -> str:
    """Who a gRPC peer is ("ipv4:10.0.0.7:50312"): its host, or where the host says nothing its connection."""
    host = peer.rpartition(":")[0]
    is_near = peer.startswith(("unix", "ipv4:127.", "ipv6:%5B::1%5D", "ipv6:[::1]"))
    return peer if is_near or not host else host
