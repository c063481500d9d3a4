"""Rows of many callers in one run of a network."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]
Outputs = tuple[NDArray[np.float32], ...]
Net = Callable[[Rows], Outputs]


class _Part(NamedTuple):
    """At most a batch's worth of one call's rows, and where its outputs go."""

    rows: Rows
    outputs: asyncio.Future[Outputs]


class Batcher:
    """A network that callers share: called like one, but awaited.

    One worker runs one batch at a time; what arrives meanwhile is the next batch (natural batching), up to
    ``max_rows``. A call of more rows is split and rejoined. A cancelled call's waiting rows are dropped, a
    failed batch fails the calls in it and no others. Callers that start together share batches: the worker looks
    only after all of them have queued. The queue is bounded by its callers, each of which waits for its rows.
    """

    def __init__(self, net: Net, max_rows: int) -> None:
        self._net = net
        self._max_rows = max_rows
        self._parts: deque[_Part] = deque()
        self._arrived = asyncio.Event()
        self._executor: Executor = ThreadPoolExecutor(1)
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for part in self._parts:
            part.outputs.cancel()
        self._executor.shutdown()

    async def __call__(self, rows: Rows) -> Outputs:
        """Run (N, …) rows, N ≥ 1: one array per output, each with first dimension N, in their order.

        Raises whatever the network raised on a batch that held any of them, and RuntimeError once closed.
        """
        if self._worker is None or self._worker.done():
            raise RuntimeError("the batcher is not open")
        loop = asyncio.get_running_loop()
        starts = range(0, len(rows), self._max_rows)
        parts = [_Part(rows[i : i + self._max_rows], loop.create_future()) for i in starts]
        self._parts.extend(parts)
        self._arrived.set()
        try:
            done = await asyncio.gather(*(part.outputs for part in parts))
        finally:
            for part in parts:
                part.outputs.cancel()  # left by its caller: not to be run; no effect on one that is done
        return done[0] if len(done) == 1 else tuple(map(np.concatenate, zip(*done, strict=True)))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                continue
            try:
                rows = batch[0].rows if len(batch) == 1 else np.concatenate([part.rows for part in batch])
                outputs = await loop.run_in_executor(self._executor, self._net, rows)
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
                stop = start + len(part.rows)
                if not part.outputs.done():
                    part.outputs.set_result(tuple(output[start:stop] for output in outputs))
                start = stop

    def _next_batch(self) -> list[_Part]:
        batch: list[_Part] = []
        rows = 0
        while self._parts and rows + len(self._parts[0].rows) <= self._max_rows:
            part = self._parts.popleft()
            if not part.outputs.done():
                batch.append(part)
                rows += len(part.rows)
        return batch
