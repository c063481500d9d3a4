"""Room for a bounded number of images at once."""

import asyncio
from collections import Counter, deque
from types import TracebackType
from typing import NamedTuple

from facenet_server.admission.limits import add

_MOST_AWAY = 1024  # callers who had a turn and wait for none, while others do


class _Waiter(NamedTuple):
    """Who waits: for how many seats, how many it would take if there were as many, and until when."""

    places: int
    wanted: int
    seated: asyncio.Future[None]


class Seats:
    """A semaphore of which several units are taken at once.

    Callers who wait get as many seats as each other over time (start-time fair queueing: Goyal, Vin, Cheng, 1996); one
    caller's own are first come, first served. Who is next and needs many is not passed by those who need few. A caller
    who has ``most_of_caller`` is passed by the others; one who has none may take more.
    """

    def __init__(self, count: int, most_of_caller: int | None = None) -> None:
        self._free = self._count = count
        self._most_of_caller = count if most_of_caller is None else most_of_caller
        self._held = Counter[str]()  # by caller
        self._waiting: dict[str, deque[_Waiter]] = {}  # by caller
        self._clock = 0  # virtual: the start of whoever was seated last
        self._starts: dict[str, int] = {}  # of each caller's next, on that clock

    def taken(self, count: int, caller: str = "") -> "_Taken":
        """Hold ``count`` seats, to be entered as a context; all of them where there are not as many."""
        return _Taken(self, count, caller)

    async def _take(self, wanted: int, caller: str) -> int:
        """How many were taken."""
        count = min(wanted, self._count)
        if not self._waiting and count <= self._free and self._may_have(caller, count):  # nobody is behind anybody
            self._hold(caller, count)
            return count
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(_Waiter(count, wanted, waiter))
        self._starts[caller] = max(self._starts.get(caller, 0), self._clock)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            self._leave(0 if waiter.cancelled() else count, caller)  # where it was admitted just before
            raise
        return count

    def _leave(self, count: int, caller: str) -> None:
        self._hold(caller, -count)
        self._admit()

    def _hold(self, caller: str, count: int) -> None:
        self._free -= count
        add(self._held, caller, count)

    def _may_have(self, caller: str, count: int) -> bool:
        held = self._held[caller]
        return not held or held + count <= self._most_of_caller

    def _next(self) -> str | None:
        """Whose turn it is: of those who may have what they wait for, or who wait for nothing any more."""
        queues = self._waiting.items()
        able = [name for name, queue in queues if queue[0].seated.cancelled() or self._may_have(name, queue[0].places)]
        return min(able, key=self._starts.__getitem__, default=None)

    def _admit(self) -> None:
        while (caller := self._next()) is not None:
            queue = self._waiting[caller]
            first = queue[0]
            if not first.seated.cancelled():
                if first.places > self._free:
                    return
                self._hold(caller, first.places)
                first.seated.set_result(None)
                self._clock = self._starts[caller]
                self._starts[caller] += first.wanted
            queue.popleft()
            if not queue:
                del self._waiting[caller]
                self._forget()

    def _forget(self) -> None:
        if not self._waiting:  # nobody is behind anybody
            self._starts.clear()
        elif len(self._starts) > len(self._waiting) + _MOST_AWAY:
            self._starts = {caller: self._starts[caller] for caller in self._waiting}


class _Taken:
    """Seats while they are held."""

    __slots__ = ("_caller", "_count", "_seats")

    def __init__(self, seats: Seats, count: int, caller: str) -> None:
        self._seats = seats
        self._count = count
        self._caller = caller

    async def __aenter__(self) -> None:
        self._count = await self._seats._take(self._count, self._caller)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seats._leave(self._count, self._caller)
