"""Room for the crops that callers ask for, of which answers can hold far more bytes than their requests have.

Crops count from when they are cut until their answer is written. A caller who has its share of the room begins no
further image until its answers are taken. All that it has may be of answers that are half done, which would wait for
each other: so the oldest of those goes on while none with crops is on its way out.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from facenet_server.capacity import share


@dataclass(slots=True)
class _Caller:
    """What one caller has: answers, those that are half done (the oldest first), those on their way out, bytes."""

    answers: int = 0
    half_done: dict["Crops", None] = field(default_factory=dict)
    on_the_way: int = 0
    n_bytes: int = 0


class CropRoom:
    """So many bytes for all callers; each may exceed its share by what its images at work, and one answer, add."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = 0  # that are taken
        self._most = n_bytes
        self._of_caller = defaultdict[str, _Caller](_Caller)
        self._changed = asyncio.Event()

    def _share(self) -> int:
        return share(self._most, sum(caller.n_bytes > 0 for caller in self._of_caller.values()))

    def _change(self) -> None:
        """Whoever waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()


class Crops:
    """Those of one answer: half done, done, on their way out, gone. Some steps may be left out, not their order."""

    def __init__(self, room: CropRoom, caller: str) -> None:
        self._room, self._caller = room, caller
        self._mine = room._of_caller[caller]
        self._mine.answers += 1
        self._mine.half_done[self] = None
        self._n_bytes = 0
        self._is_on_the_way = False

    def has_room(self) -> bool:
        """Whether another image of the answer may begin."""
        mine = self._mine
        if mine.n_bytes <= self._room._share():
            return True
        return not mine.on_the_way and next(iter(mine.half_done), None) is self

    async def turn(self) -> None:
        """Wait until one may."""
        while not self.has_room():
            await self._room._changed.wait()

    def add(self, n_bytes: int) -> None:
        """So many bytes are cut."""
        self._n_bytes += n_bytes
        self._mine.n_bytes += n_bytes
        self._room.n_bytes += n_bytes

    def done(self) -> None:
        """None of its images is left."""
        self._mine.half_done.pop(self, None)
        self._room._change()

    def leave(self) -> None:
        """They are being written."""
        self._is_on_the_way = self._n_bytes > 0  # an answer without any frees nothing
        self._mine.on_the_way += self._is_on_the_way

    def gone(self) -> None:
        """They are written, or given up."""
        self._mine.on_the_way -= self._is_on_the_way
        self._mine.answers -= 1
        self.add(-self._n_bytes)
        if not self._mine.answers:
            del self._room._of_caller[self._caller]
        self.done()
