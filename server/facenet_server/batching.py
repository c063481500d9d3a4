"""Rows of many callers in one run of a network."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from facenet_server.errors import Overloaded
from facenet_server.stats import Stage

Rows = NDArray[Any]
Outputs = tuple[NDArray[np.float32], ...]
Net = Callable[..., Outputs]  # of one array or several with the same first dimension


class _Part(NamedTuple):
    """At most a batch's worth of one call's rows, where its outputs go, and since when it waits."""

    inputs: tuple[Rows, ...]
    outputs: asyncio.Future[Outputs]
    since_ns: int

    @property
    def n_rows(self) -> int:
        return len(self.inputs[0])


class Batcher:
    """A network that callers share: called like one, but awaited.

    ``workers`` run one batch each; what arrives meanwhile is the next batch (natural batching), up to ``max_rows``.
    An idle worker waits up to ``max_wait_s`` for more rows than the first. A call of more rows is split and rejoined.
    A cancelled call's waiting rows are dropped, a failed batch fails the calls in it and no others. Where
    ``max_queued_rows`` would wait, a further call is refused. Every run is counted in ``stage``.
    """

    def __init__(
        self,
        net: Net,
        max_rows: int,
        *,
        workers: int = 1,
        max_wait_s: float = 0.0,
        max_queued_rows: int | None = None,
        stage: Stage | None = None,
    ) -> None:
        self._net = net
        self._max_rows = max_rows
        self._max_wait_ns = int(max_wait_s * 1e9)
        self._max_queued_rows = max_queued_rows
        self._stage = stage or Stage("")
        self._parts: deque[_Part] = deque()
        self._queued_rows = 0
        self._arrived = asyncio.Event()
        self._n_workers = workers
        self._executor: Executor = ThreadPoolExecutor(workers, thread_name_prefix="network")
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
        for part in self._parts:
            part.outputs.cancel()
        self._executor.shutdown()

    async def __call__(self, *inputs: Rows) -> Outputs:
        """Run (N, …) rows, N ≥ 1, of each of the network's inputs: one array per output, each with first dimension N,
        in their order.

        Raises Overloaded, whatever the network raised on a batch that held any of them, and RuntimeError once closed.
        """
        if not self._workers:
            raise RuntimeError("the batcher is not open")
        limit, count = self._max_queued_rows, len(inputs[0])
        if limit is not None and self._queued_rows and self._queued_rows + count > limit:
            raise Overloaded(f"{self._queued_rows} rows wait for {self._stage.name}; the limit is {limit}")
        loop, now = asyncio.get_running_loop(), time.monotonic_ns()
        slices = [slice(start, start + self._max_rows) for start in range(0, count, self._max_rows)]
        parts = [_Part(tuple(rows[some] for rows in inputs), loop.create_future(), now) for some in slices]
        self._parts.extend(parts)
        self._queued_rows += count
        self._arrived.set()
        try:
            done = await asyncio.gather(*(part.outputs for part in parts))
        finally:
            for part in parts:
                part.outputs.cancel()  # left by its caller: not to be run; no effect on one that is done
        return done[0] if len(done) == 1 else tuple(map(np.concatenate, zip(*done, strict=True)))

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if self._max_wait_ns:
                await self._fill()
            batch = self._next_batch()
            if not batch:
                continue
            try:
                outputs = await self._run(batch)
            except Exception as error:
                for part in batch:
                    if not part.outputs.done():
                        part.outputs.set_exception(error)
                continue
            except asyncio.CancelledError:  # closed while it runs: nobody is left waiting
                for part in batch:
                    part.outputs.cancel()
                raise
            start = 0
            for part in batch:
                stop = start + part.n_rows
                if not part.outputs.done():
                    part.outputs.set_result(tuple(output[start:stop] for output in outputs))
                start = stop

    async def _run(self, batch: list[_Part]) -> Outputs:
        def run() -> tuple[int, Outputs, int]:
            start_ns = time.monotonic_ns()
            inputs = [part.inputs for part in batch]
            rows = inputs[0] if len(inputs) == 1 else map(np.concatenate, zip(*inputs, strict=True))
            return start_ns, self._net(*rows), time.monotonic_ns()

        start_ns, outputs, end_ns = await asyncio.get_running_loop().run_in_executor(self._executor, run)
        self._stage.add(
            rows=sum(part.n_rows for part in batch),
            queue_ns=sum((start_ns - part.since_ns) * part.n_rows for part in batch),
            compute_ns=end_ns - start_ns,
        )
        return outputs

    async def _fill(self) -> None:
        """Wait for a full batch, or until the first part has waited long enough."""
        while self._parts and self._queued_rows < self._max_rows:
            left_ns = self._parts[0].since_ns + self._max_wait_ns - time.monotonic_ns()
            if left_ns <= 0:
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(left_ns / 1e9):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> list[_Part]:
        batch: list[_Part] = []
        rows = 0
        while self._parts and rows + self._parts[0].n_rows <= self._max_rows:
            part = self._parts.popleft()
            self._queued_rows -= part.n_rows
            if not part.outputs.done():
                batch.append(part)
                rows += part.n_rows
        if self._parts:
            self._arrived.set()  # for the other workers
        else:
            self._arrived.clear()
        return batch
