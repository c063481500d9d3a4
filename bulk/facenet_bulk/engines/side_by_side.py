"""Shards done side by side on one event loop, and taken one by one by synchronous code."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from facenet_bulk.engines import Done
from facenet_bulk.table import Tally


def side_by_side(
    runner: asyncio.Runner, numbers: Sequence[int], workers: Sequence[Callable[[int], Awaitable[Tally]]]
) -> Iterator[Done]:
    """Each shard once one of the workers has done it. Raises what a worker raises; then the others stop."""
    todo, done = iter(numbers), asyncio.Queue[Done | Exception]()

    async def work(shard: Callable[[int], Awaitable[Tally]]) -> None:
        try:
            for number in todo:
                done.put_nowait(Done(number, await shard(number)))
        except Exception as error:  # noqa: BLE001 (not passed on: whoever takes the results raises it)
            done.put_nowait(error)

    async def begin() -> list[asyncio.Task[None]]:
        return [asyncio.create_task(work(worker)) for worker in workers[: len(numbers)]]

    async def end(tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    tasks = runner.run(begin())
    try:
        for _ in numbers:
            result = runner.run(done.get())
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        runner.run(end(tasks))
