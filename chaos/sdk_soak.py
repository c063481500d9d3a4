"""The long run of the SDK: what a service keeps of clients that it opened, used and closed."""

import asyncio
import gc
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from facenet_client import AnswerTimeout, AsyncClient, Client, Embedding, ServerOverloaded

from chaos.ledger import Marked
from chaos.process import Server, Usage
from chaos.report import Report
from chaos.rolling import image_of
from chaos.soak import grown, slope, used
from chaos.stub import Behaviour

_ROUND_S = 5.0
_CALLS, _STREAM_ITEMS = 20, 100  # of a client's life
_LEFT_OPEN = 10  # a round: three rounds show them, whatever else opens and closes
_LEAST_ROUNDS = 3
_SIDE = 8  # px: what images take and leave behind would hide what clients do


@dataclass
class _Uses:
    """What the clients did so far."""

    crops: Marked = field(default_factory=lambda: Marked(side=_SIDE))
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    counts: Counter[str] = field(default_factory=Counter)
    left_open: list[AsyncClient] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # one kind of client lives in threads

    def count(self, name: str, times: int = 1) -> None:
        """Something happened."""
        with self._lock:
            self.counts[name] += times

    def some(self, count: int) -> list[bytes]:
        """Crops that no others are."""
        return [self.crops.crop(next(self.numbers)) for _ in range(count)]

    def judge(self, sent: Sequence[bytes], results: Sequence[Embedding]) -> None:
        """Count a call, and those of its answers that are not right."""
        self.count("calls")
        self.count("wrong", abs(len(sent) - len(results)))
        for pixels, result in zip(sent, results, strict=False):
            right = result.vector is not None and self.crops.is_right(pixels, result.vector)
            self.count("wrong", not right)


async def sdk_soak(*, seconds: float, left_open: bool = False, bytes_a_client: float = 2000) -> Report:
    """T27 of the SDK: clients of both kinds are opened, used and closed; ``left_open``: ten a round are not closed.

    They make calls, streams, streams that are left, calls with too little time and calls with a broken crop.
    """
    uses, samples, lives, length_s = _Uses(), list[tuple[float, ...]](), list[int](), min(_ROUND_S, seconds / 10)
    async with Server(Behaviour({"max_batch_rows": 64}, batch_s=0.002, side=_SIDE)) as server:
        start = time.monotonic()
        while (began := time.monotonic()) - start < seconds or len(samples) < _LEAST_ROUNDS:
            while time.monotonic() - began < length_s:
                one, other = (_live(server.address, uses) for _ in range(2))
                await asyncio.gather(one, other, asyncio.to_thread(_live_without_a_loop, server.address, uses))
            for _ in range(_LEFT_OPEN if left_open else 0):
                uses.left_open.append(await AsyncClient(server.address).__aenter__())
            for client in uses.left_open:  # a connection that is idle is closed by the server
                await client.server_stats()
            gc.collect()
            await asyncio.sleep(min(0.5, length_s / 10))  # connections take a moment to close
            samples.append((time.monotonic() - start, *used(Usage(os.getpid())), len(asyncio.all_tasks())))
            lives.append(uses.counts["clients"])
        for client in uses.left_open:
            await client.__aexit__(None, None, None)
    warm, lived = np.array(samples[len(samples) // 5 :]), np.array(lives[len(samples) // 5 :])
    report = grown(warm)
    report.most("memory slope (Theil–Sen), bytes a client", 1e6 * slope(lived, warm[:, 1]), bytes_a_client)
    report.note = f"{dict(uses.counts)} in {len(samples)} rounds; {report.note}"
    report.most("wrong or missing", uses.counts["wrong"], 0)
    report.least("calls with too little time, told so", uses.counts["too little time"], 1)
    return report


async def _live(address: str, uses: _Uses) -> None:
    """A client's life."""
    async with AsyncClient(address) as client:
        for size in range(1, _CALLS + 1):
            sent = uses.some(1 + size % 8)
            uses.judge(sent, await client.embed_crops([image_of(pixels) for pixels in sent]))
        sent = uses.some(_STREAM_ITEMS)
        uses.judge(sent, [result async for result in client.embed_crops_stream(map(image_of, sent))])
        leaving = client.embed_crops_stream(map(image_of, uses.some(_STREAM_ITEMS)))
        assert isinstance(leaving, AsyncIterator)
        await anext(leaving)
        await leaving.aclose()  # type: ignore[attr-defined]
        (broken,) = await client.embed_crops([np.zeros((_SIDE, _SIDE + 1, 3), np.uint8)])
        uses.count("wrong", broken.error is None)
    async with AsyncClient(address, timeout_s=0.004) as hasty:
        try:
            await hasty.embed_crops([image_of(pixels) for pixels in uses.some(8)])
        except (AnswerTimeout, ServerOverloaded):
            uses.count("too little time")
    uses.count("clients", 2)


def _live_without_a_loop(address: str, uses: _Uses) -> None:
    """The same of a synchronous one."""
    with Client(address) as client:
        for size in range(1, _CALLS + 1):
            sent = uses.some(1 + size % 8)
            uses.judge(sent, client.embed_crops([image_of(pixels) for pixels in sent]))
        leaving = client.embed_crops_stream(map(image_of, uses.some(_STREAM_ITEMS)))
        next(iter(leaving))
    uses.count("clients")
