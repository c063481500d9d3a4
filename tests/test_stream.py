"""One stream's promises, with a scripted caller instead of gRPC; and a stream with one part replaced by a worse one is
found out."""

import asyncio
import itertools
import math
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest
from calls import until
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.admission.controller import AdmissionController
from facenet_server.admission.limits import AdmissionLimits
from facenet_server.admission.wait_estimator import WaitEstimator
from facenet_server.rpc.stream import End, Method, Stream, StreamLimits
from facenet_server.serving.micro_batch import IMAGES, RAW_CROPS, RequestContext

LIMITS = AdmissionLimits(
    items_per_stream=8,
    items_per_caller=16,
    items=32,
    n_bytes=1 << 20,
    streams=8,
    connections=8,
    images=8,
    pixels=1000,
    raw_crops=8,
    embeddings=8,
)


class Caller:
    """A call as grpc.aio gives it: what the caller sends comes when it is told to, and it takes answers when it likes.

    It notes each read that begins and is cancelled, and how many reads and writes are under way at once.
    """

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.takes = asyncio.Event()
        self.takes.set()
        self.answers: list[Any] = []
        self.reads = self.writes = self.most_reads = self.most_writes = self.cancelled_reads = 0

    async def read(self) -> Any:
        self.reads += 1
        self.most_reads = max(self.most_reads, self.reads)
        try:
            return await self.sent.get()
        except asyncio.CancelledError:
            self.cancelled_reads += 1
            raise
        finally:
            self.reads -= 1

    async def write(self, message: Any) -> None:
        self.writes += 1
        self.most_writes = max(self.most_writes, self.writes)
        await self.takes.wait()
        self.answers.append(message)
        self.writes -= 1

    def peer(self) -> str:
        return "ipv4:10.0.0.7:50312"

    def time_remaining(self) -> float | None:
        return None


class Counted:
    """Requests that count how often they are parsed, and what admission holds then."""

    DESCRIPTOR = pb.EmbedRequest.DESCRIPTOR

    def __init__(self, admission: AdmissionController) -> None:
        self._admission = admission
        self.bytes_held: list[int] = []
        self.items_held: list[int] = []

    def FromString(self, data: bytes) -> Any:
        self.bytes_held.append(self._admission.bytes.used[0])
        self.items_held.append(self._admission.items.used[0])
        return pb.EmbedRequest.FromString(data)


class Scene:
    """A stream over a caller, and the work that it is given, which goes on once ``works`` is set."""

    def __init__(self, stream: type[Stream] = Stream, **limits: Any) -> None:
        self.caller, self.works, self.draining = Caller(), asyncio.Event(), asyncio.Event()
        self.given_up = 0
        self.admission = AdmissionController(LIMITS, {kind: WaitEstimator() for kind in (RAW_CROPS, IMAGES)})
        self.requests = Counted(self.admission)
        bounds = StreamLimits(**{"max_messages": 4, "max_items_per_message": 8, "max_images": 4, **limits})
        to_images: Any = {"image": {}, "crop": {"encoded": {}}}
        method = Method(self.requests, pb.EmbedResponse, "items", self._answer, to_images, RAW_CROPS)  # type: ignore[arg-type]
        context: Any = self.caller
        self.served = asyncio.ensure_future(
            stream(method, context, bounds, self.admission, self.draining).serve("somebody")
        )

    async def _answer(self, request: Any, _: RequestContext) -> Any:
        try:
            await self.works.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return pb.EmbedResponse(id=request.id, results=[pb.EmbedResult() for _ in request.items])

    def sends(self, *numbers: int, n_items: int = 1) -> None:
        """Messages of so many items come."""
        for number in numbers:
            items = [pb.EmbedItem(crop=pb.Image(raw=pb.RawImage(rgb=b"x" * 300, height=10, width=10)))] * n_items
            self.caller.sent.put_nowait(pb.EmbedRequest(id=number, items=items).SerializeToString())

    def has_sent_all(self) -> None:
        """The caller closes its side."""
        self.caller.sent.put_nowait(grpc.aio.EOF)


def scene(stream: type[Stream] = Stream, *, max_write_stall_s: float = 30.0, first_message_s: float = 10.0) -> Scene:
    return Scene(stream, max_write_stall_s=max_write_stall_s, first_message_s=first_message_s)


async def answers_all(stream: type[Stream] = Stream) -> None:
    """Invariant 11 on a stream that is answered, then drained: one reader, one writer, no read cancelled."""
    of = scene(stream)
    of.works.set()
    of.sends(*range(20))
    await until(lambda: len(of.caller.answers) == 20)
    assert [answer.id for answer in of.caller.answers] == list(range(20))
    of.draining.set()
    of.has_sent_all()
    assert (await of.served) == End(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    assert of.caller.answers[-1].draining
    assert (of.caller.most_reads, of.caller.most_writes, of.caller.cancelled_reads) == (1, 1, 0)


async def counts_before_parsing(stream: type[Stream] = Stream) -> None:
    """Invariant 12: a message's bytes and items are counted when it is parsed, and one that is refused never is."""
    of = scene(stream)
    of.sends(0, n_items=3)
    await until(lambda: of.admission.counts.accepted_items == 3)
    assert of.requests.items_held == [3]
    assert of.requests.bytes_held[0] >= 900
    of.admission.bytes.exchange("another", [0], [LIMITS.n_bytes // 2])
    of.caller.sent.put_nowait(
        pb.EmbedRequest(id=9, items=[pb.EmbedItem(crop=pb.Image(encoded=b"x" * 600_000))]).SerializeToString()
    )
    await until(lambda: of.admission.counts.refused_items == 1)
    assert len(of.requests.items_held) == 1
    of.admission.bytes.release("another", LIMITS.n_bytes // 2)
    of.works.set()
    of.has_sent_all()
    assert await of.served is None
    assert of.caller.answers[1].results[0].error.reason == "OVERLOADED"
    assert of.caller.answers[1].retry_after_ms >= 20


async def keeps_the_stuck_answer_alone(stream: type[Stream] = Stream) -> None:
    """Invariant 8: after a write stall what follows the answer that lies is given up, and its room is free."""
    of = scene(stream, max_write_stall_s=0.05)
    of.caller.takes.clear()
    of.sends(0)
    of.works.set()
    await until(lambda: of.caller.writes == 1)
    of.works.clear()
    of.sends(1, 2)
    await until(lambda: of.admission.counts.accepted_items == 3)
    await until(lambda: of.admission.counts.stalled_streams == 1)
    await until(lambda: of.given_up == 2)
    counts = of.admission.counts
    assert (counts.items_in_flight, counts.bytes_in_flight, counts.abandoned_items) == (0, 0, 3)
    assert (of.admission.items.used, of.admission.bytes.used, counts.streams) == ((0,), (0,), 1)
    of.caller.takes.set()
    ended = await of.served
    assert ended is not None
    assert ended.code is grpc.StatusCode.CANCELLED
    assert counts.streams == 0


PROMISES: list[Callable[..., Coroutine[Any, Any, None]]] = [
    answers_all,
    counts_before_parsing,
    keeps_the_stuck_answer_alone,
]


@pytest.mark.parametrize("promise", PROMISES)
async def test_a_stream_keeps_its_promises(promise: Callable[..., Coroutine[Any, Any, None]]) -> None:
    await promise()


class TwoReaders(Stream):
    """It reads the next message beside this one."""

    async def _next(self) -> Any:
        beside = asyncio.ensure_future(self._context.read())
        try:
            return await super()._next()
        finally:
            beside.cancel()


class ParsesFirst(Stream):
    """It parses what it may refuse."""

    async def _accept(self, data: bytes) -> Any:
        self._parsed(data)
        return await super()._accept(data)


class KeepsAll(Stream):
    """A caller that takes nothing loses nothing."""

    def _stall(self) -> None:
        self._is_stalled = True
        self._session.stall(self._leaving)


@pytest.mark.slow
@pytest.mark.parametrize(("promise", "worse"), list(zip(PROMISES, [TwoReaders, ParsesFirst, KeepsAll], strict=True)))
async def test_a_worse_stream_is_found_out(promise: Any, worse: type[Stream]) -> None:
    with pytest.raises((AssertionError, TimeoutError)):
        await asyncio.wait_for(promise(worse), 3)


async def test_a_stream_without_a_first_message_ends_and_gives_its_place_back() -> None:
    of = scene(first_message_s=0.05)
    ended = await of.served
    assert ended is not None
    assert ended.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert of.admission.counts.streams == 0
    assert (of.admission.bytes.used, of.caller.cancelled_reads) == ((0,), 0)


async def test_a_stream_that_had_a_message_may_be_idle_for_as_long_as_it_likes() -> None:
    of = scene(first_message_s=0.05)
    of.works.set()
    of.sends(0)
    await until(lambda: of.caller.answers)
    await asyncio.sleep(0.15)
    of.sends(1)
    of.has_sent_all()
    assert await of.served is None
    assert len(of.caller.answers) == 2


async def test_a_message_whose_time_is_up_while_it_waits_for_room_is_told_so() -> None:
    of = scene()
    await until(lambda: of.caller.reads)
    await of.admission.items.acquire("another", LIMITS.items)
    of.caller.sent.put_nowait(
        pb.EmbedRequest(id=3, timeout_ms=30, items=[pb.EmbedItem(crop=pb.Image(encoded=b"x"))]).SerializeToString()
    )
    await until(lambda: of.caller.answers)
    assert of.caller.answers[0].results[0].error.reason == "TIMED_OUT"
    of.admission.items.release("another", LIMITS.items)
    of.works.set()
    of.sends(*itertools.islice(itertools.count(4), 2))
    of.has_sent_all()
    assert await of.served is None
    assert [answer.id for answer in of.caller.answers] == [3, 4, 5]
    assert math.isfinite(of.admission.backoff_s())


async def test_a_stream_whose_last_message_did_not_fit_is_read_again_within_its_callers_share() -> None:
    of = scene()
    await until(lambda: of.caller.reads)
    for number in range(8):
        await of.admission.bytes.acquire(str(number), 100_000)
    large = pb.EmbedItem(crop=pb.Image(encoded=b"x" * 600_000))
    of.caller.sent.put_nowait(pb.EmbedRequest(id=1, items=[large]).SerializeToString())
    of.works.set()
    of.sends(2)
    await until(lambda: len(of.caller.answers) == 2)
    assert [answer.results[0].error.reason for answer in of.caller.answers] == ["OVERLOADED", ""]
    of.has_sent_all()
    assert await of.served is None
