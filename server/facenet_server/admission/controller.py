"""Admission control of one server: what each caller may have in flight, and when.

A message's bytes count from the moment it was read, its items from the moment they are admitted, both until its answer
is written. A message is read only under a reservation of bytes; its items, then its images, wait in turn with those of
other callers. Waiting goes one way, bytes → items → work: whoever holds a later one waits for no earlier one. Counting
on one event loop: no locks, no I/O.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Self

from facenet_server.admission.fair_semaphore import FairSemaphore
from facenet_server.admission.limits import AdmissionLimits, Connections, Counts, Headroom
from facenet_server.admission.wait_estimator import Throughput, WaitEstimator, clamped_backoff_s
from facenet_server.errors import Overloaded, Refused

_STREAM_BACKOFF_S = 1.0  # at least, where streams or connections are too many: they end whenever their callers like
_FIRST_SHARE = 32  # a stream's first message, which may be as large as any, reserves that part of all bytes: 8 MiB
_IDLE_S, _BYTES_PER_S = 0.2, 20e6  # a read that takes longer, beside the time for its bytes, is an idle stream's


class AdmissionController:
    """The counters, semaphores and estimators of one server.

    ``bytes``, ``items``: of request messages. ``crop_bytes``: of answers. ``images`` (with their pixels),
    ``raw_crops``, ``embeddings``: items at work. ``estimators``: the wait for each kind of work.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        estimators: Mapping[str, WaitEstimator],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = Counts()
        self.limits = limits
        self.estimators = estimators
        self.streams = Headroom(limits.streams)
        self.connections = Connections(limits.connections)
        self.bytes = FairSemaphore(limits.n_bytes, passes=True)
        self.items = FairSemaphore(limits.items, passes=True, caps=[limits.items_per_caller])
        self.crop_bytes = FairSemaphore(limits.n_bytes, passes=True)
        # Half of the pixels stay for others: an image of 50 megapixels gives its own back late.
        self.images = FairSemaphore(limits.images, limits.pixels, caps=[limits.images, limits.pixels // 2])
        self.raw_crops = FairSemaphore(limits.raw_crops)
        self.embeddings = FairSemaphore(limits.embeddings)
        self._throughput = Throughput(clock)

    def open_stream(self, caller: str, connection: str = "") -> "StreamSession":
        """A new stream of the caller's, to be entered as a context. Raises Refused where it is one too many, or where
        there is no room for an item of it."""
        may_stay = self.streams.has_room(caller) and self.connections.has_room(caller, connection)
        if not (may_stay and self.items.has_room(caller, 1)):
            self.counts.refused_streams += 1
            raise Refused(self.backoff_s() if may_stay else max(self.backoff_s(), _STREAM_BACKOFF_S))
        return StreamSession(self, caller, connection)

    def backoff_s(self) -> float:
        """When to come back: about when what is in flight now will have been answered."""
        return clamped_backoff_s(self._throughput.seconds_for(self.counts.items_in_flight))

    def changed(self, n_gone: int = 0) -> None:
        """The items in flight have changed; so many are gone, with an answer or without."""
        self._throughput.note(self.counts.items_in_flight, n_gone)


class StreamSession:
    """One stream's part in admission, from its opening to its end, whatever that is."""

    def __init__(self, admission: AdmissionController, caller: str, connection: str) -> None:
        self.caller = caller
        self._connection = connection
        self._admission = admission
        self._own_items = FairSemaphore(admission.limits.items_per_stream)
        self._last_bytes = admission.limits.n_bytes // _FIRST_SHARE  # of its last message
        self._reserved = 0  # bytes, for the message that is to be read
        self._lapse: asyncio.TimerHandle | None = None
        self._bytes = 0  # of messages that were read and are not answered
        self._acquired = 0  # items of the message that is to be admitted
        self._items = 0  # admitted and not answered
        self._crops = set[ResponseBytes]()  # of messages that were admitted and not answered
        self._is_stalled = False

    def __enter__(self) -> Self:
        admission = self._admission
        admission.counts.streams += 1
        admission.streams.add(self.caller, 1)
        admission.connections.add(self.caller, self._connection, 1)
        return self

    def __exit__(self, *_: object) -> None:
        admission = self._admission
        self._abandon()
        admission.counts.streams -= 1
        admission.counts.stalled_streams -= self._is_stalled
        admission.streams.add(self.caller, -1)
        admission.connections.add(self.caller, self._connection, -1)

    def stall(self, kept: "ResponseBytes | None") -> None:
        """The caller takes no answers: what the stream has is given up, but for the crops of the answer that lies.
        The stream counts until it is gone, since gRPC holds it until then."""
        self._is_stalled = True
        self._admission.counts.stalled_streams += 1
        if kept is not None:
            self._crops.discard(kept)
        self._abandon()

    def _abandon(self) -> None:
        counts, n_items = self._admission.counts, self._items
        self.cancel_reservation()
        counts.abandoned_items += n_items
        for crops in self._crops:
            crops.release()
        self._crops.clear()
        self._release(self._items + self._acquired, self._bytes)
        self._acquired = self._items = 0
        counts.items_in_flight -= n_items
        self._admission.changed(n_items)

    def _release(self, n_items: int, n_bytes: int) -> None:
        """Give items and bytes back."""
        if n_items:
            self._own_items.release("", n_items)
            self._admission.items.release(self.caller, n_items)
        if n_bytes:
            self._bytes -= n_bytes
            self._admission.counts.bytes_in_flight -= n_bytes
            self._admission.bytes.release(self.caller, n_bytes)

    # ---- a message, in the order of its life ----

    @property
    def reserves_at_once(self) -> bool:
        """Whether ``reserve_read`` need not wait."""
        return not self._admission.bytes.would_wait(self.caller, self._next_bytes)

    async def reserve_read(self) -> None:
        """Wait for room for a message like the last one, or for its caller's share of the room where that is less."""
        n_bytes = self._next_bytes
        await self._admission.bytes.acquire(self.caller, n_bytes)
        self._reserved = n_bytes

    @property
    def _next_bytes(self) -> int:
        return min(self._last_bytes, self._admission.bytes.share(self.caller))

    def start_read_timer(self) -> None:
        """From now on the reservation lapses once the stream proves idle, lest idle streams hold all bytes."""
        idle_s = _IDLE_S + self._reserved / _BYTES_PER_S
        self._lapse = asyncio.get_running_loop().call_later(idle_s, self.cancel_reservation)

    def cancel_reservation(self) -> None:
        """No message is expected."""
        self._end_lapse()
        if reserved := self._reserved:
            self._reserved = 0
            self._admission.bytes.release(self.caller, reserved)

    def _end_lapse(self) -> None:
        if self._lapse is not None:
            self._lapse.cancel()
            self._lapse = None

    def charge_bytes(self, n_items: int, n_bytes: int) -> bool:
        """Count the bytes of a message that was read, instead of its reservation; False where they do not fit, and the
        message is refused."""
        self._end_lapse()
        reserved, self._reserved, self._last_bytes = self._reserved, 0, n_bytes
        if not self._admission.bytes.exchange(self.caller, [reserved], [n_bytes]):
            self.count_refused(n_items)
            return False
        self._bytes += n_bytes
        self._admission.counts.bytes_in_flight += n_bytes
        return True

    def count_refused(self, n_items: int) -> None:
        """Count the items of the message that was read as refused; its bytes go with its answer."""
        self._admission.counts.refused_items += n_items

    def acquires_at_once(self, n_items: int) -> bool:
        """Whether ``acquire_items`` need not wait."""
        stream, all_items = self._own_items, self._admission.items
        return not (stream.would_wait("", n_items) or all_items.would_wait(self.caller, n_items))

    async def acquire_items(self, n_items: int) -> None:
        """Wait for room for so many items: first the stream's own, then in turn with other callers."""
        await self._own_items.acquire("", n_items)
        try:
            await self._admission.items.acquire(self.caller, n_items)
        except asyncio.CancelledError:
            self._own_items.release("", n_items)
            raise
        self._acquired = n_items

    def admit(self) -> "ResponseBytes":
        """Count the items that were acquired as accepted; the crops of their answer are to be charged to what it
        returns."""
        n_items, self._acquired = self._acquired, 0
        self._items += n_items
        counts = self._admission.counts
        counts.accepted_items += n_items
        counts.items_in_flight += n_items
        self._admission.changed()
        crops = ResponseBytes(self._admission.crop_bytes, self.caller)
        self._crops.add(crops)
        return crops

    def complete(self, n_items: int, n_bytes: int, crops: "ResponseBytes | None" = None) -> None:
        """A message's answer is written."""
        if crops is not None:
            crops.release()
            self._crops.discard(crops)
        counts = self._admission.counts
        counts.answered_items += n_items
        counts.items_in_flight -= n_items
        self._items -= n_items
        self._release(n_items, n_bytes)
        if n_items:
            self._admission.changed(n_items)


class ResponseBytes:
    """The crops of one answer, from when they are cut until the answer is written. Nobody waits for room for them: an
    item whose crops do not fit is refused."""

    def __init__(self, pool: FairSemaphore, caller: str) -> None:
        self._pool = pool
        self._caller = caller
        self._bytes = 0
        self._is_over = False

    def check(self) -> None:
        """Raises Overloaded where there is no room for any more crops, before work is spent on them."""
        if not self._pool.has_room(self._caller, 1):
            raise self._no_room()

    def take(self, n_bytes: int) -> None:
        """Count so many bytes more. Raises Overloaded where they do not fit."""
        if self._is_over:  # nobody wants the answer
            return
        if not self._pool.exchange(self._caller, [0], [n_bytes]):
            raise self._no_room()
        self._bytes += n_bytes

    def release(self) -> None:
        """The answer is written, or given up."""
        self._is_over = True
        if self._bytes:
            self._pool.release(self._caller, self._bytes)
            self._bytes = 0

    @staticmethod
    def _no_room() -> Overloaded:
        return Overloaded("the crops of earlier answers are not taken yet, and there is no room for more")
