"""Threads for the arithmetic between the networks, off the event loop."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from facenet_server.stats import Stats

P = ParamSpec("P")
T = TypeVar("T")


class Compute:
    """``n_threads`` threads; every job is counted under the name of its stage."""

    def __init__(self, n_threads: int, stats: Stats) -> None:
        self.n_threads = n_threads
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="compute")
        self._stats = stats

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()

    async def __call__(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in one of the threads."""

        def run() -> tuple[int, T, int]:
            start_ns = time.monotonic_ns()
            return start_ns, function(*args, **kwargs), time.monotonic_ns()

        since_ns, counted, loop = time.monotonic_ns(), self._stats.stage(stage), asyncio.get_running_loop()
        counted.begin()
        job = self._threads.submit(run)
        # Its end counts, not its caller's: one who leaves does not end a job that hangs.
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(counted.end))
        start_ns, result, end_ns = await asyncio.wrap_future(job)
        counted.add(rows=1, queue_ns=start_ns - since_ns, compute_ns=end_ns - start_ns)
        return result
