"""Callers of raw gRPC: open-loop ones that send by the clock, and long streams."""

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import grpc
from facenet_proto.v1 import face_pb2 as pb

from chaos.ledger import Ledger
from chaos.stub import DEADLINE_MARK

PATH = "/facenet.v1.FaceService/Embed"
OPTIONS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
]

CALL_S = 3.0  # a call's time, where nothing else is said
PATIENT_S = 10.0  # of calls that all must be answered, though the machine may pause for seconds

Send = Callable[[Any, Ledger, bytes, float], Awaitable[None]]


@asynccontextmanager
async def channels(
    address: str, count: int, options: Sequence[tuple[str, int]] = OPTIONS
) -> AsyncIterator[list[grpc.aio.Channel]]:
    """So many connections."""
    opened = [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]
    try:
        yield opened
    finally:
        await asyncio.gather(*(channel.close() for channel in opened))


class Named(NamedTuple):
    """A connection of a caller who has a token: the subject's name is its own token."""

    channel: Any
    subject: str

    def unary_stream(self, *args: Any, **details: Any) -> Any:
        """As the channel's, for calls with the token."""
        token = (("authorization", f"Bearer {self.subject}"),)
        return partial(self.channel.unary_stream(*args, **details), metadata=token)


@contextmanager
def tokens_of(subjects: Iterable[str]) -> Iterator[str]:
    """A file that lets them in by their names."""
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as file:
        file.writelines(f"{each} {sha256(each.encode()).hexdigest()}\n" for each in sorted(set(subjects)))
        file.flush()
        yield file.name


def stream(channel: grpc.aio.Channel) -> Any:
    """Embed, as bytes in and messages out."""
    return channel.stream_stream(PATH, response_deserializer=pb.EmbedResponse.FromString)


def one_message(channel: Any) -> Any:
    """The same for calls of one message. On the wire they are alike; but where a stream's refusal overtakes its
    writing, grpc.aio tells its caller INTERNAL, of the write, instead of the refusal."""
    return channel.unary_stream(PATH, response_deserializer=pb.EmbedResponse.FromString)


async def one_shot(method: Any, ledger: Ledger, sent: bytes, timeout_s: float, data: bytes | None = None) -> None:
    """A call of one message of one crop."""
    await _call(method, ledger, [sent], ledger.crops.message(sent) if data is None else data, timeout_s)


def message_of(count: int) -> Send:
    """Calls of one message of so many crops, the given one among them."""

    async def send(method: Any, ledger: Ledger, sent: bytes, timeout_s: float) -> None:
        crops = [sent, *(ledger.crops.crop(random.getrandbits(40)) for _ in range(count - 1))]
        await _call(method, ledger, crops, ledger.crops.message(*crops), timeout_s)

    return send


async def _call(method: Any, ledger: Ledger, sent: Sequence[bytes], data: bytes, timeout_s: float) -> None:
    """A call of one message, booked however it ends: as its items did, as REFUSED, or as ``call`` and its status."""
    ledger.offer(len(sent))
    start = time.monotonic()
    call = method(data, timeout=timeout_s)
    if (response := await read(call)) is grpc.aio.EOF:
        told = await _told(call)
        for _ in sent:
            ledger.book(told, time.monotonic() - start)
        return
    ledger.book_response(response, sent, time.monotonic() - start)
    more = await read(call)
    if more is not grpc.aio.EOF:
        ledger.doubled += 0 if more.draining else len(sent)  # that it drains the server says in a message of its own
        call.cancel()


async def read(call: Any) -> Any:
    """The next message, or EOF at whatever end."""
    task = asyncio.current_task()
    try:
        return await call.read()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return grpc.aio.EOF
    except asyncio.CancelledError:  # so grpc.aio says, too, that the server cancelled the call
        if task is not None and task.cancelling():
            call.cancel()
            raise
        return grpc.aio.EOF


async def written(call: Any, data: bytes) -> bool:
    """Write a message; False where the call ended instead."""
    task = asyncio.current_task()
    try:
        await call.write(data)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    except asyncio.CancelledError:  # as above
        if task is not None and task.cancelling():
            call.cancel()
            raise
        return False
    return True


async def _told(call: Any) -> str:
    """How a call without an answer ended."""
    code, trailers = await call.code(), dict(await call.trailing_metadata() or ())
    if code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return f"call {code.name}"
    return "REFUSED" if "grpc-retry-pushback-ms" in trailers else "call RESOURCE_EXHAUSTED without pushback"


async def leave(method: Any, ledger: Ledger, sent: bytes, timeout_s: float) -> None:
    """A call that is cancelled at a random moment within its time."""
    ledger.offer()
    call = method(ledger.crops.message(sent))
    await asyncio.sleep(random.uniform(0, timeout_s))
    call.cancel()
    ledger.book("left")


async def broken(method: Any, ledger: Ledger, sent: bytes, timeout_s: float) -> None:
    """A call whose one crop has a byte too few."""
    await one_shot(method, ledger, sent, timeout_s, ledger.crops.message(sent[:-1]))


async def hurried(method: Any, ledger: Ledger, sent: bytes, timeout_s: float) -> None:
    """A call whose message has a random time, a tenth of ``timeout_s`` to all of it; its crop says until when."""
    within_s = random.uniform(timeout_s / 10, timeout_s)
    until = int((time.monotonic() + within_s) * 1e6).to_bytes(8, "little")
    sent = DEADLINE_MARK + until + sent[16:-8] + sent[:8]
    data = ledger.crops.message(sent, timeout_ms=round(within_s * 1e3))
    await one_shot(method, ledger, sent, timeout_s + 3, data)


async def open_loop(
    opened: Sequence[grpc.aio.Channel | Named],
    ledger: Ledger,
    rate_per_s: float,
    duration_s: float,
    timeout_s: float = CALL_S,
    send: Send = one_shot,
) -> float:
    """Calls by the clock, over the channels in turn; the rate really offered."""
    methods, numbers = itertools.cycle([one_message(c) for c in opened]), itertools.count(random.getrandbits(40))

    def begin() -> Coroutine[Any, Any, None]:
        return send(next(methods), ledger, ledger.crops.crop(next(numbers)), timeout_s)  # type: ignore[return-value]

    return await by_the_clock(begin, rate_per_s, duration_s)


async def by_the_clock(begin: Callable[[], Coroutine[Any, Any, None]], rate_per_s: float, duration_s: float) -> float:
    """Begin so many a second, whatever becomes of them, and wait for all; the rate that was reached. Raises what the
    first of those raised that failed, once all have ended."""
    tasks, start, sent = set[asyncio.Task[None]](), time.monotonic(), 0

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:  # the others' errors are raised at the end
            tasks.discard(task)

    while (now := time.monotonic()) < start + duration_s:
        for _ in range(min(8, int((now - start) * rate_per_s) - sent)):
            task = asyncio.create_task(begin())
            tasks.add(task)
            task.add_done_callback(ended)
            sent += 1
        await asyncio.sleep(0.001)
    reached = sent / (time.monotonic() - start)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if outcome is not None:
            raise outcome
    return reached


async def bidi(channel: grpc.aio.Channel, ledger: Ledger, salt: int, stop: asyncio.Event, pause_s: float) -> str:
    """A long stream: a message, its answer, a pause, until told to stop or ended by the server; how it ended."""
    call = stream(channel)()
    for number in itertools.count():
        if stop.is_set():
            await call.done_writing()
            await read(call)
            return "stopped"
        pixels, start = ledger.crops.crop(number, salt), time.monotonic()
        ledger.offer()
        await written(call, ledger.crops.message(pixels, number=number))
        if (response := await read(call)) is grpc.aio.EOF:
            ledger.book(await _told(call), time.monotonic() - start)
            return str((await call.code()).name)
        ledger.book_response(response, [pixels], time.monotonic() - start)
        if response.draining:
            await call.done_writing()
            ended = await read(call) is grpc.aio.EOF and await call.code()
            return "drained" if ended is grpc.StatusCode.UNAVAILABLE else f"drained, then {ended}"
        await asyncio.sleep(pause_s)
    return "never"
