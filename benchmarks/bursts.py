"""(g) Twenty callers at the same moment: who is answered when, against what detection and the embedder need."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from facenet_client import AsyncClient, ServerOverloaded

from benchmarks.figures import Figure, Section, Table
from benchmarks.loopback import Server
from benchmarks.photos import Pixels, mosaic
from benchmarks.plan import Plan

CALLERS = 20
FACES = {"one face": (1, 250, 250), "six faces": (6, 1200, 630)}  # count, width and height of the photo, px
FIRST, MEDIAN, ANSWERED = 1.5, 1.3, 0.8

Calling = Callable[..., Coroutine[Any, Any, Sequence[Any]]]


def measure(plan: Plan) -> Section:
    """Bursts of each kind in turn, with one face a photo and with six; then with half of the time that they need."""
    section = Section("Bursts of callers")
    table = Table(f"{CALLERS} callers with one photo each, seconds (medians)", ("", "alone", "first", "median", "last"))
    section.tables.append(table)
    with Server(plan) as server:
        for name, (faces, width, height) in FACES.items():
            _measure(section, table, plan, server, name, faces, mosaic(faces, width, height))
    return section


def _measure(section: Section, table: Table, plan: Plan, server: Server, name: str, faces: int, photo: Pixels) -> None:
    crop = np.ascontiguousarray(photo[:160, :160])
    calls: dict[str, Calling] = {
        "embed": lambda client, **how: client.embed([photo], **how),
        "detect": lambda client, **how: client.detect([photo], **how),
        "ready crops": lambda client, **how: client.embed_crops([crop] * faces, **how),
    }
    alone_s, bursts_s = {kind: list[float]() for kind in calls}, {kind: list[list[float]]() for kind in calls}
    rounds = range(1, plan.pace.rounds // 3 + 1)
    for number in rounds:
        plan.say(f"bursts, {name}: round {number}")
        for kind, call in calls.items():
            alone_s[kind] += server.do(partial(burst, call, 1))
            bursts_s[kind].append(server.do(partial(burst, call, CALLERS)))
    alone = {kind: median(found) for kind, found in alone_s.items()}
    points = {kind: _points(found) for kind, found in bursts_s.items()}
    table.rows.extend((f"{name}: {kind}", alone[kind], *points[kind]) for kind in calls)
    first_s, median_s, last_s = points["embed"]
    for_first_s = points["detect"][0] + alone["embed"]
    for_median_s = points["detect"][1] + points["ready crops"][2] / 2
    in_time = list[int]()
    for number in rounds:
        plan.say(f"bursts, {name}, with {last_s / 2:.2f} s: round {number}")
        in_time.append(len(server.do(partial(burst, calls["embed"], CALLERS, timeout_s=last_s / 2))))
    figures = [
        Figure(f"{name}: the first, over detect's first and one alone", first_s / for_first_s, "×", at_most=FIRST),
        Figure(f"{name}: the median, over detect's and half the crops'", median_s / for_median_s, "×", at_most=MEDIAN),
        Figure(
            f"{name}: answered where half of the last one's time is given, over half of the callers",
            median(in_time) / (CALLERS / 2),
            "×",
            at_least=ANSWERED,
        ),
    ]
    section.figures.extend(figures)


async def burst(call: Calling, callers: int, client: AsyncClient, **how: Any) -> list[float]:
    """Seconds to each caller's answer, of those that got one, in ascending order."""
    found = await asyncio.gather(*(_timed(call(client, **how)) for _ in range(callers)))
    return sorted(seconds for seconds in found if seconds is not None)


async def _timed(call: Coroutine[Any, Any, Sequence[Any]]) -> float | None:
    began_s = time.perf_counter()
    try:
        results = await call
    except (ServerOverloaded, TimeoutError):
        return None
    return None if any(result.error for result in results) else time.perf_counter() - began_s


def _points(bursts: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Medians over the bursts of the first answer's, the middle one's and the last one's time, seconds."""
    return (
        median(each[0] for each in bursts),
        median(each[len(each) // 2] for each in bursts),
        median(each[-1] for each in bursts),
    )
