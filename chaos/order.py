"""Many long streams through the SDK: every item answered once, in order, whatever happens to the servers."""

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import numpy as np
from facenet_client import AsyncClient, Embedding

from chaos.ledger import Marked
from chaos.process import Server, started
from chaos.report import Report
from chaos.rolling import image_of
from chaos.stub import Behaviour

_BAD_SHARE = 0.01
_SEARCHES = 20  # mismatched answers that are traced to the item that they belong to; each takes seconds
_ROOMY = {"max_items_per_caller": 10**6, "max_items_in_flight": 10**6, "max_streams_per_connection": 1000}


class Book:
    """What came for each item of several streams, by the crop that an answer proves to be of."""

    def __init__(self, crops: Marked, streams: int, items: int) -> None:
        self._crops, self._streams, self._items = crops, streams, items
        self._answers = np.zeros((streams, items), np.int32)  # how many came for each
        self._searches = _SEARCHES
        self.bad = np.random.default_rng(streams + items).random((streams, items)) < _BAD_SHARE
        self.found = Counter[str]()

    def side_of_bad(self, stream: int, number: int) -> tuple[int, int]:
        """The height and width, px, of an item that is broken: both are told in its error."""
        return 1 + stream % 16, 20 + number % 64

    def note(self, stream: int, place: int, result: Embedding) -> None:
        """A stream's next result."""
        if place >= self._items:
            self.found["doubled"] += 1
        elif self.bad[stream, place]:
            height, width = self.side_of_bad(stream, place)
            is_its = result.error is not None and f"{height}×{width}" in str(result.error)
            self.found["broken, told so" if is_its else "wrong"] += 1
            self._answers[stream, place] += 1
        elif result.error is not None:
            self.found[f"failed: {type(result.error).__name__}"] += 1
            self._answers[stream, place] += 1
        else:
            self._place(stream, place, np.asarray(result))

    def _place(self, stream: int, place: int, vector: np.ndarray) -> None:
        if self._crops.is_right(self._crops.crop(place, stream), vector):
            self._answers[stream, place] += 1
            return
        belongs_to = self._whose(stream, vector)
        if belongs_to is None:
            self.found["wrong"] += 1
            return
        self._answers[belongs_to] += 1
        self.found["reordered" if belongs_to[0] == stream else "another stream's"] += 1

    def _whose(self, stream: int, vector: np.ndarray) -> tuple[int, int] | None:
        """The stream and number of an answer in the wrong place, its own stream first."""
        self._searches -= 1
        if self._searches < 0:
            return None
        for other in (stream, *(each for each in range(self._streams) if each != stream)):
            for number in range(self._items):
                if self._crops.is_right(self._crops.crop(number, other), vector):
                    return other, number
        return None

    def judge(self, report: Report) -> None:
        """What must be none, but for the broken."""
        report.least("broken items among them", int(self.bad.sum()), 1)
        report.most("lost", int((self._answers == 0).sum()), 0)
        report.most("doubled", int((self._answers > 1).sum()) + self.found["doubled"], 0)
        report.most("reordered within a stream", self.found["reordered"], 0)
        report.most("another stream's answer", self.found["another stream's"], 0)
        report.most("wrong", self.found["wrong"], 0)
        report.most("sound items that failed", sum(n for name, n in self.found.items() if name.startswith("failed")), 0)


async def once_and_in_order(
    *,
    streams: int,
    items: int,
    restarts: int,
    every_s: float = 1.0,
    swap_after: int = 0,
    models: str = "",
    crops: Marked | None = None,
) -> Report:
    """T29: streams of numbered crops to two servers, whose runs take random times; one in a hundred is broken. One of
    the servers at a time is restarted meanwhile, by SIGTERM and SIGKILL, ``restarts`` times at least (0: never)."""
    crops = crops or Marked(side=8)
    book, done, report = Book(crops, streams, items), Counter[str](), Report()
    how: dict[str, Any] = {"batch_s": 0.004, "varied": True, "side": crops.side, "swap_after": swap_after, "core": -1}
    servers = [Server(Behaviour(dict(_ROOMY), models, **how)) for _ in range(2)]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(started(servers))
        addresses = [server.address for server in servers]
        client = await stack.enter_async_context(AsyncClient(addresses, timeout_s=300))
        start = time.monotonic()
        over = asyncio.Event()
        disturbing = asyncio.create_task(_disturb(servers, done, every_s, over)) if restarts else None
        try:
            await asyncio.gather(*(_run(client, book, crops, stream, items) for stream in range(streams)))
        finally:
            took_s = time.monotonic() - start
            over.set()
            if disturbing is not None:
                await disturbing
    report.note = (
        f"{streams} streams of {items} in {took_s:.0f} s, {streams * items / took_s:.0f} items/s; {dict(done)}; "
        f"{dict(book.found)}"
    )
    book.judge(report)
    report.least("drains and kills meanwhile", done.total(), restarts)
    return report


async def _run(client: AsyncClient, book: Book, crops: Marked, stream: int, items: int) -> None:
    place = itertools.count()
    async for result in client.embed_crops_stream(_images(book, crops, stream, items)):
        book.note(stream, next(place), result)


async def _images(book: Book, crops: Marked, stream: int, items: int) -> AsyncIterator[Any]:
    for number in range(items):
        if book.bad[stream, number]:
            yield np.zeros((*book.side_of_bad(stream, number), 3), np.uint8)
        else:
            yield image_of(crops.crop(number, stream))
        if number % 64 == 63:
            await asyncio.sleep(0)  # the streams go side by side


async def _disturb(servers: list[Server], done: Counter[str], every_s: float, over: asyncio.Event) -> None:
    """End each of two servers in turn, by either signal in turn, and start it again."""
    for number in itertools.count():
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), every_s)
        if over.is_set():
            return  # a server is not left in the middle of its start: nobody would end it
        server, kill = servers[number % 2], number % 4 in (0, 3)
        server.signal(signal.SIGKILL if kill else signal.SIGTERM)
        await asyncio.to_thread(server.wait, 60)
        done["kills" if kill else "drains"] += 1
        await asyncio.to_thread(server.start)
