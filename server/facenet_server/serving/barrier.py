"""Images on the way side by side, so that their crops share batches."""

import asyncio
from collections.abc import Sequence


def micro_batches(weights: Sequence[int], most: int, most_weight: int) -> list[slice]:
    """Consecutive items, cut into micro-batches of at most ``most``, none heavier than ``most_weight`` but one item
    alone."""
    batches: list[slice] = []
    start = weight = 0
    for number, each in enumerate(weights):
        if number > start and (number - start == most or weight + each > most_weight):
            batches.append(slice(start, number))
            start, weight = number, 0
        weight += each
    return [*batches, slice(start, len(weights))]


class BatchBarrier:
    """Some images that go through the networks together: before each network they wait for each other.

    A barrier whose size falls. Each image calls ``wait`` before each network that it needs, in the same order as the
    others; whoever started it calls ``leave`` once it has ended, however it did. ``deadline`` (on the event loop's
    clock; None: for ever) is until when their answers are of use, ``pixels`` how many the largest of them has.
    """

    def __init__(self, size: int, deadline: float | None = None, pixels: int = 0) -> None:
        self.deadline = deadline
        self.pixels = pixels
        self._on_the_way = size
        self._here = 0
        self._gate = asyncio.Event()

    async def wait(self) -> None:
        """Wait until every image on the way has come to this point."""
        self._here += 1
        gate = self._gate
        self._open_if_all_are_here()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            if not gate.is_set():  # it is not here any more
                self._here -= 1
            raise

    def leave(self, count: int) -> None:
        """So many images go no further."""
        self._on_the_way -= count
        self._open_if_all_are_here()

    def _open_if_all_are_here(self) -> None:
        if self._here and self._here >= self._on_the_way:
            self._gate.set()
            self._gate, self._here = asyncio.Event(), 0
