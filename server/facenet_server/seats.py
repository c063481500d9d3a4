"""Room for a bounded number of images at once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Seats:
    """A semaphore of which several units are taken at once.

    Callers who wait get as many seats as each other over time (start-time fair queueing: Goyal, Vin, Cheng, 1996); one
    caller's own are first come, first served. Who is next and needs many is not passed by those who need few.
    """

    def __init__(self, count: int) -> None:
        self._free = self._count = count
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}  # by caller
        self._clock = 0  # virtual: the start of whoever was seated last
        self._starts: dict[str, int] = {}  # of each caller's next, on that clock

    @asynccontextmanager
    async def taken(self, count: int, caller: str = "") -> AsyncIterator[None]:
        """Hold ``count`` seats; all of them where there are not as many."""
        count = min(count, self._count)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append((count, waiter))
        self._starts[caller] = max(self._starts.get(caller, 0), self._clock)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # admitted just before
                self._free += count
            self._admit()
            raise
        try:
            yield
        finally:
            self._free += count
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            caller = min(self._waiting, key=self._starts.__getitem__)
            queue = self._waiting[caller]
            count, waiter = queue[0]
            if not waiter.cancelled():
                if count > self._free:
                    return
                self._free -= count
                waiter.set_result(None)
                self._clock = self._starts[caller]
                self._starts[caller] += count
            queue.popleft()
            if not queue:
                del self._waiting[caller]
                if not self._waiting:  # nobody is behind anybody
                    self._starts.clear()
