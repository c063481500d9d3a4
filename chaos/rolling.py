"""Servers that are restarted in turn, or killed, under callers of the SDK."""

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from facenet_client import AsyncClient, Embedding
from facenet_client.errors import FaceNetError

from chaos.ledger import Marked
from chaos.process import Server, started
from chaos.report import Report
from chaos.stub import Behaviour

_CALLERS, _STREAMERS, _STREAM_ITEMS = 8, 2, 50


class _Seen:
    """What the SDK's callers got."""

    def __init__(self) -> None:
        self.calls = self.streams = self.cycles = self.wrong = self.doubled = 0
        self.failures: list[str] = []
        self.slowest_s = 0.0

    def judge(self, crops: Marked, sent: Sequence[bytes], results: Sequence[Embedding]) -> None:
        """The results of some crops, in their order."""
        self.doubled += max(0, len(results) - len(sent))
        self.wrong += max(0, len(sent) - len(results))
        for pixels, result in zip(sent, results, strict=False):
            if result.error is not None:
                self.failures.append(f"{type(result.error).__name__}: {result.error}")
            elif not crops.is_right(pixels, np.asarray(result)):
                others = (other for other in sent if other != pixels)
                is_anothers = any(crops.is_right(other, np.asarray(result)) for other in others)
                self.doubled += is_anothers
                self.wrong += not is_anothers


async def rolling(*, calls: int, hard: bool = False, retry: bool = True, kill: bool = False, beside: int = 0) -> Report:
    """T10 (SIGTERM) and T11 (``kill``: SIGKILL): three servers restarted in turn under SDK callers, some with single
    calls, some with streams of fifty. ``hard``: the servers do not drain. ``beside``: so many calls more, of T10 with
    each protection alone, for the note, of T11 without resending."""
    seen = await _rolled(calls, hard=hard, retry=retry, kill=kill)
    alone, unsent = list[str](), _Seen()
    if beside and kill:
        unsent = await _rolled(beside, retry=False, kill=True)
        alone = [f"without resending {len(unsent.failures)} of {unsent.calls} and {unsent.streams} failed"]
    elif beside:
        alone = [await _alone(beside, "resending", hard=True), await _alone(beside, "draining", retry=False)]
    kinds = Counter(failure.partition(":")[0] for failure in seen.failures)
    report = Report()
    report.note = "; ".join(
        [
            f"{seen.calls} calls and {seen.streams} streams of {_STREAM_ITEMS} over {seen.cycles} "
            f"{'kills' if kill else 'restarts'}, the slowest {seen.slowest_s:.1f} s",
            *(f"{count} × {kind}" for kind, count in kinds.items()),
            *(seen.failures[:1]),
            *alone,
        ]
    )
    report.least("calls", seen.calls, calls)
    restarts, streams = _least(calls)
    report.least("restarts", seen.cycles, restarts)
    report.least("streams", seen.streams, streams)
    report.most("failures", len(seen.failures), 0)
    report.most("doubled, or another's", seen.doubled, 0)
    report.most("wrong or missing", seen.wrong, 0)
    if kill:
        report.most("the slowest call, seconds", seen.slowest_s, 5)
    if beside and kill:
        in_flight = (_CALLERS + _STREAMERS) * unsent.cycles
        report.most("failures without resending, over what was in flight", len(unsent.failures) - in_flight, 0)
    return report


def _least(calls: int) -> tuple[int, float]:
    """How often servers end while so many calls are made, each once or five times; and how many streams there are."""
    return 3 if calls < 10_000 else 15, calls / 20


async def _alone(calls: int, name: str, **how: bool) -> str:
    """What one protection comes to without the other."""
    seen = await _rolled(calls, **how)
    return f"{name} alone: {len(seen.failures)} of {seen.calls} calls and {seen.streams} streams failed"


async def _rolled(calls: int, *, hard: bool = False, retry: bool = True, kill: bool = False) -> _Seen:
    seen, crops, finished = _Seen(), Marked(), asyncio.Event()
    restarts, streams = _least(calls)
    config = {"max_batch_rows": 64, "grace_s": 10}
    servers = [Server(Behaviour(dict(config), batch_s=0.005, hard_stop=hard)) for _ in range(3)]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(started(servers))
        addresses = [server.address for server in servers]
        client = await stack.enter_async_context(AsyncClient(addresses, timeout_s=20, retry=retry))
        workers = [asyncio.create_task(_call(client, seen, crops, n, finished)) for n in range(_CALLERS)]
        workers += [asyncio.create_task(_stream(client, seen, crops, n, finished)) for n in range(_STREAMERS)]
        for server in itertools.cycle(servers):
            await asyncio.sleep(0.5)
            server.signal(signal.SIGKILL if kill else signal.SIGTERM)
            await asyncio.to_thread(server.wait, 20)
            await asyncio.to_thread(server.start)
            seen.cycles += 1
            if seen.calls >= calls and seen.cycles >= restarts and seen.streams >= streams:
                break
        finished.set()
        await asyncio.gather(*workers)
    return seen


async def _call(client: AsyncClient, seen: _Seen, crops: Marked, salt: int, finished: asyncio.Event) -> None:
    for number in itertools.count():
        if finished.is_set():
            return
        pixels, start = crops.crop(number, 7000 + salt), time.monotonic()
        seen.calls += 1
        try:
            seen.judge(crops, [pixels], await client.embed_crops([image_of(pixels)]))
        except FaceNetError as error:
            seen.failures.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.01)
        seen.slowest_s = max(seen.slowest_s, time.monotonic() - start)


async def _stream(client: AsyncClient, seen: _Seen, crops: Marked, salt: int, finished: asyncio.Event) -> None:
    for number in itertools.count():
        if finished.is_set():
            return
        sent = [crops.crop(_STREAM_ITEMS * number + n, 8000 + salt) for n in range(_STREAM_ITEMS)]
        seen.streams += 1
        try:
            images = (image_of(pixels) for pixels in sent)
            seen.judge(crops, sent, [result async for result in client.embed_crops_stream(images)])
        except FaceNetError as error:
            seen.failures.append(f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.1)


def image_of(pixels: bytes) -> Any:
    """A crop's bytes as the SDK takes them: (side, side, 3) uint8."""
    side = round((len(pixels) / 3) ** 0.5)
    return np.frombuffer(pixels, np.uint8).reshape(side, side, 3)
