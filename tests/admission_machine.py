"""Admission's promises as one Hypothesis machine: callers open streams, bring messages, have them worked on, take
answers or leave, in any order, on a loop whose clock the machine turns. The model counts for itself what each has."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from clocks import TurnedLoop
from facenet_server.admission.controller import AdmissionController, ResponseBytes, StreamSession
from facenet_server.admission.fair_semaphore import FairSemaphore
from facenet_server.admission.limits import AdmissionLimits
from facenet_server.admission.wait_estimator import Throughput, Ticket, WaitEstimator
from facenet_server.errors import Overloaded, Refused
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

LIMITS = AdmissionLimits(
    items_per_stream=5,
    items_per_caller=7,
    items=12,
    n_bytes=1000,
    streams=10,
    connections=6,
    images=6,
    pixels=100,
    raw_crops=6,
    embeddings=4,
)
KIND, EACH_S = "work", 0.1
MOST_CROPS = 4  # of one message at work as raw crops

callers = st.sampled_from("abcd")
indexes = st.integers(0, 30)  # of what there is, counted round


class Steady(Throughput):
    """A tenth of a second an item, whatever comes."""

    def known_seconds_for(self, n_items: int) -> float:
        """As it says."""
        return n_items * EACH_S


@dataclass(eq=False)
class Message:
    """One that was read: its items, bytes, crops, and ticket."""

    n_items: int
    n_bytes: int
    ticket: Ticket | None = None
    crops: ResponseBytes | None = None
    crop_bytes: int = 0


@dataclass(eq=False)
class OpenStream:
    """A stream, as the code around admission runs it: what it waits for, and its messages."""

    caller: str
    connection: str
    session: StreamSession
    waits: "asyncio.Task[None] | None" = None
    is_reading: bool = False
    message: Message | None = None  # read, and not admitted yet
    messages: list[Message] = field(default_factory=list)  # not answered
    left: Message | None = None  # the answer that lies, of a stalled stream
    is_stalled: bool = False

    @property
    def items(self) -> int:
        """Admitted and not answered."""
        return sum(each.n_items for each in self.messages)


@dataclass(eq=False)
class Job:
    """Work that waits for seats or has them."""

    caller: str
    cost: tuple[int, ...]
    task: "asyncio.Task[None]"


class AdmissionMachine(RuleBasedStateMachine):
    """The healthy one. A mutated one replaces ``controller``."""

    controller: Callable[..., AdmissionController] = AdmissionController

    def __init__(self) -> None:
        super().__init__()
        self.loop = TurnedLoop()
        self.estimator = WaitEstimator(1, self.loop.clock)
        self.estimator._throughput = Steady(self.loop.clock)
        self.admission = self.controller(LIMITS, {KIND: self.estimator}, self.loop.clock)
        self.streams: list[OpenStream] = []
        self.images: list[Job] = []
        self.crops: list[Job] = []
        self.served: dict[tuple[str, str], Counter[str]] = {}  # while both were backlogged
        self.totals = Counter[str]()

    # ---- streams ----

    @initialize()
    def some_streams_are_open(self) -> None:
        """Two of the first callers, one of the others."""
        for caller in "aabbcd":
            self.a_stream_opens(caller, "1")

    @rule(caller=callers, connection=st.sampled_from("12"))
    def a_stream_opens(self, caller: str, connection: str) -> None:
        """Invariant 4, and 7 of refusals."""
        connection = f"{caller}{connection}"
        mine, used = [each for each in self.streams if each.caller == caller], len(self.streams)
        has_items = self.admission.items.has_room(caller, 1)
        session = self._do(lambda: self.admission.open_stream(caller, connection))
        if isinstance(session, Refused):
            assert 0.02 <= session.retry_after_s <= 5
            connections = {each.connection for each in self.streams}
            assert mine or used == LIMITS.streams or not has_items or len(connections) == LIMITS.connections
            return
        self._do(session.__enter__)
        self.streams.append(OpenStream(caller, connection, session))
        assert used + 1 <= LIMITS.streams
        assert not mine or len(mine) + 1 <= LIMITS.streams - used - 1, "it leaves as much to a newcomer"

    @rule(index=indexes)
    def a_stream_is_to_be_read(self, index: int) -> None:
        """One reader: only where it waits for nothing."""
        if stream := self._stream(index, lambda each: not (each.waits or each.is_reading or each.is_stalled)):
            stream.waits = self.loop.create_task(stream.session.reserve_read())
            self._settle()

    @rule(index=indexes, n_items=st.integers(0, 6), n_bytes=st.sampled_from([1, 20, 100, 300, 600]))
    def a_message_comes(self, index: int, n_items: int, n_bytes: int) -> None:
        """A message is counted, or refused where it has no reservation as large and does not fit."""
        self.a_stream_is_to_be_read(index)
        stream = self._stream(index, lambda each: each.is_reading)
        if stream is None:
            return
        reserved = stream.session._reserved
        stream.is_reading = False
        fits = self._do(lambda: stream.session.charge_bytes(n_items, n_bytes))
        if not fits:
            assert n_bytes > reserved
            self.totals["refused"] += n_items
            return
        stream.message = Message(n_items, n_bytes, self.estimator.begin(stream.caller, stream, n_items))
        stream.waits = self.loop.create_task(stream.session.acquire_items(n_items))
        self._settle()

    @rule(index=indexes)
    def its_time_is_up(self, index: int) -> None:
        """The wait for items ends with a refusal, whose bytes go with its answer."""
        if stream := self._stream(index, lambda each: each.message and each.waits):
            self._cancel(stream)
            message, stream.message = stream.message, None
            assert message is not None
            self._do(lambda: stream.session.count_refused(message.n_items))
            self.totals["refused"] += message.n_items
            self._finish(message)
            stream.messages.append(Message(0, message.n_bytes))

    @rule(index=indexes, n_bytes=st.integers(1, 700))
    def crops_are_cut(self, index: int, n_bytes: int) -> None:
        """Counted, or refused at once."""
        if stream := self._stream(index, lambda each: each.messages and each.messages[-1].crops):
            crops = stream.messages[-1].crops
            if crops and not isinstance(self._do(lambda: crops.take(n_bytes)), Overloaded):
                stream.messages[-1].crop_bytes += n_bytes

    @rule(index=indexes)
    def an_answer_is_written(self, index: int) -> None:
        """The oldest of its stream."""
        if stream := self._stream(index, lambda each: each.messages and not each.is_stalled):
            message = stream.messages.pop(0)
            self._do(lambda: stream.session.complete(message.n_items, message.n_bytes, message.crops))
            self.totals["answered"] += message.n_items
            self._finish(message)

    @rule(index=indexes)
    def a_stream_stalls(self, index: int) -> None:
        """All that it has is given up, but the crops of the answer that lies."""
        if stream := self._stream(index, lambda each: each.messages and not each.is_stalled):
            self._cancel(stream)
            stream.left = stream.messages[0]
            self._do(lambda: stream.session.stall(stream.messages[0].crops))
            self._abandon(stream)
            stream.is_stalled = True

    @rule(index=indexes)
    def a_stream_ends(self, index: int) -> None:
        """Whatever it waits for, and has."""
        if stream := self._stream(index):
            self._cancel(stream)
            self.streams.remove(stream)
            self._do(lambda: stream.session.__exit__(None, None, None))
            if stream.left and stream.left.crops:
                self._do(stream.left.crops.release)
            self._abandon(stream)

    @rule(seconds=st.sampled_from([0.01, 0.3, 3.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        """Reservations of idle streams lapse."""
        self.loop.turn(seconds)
        self._settle()

    # ---- work ----

    @rule(caller=callers, n_images=st.integers(1, 7), pixels=st.integers(1, 120))
    def images_are_to_be_searched(self, caller: str, n_images: int, pixels: int) -> None:
        """They wait for seats with memory for their pixels."""
        self._begin(self.images, self.admission.images, caller, n_images, pixels)

    @rule(caller=callers, messages=st.lists(st.integers(1, MOST_CROPS), min_size=1, max_size=6))
    def crops_are_to_be_embedded(self, caller: str, messages: list[int]) -> None:
        """They wait for seats, in equal shares (invariant 5)."""
        for n_crops in messages:
            self._with_fairness(partial(self._begin, self.crops, self.admission.raw_crops, caller, n_crops))

    @rule(index=indexes)
    def images_are_searched(self, index: int) -> None:
        """They give their seats back."""
        self._end(self.images, self.admission.images, index)

    @rule(some=st.lists(indexes, min_size=1, max_size=4))
    def crops_are_embedded(self, some: list[int]) -> None:
        """They give their seats back."""
        for index in some:
            self._with_fairness(partial(self._end, self.crops, self.admission.raw_crops, index))

    @rule(index=indexes)
    def work_is_given_up(self, index: int) -> None:
        """A wait for seats ends without any."""
        waiting = [job for job in (*self.images, *self.crops) if not job.task.done()]
        if waiting:
            job = waiting[index % len(waiting)]
            job.task.cancel()
            (self.images if job in self.images else self.crops).remove(job)
            self.served.clear()
            self._settle()

    @rule(caller=callers, n_items=st.integers(1, 8), remaining_s=st.floats(0.01, 20))
    def a_message_asks_for_its_wait(self, caller: str, n_items: int, remaining_s: float) -> None:
        """Invariant 6: refused where the predicted wait exceeds its share of the time left; and 7."""
        queued, seated = Counter[str](), Counter[str]()
        for stream in self.streams:
            queued[stream.caller] += stream.items + (stream.message.n_items if stream.message else 0)
            seated[stream.caller] += stream.items
        mine = queued[caller]  # all in other streams than its own, which is new
        certain = mine + seated.total() - seated[caller]
        guessed = sum(max(0, min(n, mine + n_items) - seated[each]) for each, n in queued.items() if each != caller)
        needs_s = EACH_S * (certain / 0.75 + guessed / 0.4)
        backoff_s = self.estimator.refused_for_s(caller, object(), n_items, remaining_s)
        if abs(needs_s - remaining_s) > 1e-6:
            assert (backoff_s > 0) == (needs_s > remaining_s)

    # ---- what always holds ----

    @invariant()
    def items_are_within_limits(self) -> None:
        """Invariant 1."""
        self._within(self._messages(), lambda each: each.n_items, LIMITS.items)
        for stream in self.streams:
            self._within(stream.messages, lambda each: each.n_items, LIMITS.items_per_stream)
        for caller in "abcd":
            self._within(self._messages(caller), lambda each: each.n_items, LIMITS.items_per_caller)

    @invariant()
    def bytes_are_within_the_limit(self) -> None:
        """Invariant 2, reservations included."""
        held = [each.n_bytes for each in (*self._messages(), *self._read())]
        reserved = [stream.session._reserved for stream in self.streams if stream.session._reserved]
        assert sum(held) + sum(reserved) <= LIMITS.n_bytes or len(held) + len(reserved) == 1
        assert self.admission.bytes.used == (sum(held) + sum(reserved),)
        assert self.admission.counts.bytes_in_flight == sum(held)

    @invariant()
    def work_is_within_limits(self) -> None:
        """Invariant 3."""
        at_work = [job for job in self.images if job.task.done()]
        self._within(at_work, lambda job: job.cost[0], LIMITS.images)
        self._within(at_work, lambda job: job.cost[1], LIMITS.pixels)
        self._within([job for job in self.crops if job.task.done()], lambda job: job.cost[0], LIMITS.raw_crops)

    @invariant()
    def callers_get_equal_service(self) -> None:
        """Invariant 5: start-time fair queueing's bound, one largest message of each."""
        for (one, other), served in self.served.items():
            assert abs(served[one] - served[other]) <= 2 * MOST_CROPS

    @invariant()
    def crops_to_be_sent_are_within_the_limit(self) -> None:
        """Invariant 9."""
        lie = [stream.left for stream in self.streams if stream.left]
        with_crops = [each for each in (*self._messages(), *lie) if each.crop_bytes]
        total = sum(each.crop_bytes for each in with_crops)
        assert total <= LIMITS.n_bytes or len(with_crops) == 1
        assert self.admission.crop_bytes.used == (total,)

    @invariant()
    def accepted_is_answered_abandoned_or_in_flight(self) -> None:
        """Invariant 10, and 7 of what is told."""
        counts = self.admission.counts
        assert counts.accepted_items == counts.answered_items + counts.abandoned_items + counts.items_in_flight
        assert counts.items_in_flight == sum(stream.items for stream in self.streams)
        assert counts.answered_items == self.totals["answered"]
        assert counts.abandoned_items == self.totals["abandoned"]
        assert counts.refused_items == self.totals["refused"]
        assert counts.streams == len(self.streams)
        assert counts.stalled_streams == sum(stream.is_stalled for stream in self.streams)
        assert 0.02 <= self.admission.backoff_s() <= 5

    @invariant()
    def nobody_waits_who_need_not(self) -> None:
        """No wake-up is lost."""
        for semaphore in self._semaphores:
            assert semaphore._next()[0] is None
        if not self.admission.bytes.used[0]:
            assert not any(stream.waits and not stream.message for stream in self.streams)
        if not self.admission.items.used[0]:
            assert not any(stream.waits and stream.message for stream in self.streams)

    def teardown(self) -> None:
        """All is zero at rest, and whoever waited has had its turn."""
        while any(stream.is_stalled for stream in self.streams):
            self.a_stream_ends(next(n for n, stream in enumerate(self.streams) if stream.is_stalled))
        for _ in range(1000):
            if not any(stream.waits or stream.messages for stream in self.streams):
                break
            self.an_answer_is_written(0)
            self.loop.turn(0.5)
            self._settle()
        assert not any(stream.waits or stream.messages for stream in self.streams)
        for jobs, semaphore in ((self.images, self.admission.images), (self.crops, self.admission.raw_crops)):
            while jobs:
                self._end(jobs, semaphore, 0)
        while self.streams:
            self.a_stream_ends(0)
        assert not any(any(semaphore.used) or semaphore._flows for semaphore in self._semaphores)
        assert not self.admission.streams._total
        assert not self.admission.connections._streams_on
        assert not self.estimator._of_caller
        self.loop.close()

    # ---- helpers ----

    @property
    def _semaphores(self) -> Sequence[FairSemaphore]:
        of = self.admission
        return of.bytes, of.items, of.crop_bytes, of.images, of.raw_crops

    def _do(self, call: Callable[[], Any]) -> Any:
        """What a call returns or raises, made on the loop."""
        answers: list[Any] = []

        def run() -> None:
            try:
                answers.append(call())
            except (Refused, Overloaded) as error:
                answers.append(error)

        self.loop.call_soon(run)
        self._settle()
        return answers[0]

    def _settle(self) -> None:
        """Let everything that may go on go on."""
        self.loop.settle()
        for stream in self.streams:
            if stream.waits and stream.waits.done():
                stream.waits.result()
                stream.waits = None
                if stream.message is None:
                    stream.is_reading = True
                    self._do(stream.session.start_read_timer)
                else:
                    message, stream.message = stream.message, None
                    message.crops = self._do(stream.session.admit)
                    stream.messages.append(message)
                    if message.ticket:
                        message.ticket.seated(message.n_items)

    def _stream(self, index: int, may: Callable[[OpenStream], object] = lambda _: True) -> OpenStream | None:
        """One of those that may."""
        some = [stream for stream in self.streams if may(stream)]
        return some[index % len(some)] if some else None

    def _messages(self, caller: str | None = None) -> list[Message]:
        """Not answered."""
        return [each for stream in self.streams if caller in (None, stream.caller) for each in stream.messages]

    def _read(self) -> Iterator[Message]:
        """Read and not admitted."""
        return (stream.message for stream in self.streams if stream.message)

    @staticmethod
    def _within(some: list[Any], cost: Callable[[Any], int], limit: int) -> None:
        """All together, unless there is one alone."""
        costs = [cost(each) for each in some if cost(each)]
        assert sum(costs) <= limit or len(costs) == 1

    def _cancel(self, stream: OpenStream) -> None:
        if stream.waits:
            stream.waits.cancel()
            stream.waits = None
            self.loop.settle()

    def _finish(self, message: Message) -> None:
        if message.ticket:
            message.ticket.finished()

    def _abandon(self, stream: OpenStream) -> None:
        self.totals["abandoned"] += stream.items
        for message in filter(None, (*stream.messages, stream.message)):
            self._finish(message)
        stream.messages.clear()
        stream.message, stream.is_reading = None, False

    def _begin(self, jobs: list[Job], semaphore: Any, caller: str, *cost: int) -> None:
        jobs.append(Job(caller, cost, self.loop.create_task(semaphore.acquire(caller, *cost))))
        self._settle()

    def _end(self, jobs: list[Job], semaphore: Any, index: int) -> None:
        at_work = [job for job in jobs if job.task.done()]
        if at_work:
            job = at_work[index % len(at_work)]
            jobs.remove(job)
            self._do(lambda: semaphore.release(job.caller, *job.cost))

    def _with_fairness(self, change: Callable[[], object]) -> None:
        """Count what each pair of callers got while both had a backlog."""
        waited, had = self._backlogged(), self._has()
        change()
        still, has = waited & self._backlogged(), self._has()
        pairs = set(itertools.combinations(sorted(still), 2))
        self.served = {pair: self.served.get(pair, Counter()) for pair in pairs}
        for pair, served in self.served.items():
            served.update(
                {
                    each: len(has[each] - had[each]) and sum(job.cost[0] for job in has[each] - had[each])
                    for each in pair
                }
            )

    def _backlogged(self) -> set[str]:
        return {job.caller for job in self.crops if not job.task.done()}

    def _has(self) -> dict[str, set[Job]]:
        return {each: {job for job in self.crops if job.caller == each and job.task.done()} for each in "abcd"}
