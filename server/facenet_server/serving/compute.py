"""Threads for the arithmetic, off the event loop."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from facenet_server.serving.executor import CoreExecutor
from facenet_server.telemetry.counters import Stats

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


_LARGE_PIXELS = 2_000_000  # of an image: some tenth of a second's work


class _NotWanted(Exception):
    """A job's caller has left: it goes no further, and nobody looks at how it ended."""


class Steps:
    """The steps of one job, in its thread: called with a step's stage, function and arguments."""

    def __init__(self, threads: CoreExecutor, n_free: Callable[[], int], size: int) -> None:
        self.begun_ns = 0
        self._size = size
        self._away = threading.local()  # nanoseconds given to smaller items, by this thread
        self.taken: list[tuple[str, int, int]] = []  # each stage, its rows and nanoseconds
        self.is_wanted = True  # until the job's caller leaves, on the event loop
        self._threads = threads
        self._n_free = n_free  # the threads that no job is there for; below 0 where there are more jobs

    def __call__(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Take a step, timed under its stage."""
        return self._timed(stage, 1, lambda: function(*args, **kwargs))

    def run(self, stage: str, net: Callable[[S], T], rows: S, count: int) -> T:
        """A network's run: a step of so many rows."""
        return self._timed(stage, count, lambda: net(rows))

    @property
    def n_threads(self) -> int:
        """The threads that may share a step: this one, and those that no job is there for."""
        return 1 + max(0, self._n_free())

    def spread(self, function: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """The function of each item, in their order: this thread takes one after the other, as do those that are free.
        Raises what the function raised on any of them."""
        left = enumerate(items)
        done: list[tuple[int, T]] = []
        errors: list[BaseException] = []

        def take(items: Iterable[tuple[int, S]]) -> None:
            try:
                for number, item in items:
                    done.append((number, function(item)))
            except BaseException as error:  # noqa: BLE001 (not passed on: the job itself raises it)
                errors.append(error)
                deque(left, maxlen=0)  # the others need not go on

        n_helpers = min(self.n_threads, len(items)) - 1
        n_free = self._n_free()
        helpers = [self._threads.submit(take, self._until_needed(left, n_free)) for _ in range(n_helpers)]
        take(left)
        wait([helper for helper in helpers if not helper.cancel()])
        if errors:
            del errors[1:]
            raise errors.pop()  # no name may hold it, or it would hold itself, and the image
        return [result for _, result in sorted(done, key=lambda pair: pair[0])]

    def _until_needed(self, items: Iterator[T], n_free: int) -> Iterator[T]:
        """Those that a thread takes that helps: until there are more jobs than there were."""
        while self._n_free() >= n_free and (item := next(items, None)) is not None:
            yield item

    def give_way(self) -> None:
        """Between two parts of a step: let far smaller items begin, where this job's is large; as long as it has had
        half of the time itself."""
        if self._size < _LARGE_PIXELS:
            return
        before_ns, start_ns = self._away_ns, time.monotonic_ns()
        now_ns, away_ns = start_ns, before_ns
        while self.is_wanted and 2 * away_ns <= now_ns - self.begun_ns and self._threads.give_way(self._size):
            now_ns = time.monotonic_ns()
            away_ns = before_ns + now_ns - start_ns
        self._away.ns = away_ns

    @property
    def _away_ns(self) -> int:
        return getattr(self._away, "ns", 0)

    def _timed(self, stage: str, rows: int, function: Callable[[], T]) -> T:
        if not self.is_wanted:
            raise _NotWanted
        self.give_way()
        start_ns, away_ns = time.monotonic_ns(), self._away_ns
        result = function()
        self.taken.append((stage, rows, time.monotonic_ns() - start_ns - (self._away_ns - away_ns)))
        return result


class Compute:
    """``n_threads`` threads; every step of a job is counted under the name of its stage. ``n_free`` tells how many of
    them no job needs; unless it is given, those beyond its own jobs. Where it ``stays``, a job whose caller leaves is
    waited for all the same.

    While many jobs wait, the last ones of items are told to the event loop together, each within ``max_held_s``. Each
    time that the loop wakes, it finds the caches full of the networks' numbers, and Python's lock in the threads'
    hands.
    """

    def __init__(
        self,
        n_threads: int,
        stats: Stats,
        max_held_s: float = 0.0,
        most_crops_ahead: float = math.inf,
        n_free: Callable[[], int] | None = None,
        *,
        stays: bool = False,
    ) -> None:
        self._stays = stays
        self.n_threads = n_threads
        self.threads = CoreExecutor(n_threads, "compute", most_crops_ahead)
        self._stats = stats
        self._max_held_s = max_held_s
        self._n_free = n_free or (lambda: self.n_threads - self._n_jobs())
        self._under_way = 0  # jobs whose end the event loop has not been told
        self._ended: deque[Callable[[], None]] = deque()
        self._telling: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.threads.shutdown()

    def crops_ahead(self, count: int) -> AbstractContextManager[None]:
        """Around the embedding of an image's crops: where embedders share the cores, few images begin meanwhile."""
        return self.threads.ahead(count)

    async def __call__(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in one of the threads."""
        return await self.job(stage, lambda step: step(stage, function, *args, **kwargs))

    async def begin(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, as the first step of an item."""
        return await self.job(stage, lambda step: step(stage, function, *args, **kwargs), begins=True)

    async def job(
        self, stage: str, function: Callable[[Steps], T], *, begins: bool = False, is_last: bool = False, size: int = 0
    ) -> T:
        """Several steps one after the other in one of the threads, which costs less than a thread for each. Until it
        ends it is under way as ``stage``, its first. One that begins an item goes behind all that has begun; the end of
        an item's last one may be told later, with others'. ``size`` is the item's, in pixels."""
        loop, since_ns = asyncio.get_running_loop(), time.monotonic_ns()
        steps = Steps(self.threads, self._n_free, size)
        ended = loop.create_future()

        todo = [function]  # a job that is cancelled before its thread takes it keeps nothing of its caller's

        def run() -> T:
            steps.begun_ns = time.monotonic_ns()
            return todo.pop()(steps)

        def end() -> None:
            if steps.begun_ns:
                self._stats.stage(stage).end()  # truly: a caller who leaves does not end a job that hangs
            else:
                self._stats.stage(stage).give_up()
            for number, (name, rows, compute_ns) in enumerate(steps.taken):
                queue_ns = 0 if number else steps.begun_ns - since_ns
                self._stats.stage(name).add(rows=rows, queue_ns=queue_ns, compute_ns=compute_ns)
            if not ended.done():
                ended.set_result(None)

        self._under_way += 1  # before its thread looks
        job = self.threads.begin(run, size) if begins else self.threads.submit(run)
        self._stats.stage(stage).begin()
        self._tell_later(loop)
        job.add_done_callback(lambda _: self._end(loop, end, is_last))
        try:
            await asyncio.shield(ended)
            return job.result()
        except asyncio.CancelledError:
            steps.is_wanted = False
            if job.cancel():  # where it has not begun
                todo.clear()
            elif self._stays:
                await asyncio.wait({ended})
            raise
        finally:
            del job  # or its error would hold itself, by this frame

    def _n_jobs(self) -> int:
        """The jobs that have not ended, as seen from any thread: about so many."""
        return self._under_way - len(self._ended)

    def _end(self, loop: asyncio.AbstractEventLoop, end: Callable[[], None], is_last: bool) -> None:
        """In a job's thread: have its end told, an item's last one not before as many have ended as jobs wait."""
        self._ended.append(end)
        if not (is_last and self._max_held_s) or len(self._ended) > self._n_jobs() - self.n_threads:
            loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        while self._ended:
            end = self._ended.popleft()
            self._under_way -= 1
            end()

    def _tell_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that no end is held for long."""
        if self._max_held_s and self._telling is None and self._n_jobs() > self.n_threads:
            self._telling = loop.call_later(self._max_held_s, self._told, loop)

    def _told(self, loop: asyncio.AbstractEventLoop) -> None:
        self._telling = None
        self._tell()
        self._tell_later(loop)
