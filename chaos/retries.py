"""What the SDK's resending adds to an overload, and whether the load that it makes outlives it."""

import asyncio
import itertools
import random
import time
from contextlib import AsyncExitStack

import numpy as np
from facenet_client import AsyncClient
from facenet_client.errors import FaceNetError

from chaos.drivers import by_the_clock
from chaos.ledger import Ledger
from chaos.overload import LIMITS
from chaos.process import Server
from chaos.report import Report
from chaos.rolling import image_of
from chaos.stub import Behaviour

_CAPACITY = 20  # items a second: many clients in one process cost more than their calls
_RECOVERY_S = 5.0


async def budgeted(*, seconds: float, clients: int) -> Report:
    """T2: five times the capacity from SDK clients as they are by default, then 0.7 of it. A budget of resendings is
    full at first: there are to be so few clients that their budgets are empty well before the overload ends."""
    over, settling, after = Ledger(), Ledger(), Ledger()
    async with AsyncExitStack() as stack:
        limits = LIMITS | {"max_batch_rows": 1}
        server = await stack.enter_async_context(Server(Behaviour(limits, batch_s=1 / _CAPACITY)))
        opened = [await stack.enter_async_context(AsyncClient(server.address)) for _ in range(clients)]
        await asyncio.gather(*(client.server_info() for client in opened))
        load = _Load(opened)
        begun = asyncio.create_task(load.offer(over, 5 * _CAPACITY, seconds))
        await asyncio.sleep(seconds)
        within = await _attempts(server)
        later = asyncio.create_task(load.offer(settling, 0.7 * _CAPACITY, _RECOVERY_S))
        await asyncio.sleep(_RECOVERY_S)
        await load.offer(after, 0.7 * _CAPACITY, max(2.0, seconds / 5))
        await asyncio.gather(begun, later)
        in_all = await _attempts(server)
    report = Report()
    report.note = f"over {dict(over.outcomes)}; then {dict(settling.outcomes)}; then {dict(after.outcomes)}"
    report.most("attempts over calls, in the overload", within / over.offered, 1.2)
    calls = over.offered + settling.offered + after.offered
    report.most("attempts over calls, until all have ended", in_all / calls, 1.2)
    answered = over.within("answered", load.start, load.start + seconds)
    report.least("goodput in the overload, share of capacity", answered / seconds / _CAPACITY, 0.9)
    report.least("goodput at 0.7 of capacity, from 5 s on, share", after.outcomes["answered"] / after.offered, 0.95)
    report.most("lost", over.lost + settling.lost + after.lost, 0)
    report.most("doubled", over.doubled + settling.doubled + after.doubled, 0)
    report.most("wrong", sum(each.outcomes["wrong"] for each in (over, settling, after)), 0)
    return report


class _Load:
    """Calls of one crop by the clock, over the clients in turn."""

    def __init__(self, clients: list[AsyncClient]) -> None:
        self._clients = itertools.cycle(clients)
        self._numbers = itertools.count(random.getrandbits(40))
        self.start = time.monotonic()

    async def offer(self, ledger: Ledger, rate_per_s: float, duration_s: float) -> None:
        """So many a second."""
        await by_the_clock(lambda: self._call(next(self._clients), ledger), rate_per_s, duration_s)

    async def _call(self, client: AsyncClient, ledger: Ledger) -> None:
        pixels, start = ledger.crops.crop(next(self._numbers)), time.monotonic()
        ledger.offer()
        try:
            result, *more = await client.embed_crops([image_of(pixels)])
        except FaceNetError as error:
            ledger.book(type(error).__name__, time.monotonic() - start)
            return
        ledger.doubled += len(more)
        if result.error is not None:
            told = type(result.error).__name__
        else:
            told = "answered" if ledger.crops.is_right(pixels, np.asarray(result)) else "wrong"
        ledger.book(told, time.monotonic() - start)


async def _attempts(server: Server) -> int:
    """Messages of one item that reached it, whatever became of them."""
    counts = (await server.stats()).admission
    return int(counts.accepted_items + counts.refused_items + counts.refused_streams)
