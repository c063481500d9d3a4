"""Doors of small limits, and what streams do at them."""

import asyncio

from facenet_server.admission.controller import Admission, Visit
from facenet_server.admission.limits import Capacity


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def door(**limits: int) -> Admission:
    return door_with(Clock(), **limits)


def door_with(clock: Clock, /, **limits: int) -> Admission:
    few = {"items_per_stream": 8, "items_per_caller": 16, "items": 32, "n_bytes": 1000, "streams": 40}
    return Admission(Capacity(**{**few, "connections": 40, **limits}), {}, clock)


def accept(visit: Visit, n_items: int, n_bytes: int = 1) -> None:
    assert visit.hold(n_items, n_bytes)
    visit.accept(n_items)


async def waiting(visit: Visit, n_items: int = 1) -> "asyncio.Task[None]":
    task = asyncio.create_task(visit.turn(n_items))
    await asyncio.sleep(0)
    return task
