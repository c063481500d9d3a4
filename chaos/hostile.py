"""Image files that mean ill, and large ones that do not, beside a good caller."""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import repeat
from statistics import median
from typing import Any

import numpy as np
from facenet_client import AsyncClient, Detection

from chaos.children import environment
from chaos.files import REASONS, Bomb, bombs, damaged, large_webp
from chaos.process import Server
from chaos.real import generated_image
from chaos.report import Report
from chaos.stub import Behaviour

_A_MESSAGE = 48  # damaged files
_ROUNDS = 5
_LARGE_PX = 5_000  # a side
_ANY = 2**31 - 1
_CHECKS_OFF = dict.fromkeys(("max_image_scans", "max_image_side_px", "max_image_aspect", "max_header_parts"), _ANY)


async def hostile_images(*, files: int, large: int, models: str, protected: bool = True) -> Report:
    """T34: thirty bombs one by one, then all beside a good caller; files damaged at random, each message with a good
    one; legal large images beside a good caller. Unprotected: no limits on headers, the smallest bomb alone."""
    report, photo = Report(), generated_image(0)
    behaviour = Behaviour({} if protected else _CHECKS_OFF, models, core=-1)
    async with Server(behaviour) as server, AsyncClient(server.address, timeout_s=120) as client:
        async with AsyncClient(server.address, timeout_s=120) as good:
            (alone,) = await client.detect([photo])
            await _bombs_alone(report, server, client, bombs() if protected else bombs()[:1])
            if protected:
                await _bombs_beside(report, server, good, photo)
                await _damaged(report, client, photo, alone, files)
                await _large_beside(report, client, good, photo, large)
            (after,) = await client.detect([photo])
    report.most("answers of a photo that differ afterwards", not _same(after, alone), 0)
    return report


async def _bombs_alone(report: Report, server: Server, client: AsyncClient, some: Sequence[Bomb]) -> None:
    others, cpu_ms, grown_mb = 0, list[float](), list[float]()
    for bomb in some:
        start_s = server.usage.cpu_s
        await client.detect([bytes(len(bomb.data))])
        before_s = server.usage.cpu_s
        async with server.growth() as grown:
            (answer,) = await client.detect([bomb.data])
            await asyncio.sleep(0.1)
        cpu_ms.append(1e3 * (server.usage.cpu_s - before_s - (before_s - start_s)))
        grown_mb.append(grown.mb)
        others += answer.error is None or answer.error.reason != bomb.reason
    report.most("bombs that are not refused for their reason", others, 0)
    report.most("CPU of a bomb over that of as many zeros, ms", max(cpu_ms), 50)
    report.most("memory of a bomb, MB", max(grown_mb), 64)


async def _bombs_beside(report: Report, server: Server, good: AsyncClient, photo: np.ndarray) -> None:
    """From a process of their own: what they cost their sender is not the good caller's."""
    command, pipe = [sys.executable, "-m", "chaos.bomber", server.address], asyncio.subprocess.PIPE
    bomber = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment())
    assert bomber.stdin is not None
    assert bomber.stdout is not None
    alone_s, beside_s = list[float](), list[float]()
    try:
        await bomber.stdout.readline()
        for _ in range(_ROUNDS):
            alone_s += await _latencies(good, photo, 40)
            bomber.stdin.write(b"\n")
            answered = asyncio.create_task(bomber.stdout.readline())
            beside_s += await _latencies(good, photo, 40)
            await answered
        await bomber.communicate(b"")
    finally:
        if bomber.returncode is None:
            bomber.kill()
            await bomber.wait()
    times = np.percentile(beside_s, 99) / np.percentile(alone_s, 99)
    report.most("a good caller's p99 beside a hundred bombs, over alone", float(times), 2)


async def _damaged(report: Report, client: AsyncClient, photo: np.ndarray, alone: Detection, files: int) -> None:
    undocumented = differ = count = 0

    def sent() -> Iterator[np.ndarray | bytes]:
        for number, file in enumerate(damaged(files)):
            if number % _A_MESSAGE == 0:
                yield photo
            yield file

    async for answer in client.detect_stream(sent()):
        if count % (_A_MESSAGE + 1) == 0:
            differ += not _same(answer, alone)
        undocumented += answer.error is not None and answer.error.reason not in REASONS
        count += 1
    report.note = f"{files:,} damaged files"
    report.least("damaged files answered, and good ones among them", count, files)
    report.most("damaged files with a reason that no document has", undocumented, 0)
    report.most("good files among them with another answer", differ, 0)


async def _large_beside(report: Report, client: AsyncClient, good: AsyncClient, photo: np.ndarray, large: int) -> None:
    data = large_webp(_LARGE_PX)
    start_s = time.monotonic()
    (answer,) = await client.detect([data])
    one_s = time.monotonic() - start_s
    idle_s = await _latencies(good, photo, 50)
    task = asyncio.create_task(client.detect(repeat(data, large), timeout_s=600))
    await asyncio.sleep(min(1.0, one_s))
    beside_s = list[float]()
    while not task.done():
        beside_s += await _latencies(good, photo, 1)
    answers = await task
    report.most("large images without an answer", sum(each.error is not None for each in (answer, *answers)), 0)
    bound_s = median(idle_s) + one_s
    report.most("a good caller's p50 beside large images, s", median(beside_s), bound_s)


async def _latencies(client: AsyncClient, photo: np.ndarray, count: int) -> list[float]:
    found = list[float]()
    for _ in range(count):
        start_s = time.monotonic()
        (answer,) = await client.detect([photo])
        found.append(time.monotonic() - start_s)
        if answer.error is not None:
            raise answer.error
    return found


def _same(one: Detection, other: Detection) -> bool:
    """Whether two answers are the same, byte for byte."""

    def told(detection: Detection) -> Any:
        return [(face.box, face.score, face.landmarks) for face in detection.faces]

    return one.error is None and told(one) == told(other)
