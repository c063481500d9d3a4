"""Room for a bounded number of images at once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Seats:
    """A semaphore of which several units are taken at once.

    Callers who wait take turns; one caller's own are first come, first served. Who needs many is not passed by those
    who need few.
    """

    def __init__(self, count: int) -> None:
        self._free = self._count = count
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}  # by caller, who is next first

    @asynccontextmanager
    async def taken(self, count: int, caller: str = "") -> AsyncIterator[None]:
        """Hold ``count`` seats; all of them where there are not as many."""
        count = min(count, self._count)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append((count, waiter))
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
            caller, queue = next(iter(self._waiting.items()))
            count, waiter = queue[0]
            if not waiter.cancelled():
                if count > self._free:
                    return
                self._free -= count
                waiter.set_result(None)
                self._waiting[caller] = self._waiting.pop(caller)  # behind the others
            queue.popleft()
            if not queue:
                del self._waiting[caller]
