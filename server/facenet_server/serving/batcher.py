"""Rows of many callers in one run of a network."""

import asyncio
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from facenet_server.errors import Overloaded, TimedOut
from facenet_server.telemetry.counters import Stage

Rows = NDArray[Any]
Outputs = tuple[NDArray[np.float32], ...]
Net = Callable[..., Outputs]  # of one array or several with the same first dimension


_RUNS = 16  # of the last, the shortest says how long a run takes at least
_FADING = 0.8  # a batch: so fast is forgotten how many rows there were


class Part(NamedTuple):
    """At most a batch's worth of one call's rows, where its outputs go, since when it waits, and until when they are of
    use (on the loop's clock)."""

    inputs: tuple[Rows, ...]
    outputs: asyncio.Future[Outputs]
    since_ns: int
    deadline: float

    @property
    def n_rows(self) -> int:
        """As many as it has."""
        return len(self.inputs[0])


def drop_abandoned(batch: list[Part]) -> None:
    """Take those out whose callers have left."""
    batch[:] = [part for part in batch if not part.outputs.done()]


class Run(NamedTuple):
    """A batch's run: an outcome for each call, and when it began and ended."""

    outcomes: list[Outputs | Exception]
    start_ns: int
    end_ns: int


class Runner(ABC):
    """Where batches run. A batch is put together once there is a place for it: until then it may grow."""

    @abstractmethod
    async def reserve(self) -> Any:
        """A place for one batch, once there is one."""

    @abstractmethod
    def give_back(self, place: Any) -> None:
        """The place is not needed; None: there is none."""

    @abstractmethod
    async def run(self, place: Any, batch: list[Part]) -> Run:
        """Run a batch in its place, but those whose callers have left before it begins: they leave the batch."""


class ThreadRunner(Runner):
    """Batches of a network in threads of this process, in which they may wait for their turn."""

    def __init__(self, net: Net, threads: Executor) -> None:
        self._net = net
        self._threads = threads

    async def reserve(self) -> None:
        """At once: it waits in the threads' queue."""

    def give_back(self, place: None) -> None:
        """Nothing to do."""

    async def run(self, place: None, batch: list[Part]) -> Run:
        """Run in the next free thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, batch)

    def _run(self, batch: list[Part]) -> Run:
        start_ns = time.monotonic_ns()
        drop_abandoned(batch)
        found = outcomes(self._net, [part.inputs for part in batch]) if batch else []
        return Run(found, start_ns, time.monotonic_ns())


class Batcher:
    """A network that callers share: called like one, but awaited.

    ``workers`` run one batch each; what arrives meanwhile is the next batch (natural batching), up to ``max_rows``,
    and idle workers share what is there. An idle worker waits for its share of the rows that have been here at a time
    lately, since callers who were answered together come back together. It waits up to ``max_wait_s`` or as long as a
    run takes, and half of that since the last arrival. A call is split to fit batches and workers, and rejoined. A
    cancelled call's waiting rows are dropped, and so are those that even the shortest of the last runs would answer
    after their deadline. Where a batch fails, each call in it runs once more by itself, and fails by itself. Where
    ``max_queued_rows`` would wait, a further call is refused. Every run is counted in ``stage``. Batches of a network
    run in ``threads``, or in threads of their own; those of a Runner where it says.
    """

    def __init__(
        self,
        net: Net | Runner,
        max_rows: int,
        *,
        workers: int = 1,
        max_wait_s: float = 0.0,
        max_queued_rows: int | None = None,
        stage: Stage | None = None,
        threads: Executor | None = None,
    ) -> None:
        self._max_rows = max_rows
        self._max_wait_s = max_wait_s
        self._max_queued_rows = max_queued_rows
        self._stage = stage or Stage("")
        self._parts: OrderedDict[asyncio.Future[Outputs], Part] = OrderedDict()  # that wait, in their order
        self._queued_rows = self._running_rows = 0
        self._runs_s: deque[float] = deque(maxlen=_RUNS)
        self._usual_rows = 0.0  # that wait or run at a time: the most of lately
        self._arrived = asyncio.Event()
        self._arrived_s = 0.0  # when some last did, on the loop's clock
        self._n_workers = self._idle = workers
        self._own_threads: Executor | None = None
        if not isinstance(net, Runner):
            if threads is None:
                threads = self._own_threads = ThreadPoolExecutor(workers, thread_name_prefix="network")
            net = ThreadRunner(net, threads)
        self._runner = net
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._n_workers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for outputs in self._parts:
            outputs.cancel()
        if self._own_threads is not None:
            await asyncio.to_thread(self._own_threads.shutdown)  # once what runs has ended

    async def __call__(self, *inputs: Rows, deadline: float | None = None) -> Outputs:
        """Run (N, …) rows, N ≥ 1, of each of the network's inputs: one array per output, each with first dimension N,
        in their order. ``deadline`` is on the event loop's clock.

        Raises Overloaded, TimedOut, whatever the network raised on any of them, and RuntimeError once closed.
        """
        if not self._workers:
            raise RuntimeError("the batcher is not open")
        limit, count = self._max_queued_rows, len(inputs[0])
        if limit is not None and self._queued_rows and self._queued_rows + count > limit:
            raise Overloaded(f"{self._queued_rows} rows wait for {self._stage.name}; the limit is {limit}")
        loop, now = asyncio.get_running_loop(), time.monotonic_ns()
        size = self._part_rows(count)
        slices = [slice(start, start + size) for start in range(0, count, size)]
        end = math.inf if deadline is None else deadline
        parts = [Part(tuple(rows[some] for rows in inputs), loop.create_future(), now, end) for some in slices]
        self._parts.update((part.outputs, part) for part in parts)
        self._queued_rows += count
        self._usual_rows = max(self._queued_rows + self._running_rows, self._usual_rows)
        self._arrived_s = loop.time()
        self._arrived.set()
        try:
            done = [await parts[0].outputs] if len(parts) == 1 else await asyncio.gather(*(p.outputs for p in parts))
        finally:
            for part in parts:  # where its caller leaves: not to be run; no effect on one that is done
                part.outputs.cancel()
                self._drop(part)
        return done[0] if len(done) == 1 else tuple(map(np.concatenate, zip(*done, strict=True)))

    def _drop(self, part: Part) -> None:
        """It waits no longer."""
        if self._parts.pop(part.outputs, None):
            self._queued_rows -= part.n_rows

    def _part_rows(self, count: int) -> int:
        """How a call is split: no part larger than a batch, and about as much for each worker."""
        rounds = -(-count // (self._max_rows * self._n_workers))
        return -(-count // (rounds * self._n_workers))

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await self._work_once()  # which keeps nothing of its batch

    async def _work_once(self) -> None:
        batch: list[Part] = []
        place = None
        try:
            if self._max_wait_s:
                await self._fill()
            place = await self._runner.reserve()
            self._take(batch)
        except Exception as error:  # noqa: BLE001 (whatever it is: the worker lives on, and nobody is left waiting)
            self._fail([*batch, *self._parts.values()], error)
            self._arrived.clear()
            batch.clear()
        if not batch:
            self._runner.give_back(place)
            return
        self._idle -= 1
        try:
            found = await self._run(place, batch)
        except asyncio.CancelledError:  # closed while it runs: nobody is left waiting
            for part in batch:
                part.outputs.cancel()
            raise
        except Exception as error:  # noqa: BLE001 (no thread to be had, say: the worker lives on)
            found = [error] * len(batch)
        finally:
            self._idle += 1
        for part, outcome in zip(batch, found, strict=True):
            if part.outputs.done():
                continue
            if isinstance(outcome, Exception):
                part.outputs.set_exception(outcome)
            else:
                part.outputs.set_result(outcome)

    async def _run(self, place: Any, batch: list[Part]) -> list[Outputs | Exception]:
        """An outcome for each, none for those whose callers left while the batch waited for a thread."""
        rows = sum(part.n_rows for part in batch)
        self._running_rows += rows
        try:
            with self._stage.at_work():
                found, start_ns, end_ns = await self._runner.run(place, batch)
        finally:
            self._running_rows -= rows
        if batch:
            self._runs_s.append((end_ns - start_ns) / 1e9)
            queue_ns = sum((start_ns - part.since_ns) * part.n_rows for part in batch)
            rows = sum(part.n_rows for part in batch)
            self._stage.add(rows=rows, queue_ns=queue_ns, compute_ns=end_ns - start_ns)
        return found

    def _share(self) -> int:
        """The rows of one worker, were those that are usually here spread over all."""
        return min(self._max_rows, math.ceil(self._usual_rows / self._n_workers))

    async def _fill(self) -> None:
        """Wait for a share, while rows keep coming; no longer than a run takes."""
        loop, wait_s = asyncio.get_running_loop(), min([self._max_wait_s, *self._runs_s])
        since_s = loop.time()
        while self._parts and self._queued_rows < self._share():
            until_s = min(since_s + wait_s, max(since_s, self._arrived_s) + wait_s / 2)
            if loop.time() >= until_s:
                return
            self._arrived.clear()
            enough = loop.call_at(until_s, self._arrived.set)  # no exception, as of a timeout, which costs far more
            try:
                await self._arrived.wait()
            finally:
                enough.cancel()

    def _fail(self, parts: list[Part], error: Exception) -> None:
        for part in parts:
            self._drop(part)
            if not part.outputs.done():
                part.outputs.set_exception(error)

    def _take(self, batch: list[Part]) -> None:
        """Put the next batch's parts into it."""
        here = self._queued_rows + self._running_rows
        self._usual_rows = max(here, self._usual_rows)
        share = self._share()
        if self._queued_rows < share:
            share = -(-self._queued_rows // self._idle)  # idle workers, this one among them
        rows = 0
        while self._parts and rows < share:
            part = next(iter(self._parts.values()))
            if rows + part.n_rows > self._max_rows:
                break
            is_gone = part.outputs.done()
            is_late = not is_gone and self._comes_too_late(part)
            self._drop(part)
            if is_late:
                part.outputs.set_exception(TimedOut())
            elif not is_gone:
                batch.append(part)
                rows += part.n_rows
        if batch:
            self._usual_rows = max(here, _FADING * self._usual_rows)
        if self._parts:
            self._arrived.set()  # for the other workers
        else:
            self._arrived.clear()

    def _comes_too_late(self, part: Part) -> bool:
        """Whether its deadline would have passed after the shortest run of late. What was once slow need not stay so:
        each time that only this tells against a part, one run less is remembered."""
        left_s = part.deadline - asyncio.get_running_loop().time()
        too_late = left_s < min(self._runs_s, default=0.0)
        if too_late and left_s > 0:
            self._runs_s.popleft()
        return too_late


def outcomes(
    net: Net, calls: Sequence[tuple[Rows, ...]], joined: tuple[Rows, ...] | None = None
) -> list[Outputs | Exception]:
    """Run several calls' rows together; where that fails, each call by itself. ``joined``: all rows, where they lie in
    one piece already."""
    try:
        if joined is None:
            joined = calls[0] if len(calls) == 1 else tuple(map(np.concatenate, zip(*calls, strict=True)))
        outputs = net(*joined)
    except Exception as error:  # noqa: BLE001 (each call's failure is its own)
        return [error] if len(calls) == 1 else [outcome for call in calls for outcome in outcomes(net, [call])]
    stops = list(itertools.accumulate(len(inputs[0]) for inputs in calls))
    starts = [0, *stops[:-1]]
    return [tuple(rows[start:stop] for rows in outputs) for start, stop in zip(starts, stops, strict=True)]
