"""Room for the crops that callers ask for, of which answers can hold far more bytes than their requests have.

Crops count from when they are cut until their answer is written. A caller who has its share of the room begins no
further image until its answers are taken. All that it has may be of answers that are half done, or behind such in their
streams, and would wait for each other: so its oldest half-done answer goes on while none with crops is on its way out,
held up by nothing but its caller.
"""

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass, field

from facenet_server.admission.limits import share
from facenet_server.errors import Overloaded


@dataclass(slots=True)
class _Caller:
    """What one caller has: answers, those half done (the oldest first), those with crops on their way out, bytes, and
    of them those that it let lie."""

    answers: int = 0
    half_done: dict["Crops", None] = field(default_factory=dict)
    on_the_way: int = 0
    n_bytes: int = 0
    left_bytes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Let what waits look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class CropRoom:
    """So many bytes for all callers; images at work, and one answer of each caller, may exceed it."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = 0  # that are taken
        self._most = n_bytes
        self._callers = defaultdict[str, _Caller](_Caller)
        self._holders = 0  # callers with bytes

    @property
    def _share(self) -> int:
        return share(self._most, self._holders)

    def _add(self, mine: _Caller, n_bytes: int) -> None:
        had, was_full = mine.n_bytes > 0, self.n_bytes > self._most
        mine.n_bytes += n_bytes
        self.n_bytes += n_bytes
        self._holders += (mine.n_bytes > 0) - had
        if (had and not mine.n_bytes) or (was_full and self.n_bytes <= self._most):  # more room for others, too
            for caller in self._callers.values():
                caller.wake()


class Crops:
    """Those of one answer: half done, done, on their way out, perhaps left behind, gone. ``before`` holds its stream's
    earlier answers that are not on their way out yet, and from now on this one."""

    def __init__(self, room: CropRoom, caller: str, before: "deque[Crops]") -> None:
        self._room, self._caller, self._stream = room, caller, before
        self._mine = room._callers[caller]
        self._mine.answers += 1
        self._mine.half_done[self] = None
        self._n_bytes = 0
        self._is_done = self._is_on_the_way = self._is_left = self._is_gone = False
        before.append(self)

    def has_room(self) -> bool:
        """Whether another image of the answer may begin."""
        room, mine = self._room, self._mine
        if mine.n_bytes <= room._share and room.n_bytes <= room._most:
            return True
        return not mine.on_the_way and next(iter(mine.half_done), None) is self

    async def turn(self) -> None:
        """Wait until one may. Raises Overloaded where its caller let more crops lie than it may have."""
        while self._mine.left_bytes <= self._room._share:
            if self.has_room():
                return
            await self._mine.changed.wait()
        raise Overloaded("the crops of earlier answers were not taken, and there is no room for more")

    def add(self, n_bytes: int) -> None:
        """So many bytes are cut."""
        self._n_bytes += n_bytes
        self._room._add(self._mine, n_bytes)

    def done(self) -> None:
        """None of its images is left."""
        if self._is_gone:
            return
        self._is_done = True
        while self._stream and self._stream[0]._is_done:
            first = self._stream.popleft()
            first._is_on_the_way = first._n_bytes > 0 and not first._is_gone
            self._mine.on_the_way += first._is_on_the_way
        self._half_done_no_more()

    def leave_behind(self) -> None:
        """Its caller does not take them; its stream has ended."""
        self._mine.on_the_way -= self._is_on_the_way
        self._is_on_the_way, self._is_left = False, True
        self._mine.left_bytes += self._n_bytes
        self._mine.wake()

    def gone(self) -> None:
        """They are written, or given up."""
        self._is_done = self._is_gone = True
        self._mine.on_the_way -= self._is_on_the_way
        self._mine.left_bytes -= self._n_bytes if self._is_left else 0
        self._mine.answers -= 1
        if not self._mine.answers:
            del self._room._callers[self._caller]
        if self._n_bytes:
            self._room._add(self._mine, -self._n_bytes)
            self._mine.wake()
        self._half_done_no_more()

    def _half_done_no_more(self) -> None:
        was_oldest = next(iter(self._mine.half_done), None) is self
        self._mine.half_done.pop(self, None)
        if was_oldest:
            self._mine.wake()
