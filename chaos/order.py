"""Many long streams through the SDK: every item answered once, in order, whatever happens to the servers."""

import asyncio
import math
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import numpy as np
from facenet_client import AsyncClient, Embedding

from chaos.process import Server
from chaos.report import Report
from chaos.stub import DIMENSION, Behaviour

_STEP = 1e-6  # of the angle that stands for an item's number
_BAD_EVERY = 97  # one in so many items is broken: its error must come in its place


async def once_and_in_order(*, streams: int, items: int, restarts: int, swap_every: int = 0) -> Report:
    """T29: each pair's distance tells its stream and number; one server of two is restarted meanwhile."""
    report = Report()
    wrong = doubled_or_lost = bad = 0
    roomy = {"max_items_per_caller": 10**6, "max_items_in_flight": 10**7, "max_streams_per_connection": 1000}
    servers = [Server(Behaviour(dict(roomy), swap_every=swap_every)) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        client = AsyncClient([server.address for server in servers], timeout_s=300)
        await stack.enter_async_context(client)

        async def run(stream: int) -> None:
            nonlocal wrong, doubled_or_lost, bad
            number = 0
            async for result in client.compare_stream(_pairs(stream, items, streams)):
                if number % _BAD_EVERY == _BAD_EVERY - 1:
                    bad += result.error is not None
                    wrong += result.error is None
                elif result.error is not None or abs(result.distance - _distance(stream, number, items)) > 0.6 * _STEP:
                    wrong += 1
                number += 1
            doubled_or_lost += abs(number - items)

        async def disturb() -> None:
            for number in range(restarts):
                await asyncio.sleep(1.5)
                server = servers[number % 2]
                server.signal(signal.SIGTERM if number % 3 else signal.SIGKILL)
                await asyncio.to_thread(server.wait, 30)
                await asyncio.to_thread(server.start)

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*(run(stream) for stream in range(streams)))
        survived = disturbing.done()
        disturbing.cancel()
        await asyncio.gather(disturbing, return_exceptions=True)
    report.note = f"{streams} streams of {items}, {bad} broken items answered as such, restarts all done: {survived}"
    report.most("lost or doubled", doubled_or_lost, 0)
    report.most("wrong or out of order", wrong, 0)
    return report


async def _pairs(stream: int, items: int, streams: int) -> AsyncIterator[tuple[Embedding, Embedding]]:
    first = _vector(0.0)
    for number in range(items):
        if number % _BAD_EVERY == _BAD_EVERY - 1:
            yield first, Embedding(np.zeros(DIMENSION, np.float32), "embedder")
        else:
            yield first, _vector(_angle(stream, number, items))
        if number % 64 == 0:
            await asyncio.sleep(0)


def _angle(stream: int, number: int, items: int) -> float:
    # Steps are told apart in float32 distances where the distance is small: streams share the range.
    return 0.2 + (number * 7 + stream) % (7 * items + 200) * _STEP


def _distance(stream: int, number: int, items: int) -> float:
    return 2 * math.sin(_angle(stream, number, items) / 2)


def _vector(angle: float) -> Embedding:
    vector = np.zeros(DIMENSION, np.float32)
    vector[0], vector[1] = math.cos(angle), math.sin(angle)
    return Embedding(vector, "embedder")
