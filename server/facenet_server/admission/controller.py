"""Who is let in: counts of what callers have with the server, and the limits that keep them bounded.

A message's bytes count from the moment it was read, its items from the moment they are accepted, both until the answer
is written. A new stream is refused where there is no room for anything of it, or its caller has its share of streams,
or of connections. A running one is not read while there is none, and for a while not while there is none for a message
like its last; a message whose bytes do not fit is refused, one whose items do not waits, as its stream does, in turn
with those of other callers. Smaller ones pass it meanwhile: if its stream has nothing else here, room for one item is
enough after a while, which a caller's limit and that of all may be exceeded for. Pure counting on one loop: no locks.
"""

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

from facenet_server.admission.crop_room import CropRoom, Crops
from facenet_server.admission.limits import (
    Capacity,
    Connections,
    Counts,
    Expected,
    Share,
    Tries,
    add,
    leaves_as_much,
    share,
)
from facenet_server.admission.throughput import Pace, retry_s
from facenet_server.admission.wait_estimator import Backlog
from facenet_server.errors import Refused

_STREAM_RETRY_S = 1.0  # at least, where streams or connections are too many: they end whenever their callers like
_FIRST_BYTES = 8 << 20  # what a stream's first message is expected to have: it may be as large as any
_EXPECTED_S, _BYTES_PER_S = 0.2, 20e6  # a read that takes longer, beside the time for its bytes, is an idle stream's
_PATIENCE_S = 3.0  # then any room is enough, to be read (the next message may be smaller) or for what is held


class Admission:
    """The door of one server, with the ``backlogs`` of each kind of work."""

    def __init__(
        self, capacity: Capacity, backlogs: Mapping[str, Backlog], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = Counts()
        self._capacity = capacity
        self._of_caller: defaultdict[str, Share] = defaultdict(Share)
        self._streams_of = Counter[str]()
        self._connections = Connections(capacity.connections)
        self._expected = Expected()
        self._tries = Tries(clock)
        self.crop_room = CropRoom(capacity.n_bytes)
        self._waiting: dict[str, deque[_Turn]] = {}  # callers in turn
        self._pace = Pace(clock)
        self.backlogs = backlogs  # what is under way of each kind of work

    def enter(self, caller: str, connection: str = "") -> "Visit":
        """A new stream of the caller's, to be entered as a context. Raises Refused where there is no room."""
        may_stay = leaves_as_much(self._capacity.streams, self.counts.streams, self._streams_of[caller])
        may_stay = may_stay and self._connections.has_room(caller, connection)
        visit = Visit(self, caller, connection)
        if not (may_stay and self._has_items(visit, 1) and self._has_bytes(caller, 1)):
            self.counts.refused_streams += 1
            raise Refused(self.retry_after_s() if may_stay else max(self.retry_after_s(), _STREAM_RETRY_S))
        return visit

    def retry_after_s(self) -> float:
        """About when what is in flight now will have been answered."""
        return retry_s(self._pace.seconds_for(self.counts.items_in_flight))

    def _fits(self, visit: "Visit", n_items: int) -> bool:
        # What is held has its bytes, however small its caller's share of them has become since.
        return self._has_items(visit, n_items) and (visit.is_held or self._may_read(visit))

    def _has_items(self, visit: "Visit", n_items: int) -> bool:
        """Whether so many items more are within every limit; those that alone exceed one are where they are alone."""
        newcomers = share(self._capacity.items, len(self._of_caller))
        one_does = visit.is_overdue and not visit.items and self._has_items_for(visit.caller, 1, newcomers)
        fits = not visit.items or visit.items + n_items <= self._capacity.items_per_stream
        return one_does or (fits and self._has_items_for(visit.caller, n_items))

    def _has_items_for(self, caller: str, n_items: int, newcomers: int = 0) -> bool:
        """The same for any stream of the caller's, beside so many of a newcomer's."""
        capacity, used, mine = self._capacity, self.counts.items_in_flight, self._of_caller.get(caller, Share()).items
        most = min(capacity.items_per_caller, share(capacity.items, len(self._of_caller)))
        return (not used or used + n_items + newcomers <= capacity.items) and (not mine or mine + n_items <= most)

    def _has_bytes(self, caller: str, n_bytes: int, of_all: int = 0, of_caller: int = 0) -> bool:
        """Whether there is room for so many bytes more, beside those expected of all and of the caller."""
        limit, callers = self._capacity.n_bytes, len(self._of_caller) + (caller not in self._of_caller)
        used = self.counts.bytes_in_flight + of_all
        mine = self._of_caller.get(caller, Share()).n_bytes + of_caller
        return (not used or used + n_bytes <= limit) and (not mine or mine + n_bytes <= share(limit, callers))

    def _may_read(self, visit: "Visit") -> bool:
        """Whether there is the room that a stream asks for beside what others are expected to bring."""
        if visit._next.n_bytes:  # it was woken: those that were let in after it do not count
            return self._has_bytes(visit.caller, visit.asked_bytes)
        expected = self._expected
        return self._has_bytes(visit.caller, visit.asked_bytes, expected.of_all, expected.of_caller[visit.caller])

    def _change(self, visit: "Visit", n_items: int, n_bytes: int, gone: int = 0) -> None:
        visit.items += n_items
        visit.n_bytes += n_bytes
        self.counts.items_in_flight += n_items
        self.counts.bytes_in_flight += n_bytes
        self._pace.note(self.counts.items_in_flight, gone)
        caller = self._of_caller[visit.caller]
        caller.items, caller.n_bytes = caller.items + n_items, caller.n_bytes + n_bytes
        if not caller.n_bytes:  # callers count as such while they have something here
            del self._of_caller[visit.caller]

    def _wake(self) -> None:
        """Let streams that wait go on, callers in turn, as far as there is room for what they have."""
        room, woken = self._capacity.items - self.counts.items_in_flight, True
        while room > 0 and woken:
            woken = False
            for caller in list(self._waiting):
                n_items = self._wake_one(caller)
                woken |= n_items > 0
                room -= n_items
                if room <= 0:
                    break

    def _wake_one(self, caller: str) -> int:
        """Its stream that waits longest, if it has room; its others go behind other callers'. How many items it has."""
        queue = self._waiting.pop(caller)
        if turn := self._first_that_fits(queue):
            queue.remove(turn)
            turn.comes.set_result(None)
            turn.visit._next.set(turn.visit.likely_bytes)  # or those that do not wait would come first, again and again
        if queue:
            self._waiting[caller] = queue
        return turn.n_items if turn else 0

    def _first_that_fits(self, queue: "deque[_Turn]") -> "_Turn | None":
        """Who waits to be read may be passed: the bytes that it waits for may be those of messages held behind it. So
        may a message of a stream that has others here: its caller may be slow to take their answers."""
        caller, too_many = queue[0].visit.caller, math.inf  # bytes; all are one caller's, hundreds under a flood
        for turn in queue if self._has_items_for(caller, 1) else ():
            visit = turn.visit
            if turn.comes.done() or (visit.asked_bytes >= too_many and not visit.is_held):  # or is to be forgotten
                continue
            if self._fits(visit, turn.n_items):
                return turn
            if visit.is_held and not visit.items:
                break
            if self._has_items(visit, turn.n_items):
                too_many = visit.asked_bytes
        return None

    def _forget(self, turn: "_Turn") -> None:
        """It waits no longer."""
        queue = self._waiting.get(turn.visit.caller, deque())
        if turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[turn.visit.caller]
            elif turn.visit.is_held and not turn.visit.items:
                self._wake()  # it was in their way


class Visit:
    """One stream's part in it, from its first message to its end, whatever that is."""

    def __init__(self, admission: Admission, caller: str, connection: str) -> None:
        self.caller = caller
        self._connection = connection
        self.items = 0  # accepted and not answered
        self.n_bytes = 0  # of the messages that hold them, and of the one that is held
        self.is_held = False  # a message that was read and is not accepted yet
        self.is_overdue = False  # it has waited for long
        self._overdue_s = math.inf  # when it will have
        self.last_bytes = 0  # of the last message that was read; the next is taken to have as many
        self.asked_bytes = 1  # that must be free for it to be read: as many as its last message had, 1 after a while
        self._next = admission._expected.of_stream(caller)
        self._crops = set[Crops]()  # of messages that were accepted and not answered
        self._undone = deque[Crops]()  # of those without an answer, and of those behind them
        self._is_stalled = False
        self._admission = admission

    def __enter__(self) -> Self:
        self._admission.counts.streams += 1
        add(self._admission._streams_of, self.caller, 1)
        self._admission._connections.add(self.caller, self._connection, 1)
        return self

    def __exit__(self, *_: object) -> None:
        admission = self._admission
        admission.counts.streams -= 1
        admission.counts.stalled_streams -= self._is_stalled
        add(admission._streams_of, self.caller, -1)
        admission._connections.add(self.caller, self._connection, -1)
        self._abandon()

    def _abandon(self) -> None:
        """What is in flight counts no longer."""
        admission = self._admission
        admission.counts.abandoned_items += self.items
        self._next.set(0)
        for crops in self._crops:
            crops.gone()
        self._crops.clear()
        admission._change(self, -self.items, -self.n_bytes, gone=self.items)
        admission._wake()

    def stall(self, crops: Crops | None) -> None:
        """Its caller takes no answers: what it had is given up, but for the crops of the answer that lies. The stream
        counts until it is gone, since gRPC holds it until then."""
        self._is_stalled = True
        self._admission.counts.stalled_streams += 1
        if crops is not None:
            crops.leave_behind()
            self._crops.remove(crops)
        self._abandon()

    def has_room(self, n_items: int = 1) -> bool:
        """Whether there is room for so many items now."""
        return self._admission._fits(self, n_items)

    async def turn(self, n_items: int = 1) -> None:
        """Wait until there is; callers who wait take turns."""
        loop = asyncio.get_running_loop()
        while not self.has_room(n_items):
            self._next.set(0)
            turn = _Turn(self, n_items, loop.create_future())
            self._admission._waiting.setdefault(self.caller, deque()).append(turn)
            self._overdue_s = min(self._overdue_s, loop.time() + _PATIENCE_S)
            overdue = loop.call_at(self._overdue_s, self._be_overdue) if self.is_held else None
            try:
                while self.asked_bytes > 1 and not self.is_held:
                    if (await asyncio.wait({turn.comes}, timeout=_PATIENCE_S))[0]:
                        break
                    if self._admission._tries.take(self.caller, self.last_bytes, len(self._admission._streams_of)):
                        self.asked_bytes = 1
                        self._admission._wake()
                await turn.comes
            except asyncio.CancelledError:
                self._admission._forget(turn)
                raise
            finally:
                if overdue is not None:
                    overdue.cancel()

    def _be_overdue(self) -> None:
        self.is_overdue = True
        self._admission._wake()

    @property
    def likely_bytes(self) -> int:
        """Of the message that it will bring; 0 where it has brought it."""
        return 0 if self.is_held else self.last_bytes or _FIRST_BYTES

    def expect(self) -> None:
        """A read begins: its message is expected until it is held or late, lest idle streams be read all at once."""
        n_bytes = self.likely_bytes
        late_s = _EXPECTED_S + n_bytes / _BYTES_PER_S
        self._next.set(n_bytes, asyncio.get_running_loop().call_later(late_s, self.expect_no_more))

    def expect_no_more(self) -> None:
        """None will come."""
        self._next.set(0)
        self._admission._wake()

    def hold(self, n_items: int, n_bytes: int) -> bool:
        """Count the bytes of a message that was read; False where there is no room for them, and it is refused."""
        admission = self._admission
        self._next.set(0)
        self.last_bytes = self.asked_bytes = n_bytes
        self.is_held = admission._has_bytes(self.caller, n_bytes)
        self.is_overdue, self._overdue_s = False, math.inf
        if self.is_held:
            admission._change(self, 0, n_bytes)
        else:
            admission.counts.refused_items += n_items
        admission._wake()  # more may have been expected
        return self.is_held

    def refuse(self, n_items: int) -> None:
        """Count the items of the message that was read as not begun; its bytes go with its answer."""
        self.is_held = False
        self._admission.counts.refused_items += n_items

    def accept(self, n_items: int) -> Crops:
        """Count the items of the message that is held; room for the crops of its answer."""
        self.is_held = False
        self._admission.counts.accepted_items += n_items
        self._admission._change(self, n_items, 0)
        crops = Crops(self._admission.crop_room, self.caller, self._undone)
        self._crops.add(crops)
        return crops

    def answered(self, n_items: int, n_bytes: int, crops: Crops | None = None) -> None:
        """A message's answer is written."""
        if crops is not None:
            crops.gone()
            self._crops.remove(crops)
        self._admission.counts.answered_items += n_items
        self._admission._change(self, -n_items, -n_bytes, gone=n_items)
        self._admission._wake()


class _Turn(NamedTuple):
    """A stream that waits for room for so many items."""

    visit: Visit
    n_items: int
    comes: asyncio.Future[None]
