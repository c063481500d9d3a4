"""Threads for the arithmetic between the networks, off the event loop."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from facenet_server.stats import Stats

P = ParamSpec("P")
T = TypeVar("T")


class Steps:
    """The steps of one job, in its thread: called with a step's stage, function and arguments."""

    def __init__(self) -> None:
        self.begun_ns = 0
        self.taken: list[tuple[str, int]] = []  # each stage, and its nanoseconds
        self.is_wanted = True  # until the job's caller leaves, on the event loop

    def __call__(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Take a step, timed under its stage."""
        start_ns = time.monotonic_ns()
        result = function(*args, **kwargs)
        self.taken.append((stage, time.monotonic_ns() - start_ns))
        return result

    def wanted(self, items: Iterable[T]) -> Iterator[T]:
        """The items of a long step, up to where the job's caller leaves."""
        return takewhile(lambda _: self.is_wanted, items)


class Compute:
    """``n_threads`` threads; every step of a job is counted under the name of its stage."""

    def __init__(self, n_threads: int, stats: Stats) -> None:
        self.n_threads = n_threads
        self.threads = ThreadPoolExecutor(n_threads, thread_name_prefix="compute")
        self._stats = stats

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.threads.shutdown()

    async def __call__(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in one of the threads."""
        return await self.job(stage, lambda step: step(stage, function, *args, **kwargs))

    async def job(self, stage: str, function: Callable[[Steps], T]) -> T:
        """Several steps one after the other in one of the threads, which costs less than a thread for each. Until it
        ends it is under way as ``stage``, its first."""
        steps, since_ns, loop = Steps(), time.monotonic_ns(), asyncio.get_running_loop()
        ended = loop.create_future()

        def run() -> T:
            steps.begun_ns = time.monotonic_ns()
            return function(steps)

        def end() -> None:
            self._stats.stage(stage).end()  # truly: a caller who leaves does not end a job that hangs
            for number, (name, compute_ns) in enumerate(steps.taken):
                queue_ns = 0 if number else steps.begun_ns - since_ns
                self._stats.stage(name).add(rows=1, queue_ns=queue_ns, compute_ns=compute_ns)
            if not ended.done():
                ended.set_result(None)

        job = self.threads.submit(run)
        self._stats.stage(stage).begin()
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(end))
        try:
            await ended
            return job.result()
        except asyncio.CancelledError:
            steps.is_wanted = False
            job.cancel()  # where it has not begun
            raise
        finally:
            del job  # or its error would hold itself, by this frame
