"""Callers: open-loop ones that send by the clock, and those that behave badly."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from facenet_proto.v1 import face_pb2 as pb

from chaos.ledger import Ledger, crop, request
from chaos.stub import DEADLINE_MARK

PATH = "/facenet.v1.FaceService/Embed"
OPTIONS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
]


@asynccontextmanager
async def channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """So many connections."""
    opened = [grpc.aio.insecure_channel(address, options=OPTIONS) for _ in range(count)]
    try:
        yield opened
    finally:
        await asyncio.gather(*(channel.close() for channel in opened))


def stub(channel: grpc.aio.Channel) -> Any:
    """Embed, as bytes in and messages out."""
    return channel.stream_stream(PATH, response_deserializer=pb.EmbedResponse.FromString)


async def one_shot(method: Any, ledger: Ledger, sent: bytes, data: bytes, timeout_s: float) -> None:
    """A call of one message, booked however it ends: as its item did, as REFUSED, or as ``call`` and its status."""
    clock = asyncio.get_running_loop().time
    start = clock()
    ledger.offer()
    call = method(iter((data,)), timeout=timeout_s)
    try:
        response = await call.read()
        if response is not grpc.aio.EOF:
            if response.draining:
                ledger.book("not accepted", clock() - start)
            else:
                ledger.book_result(response.results[0], sent, clock() - start)
            return
    except grpc.aio.AioRpcError:
        pass
    code, trailers = await call.code(), dict(await call.trailing_metadata() or ())
    told = f"call {code.name}" if code is not grpc.StatusCode.RESOURCE_EXHAUSTED else "REFUSED"
    if told == "REFUSED" and "grpc-retry-pushback-ms" not in trailers:
        told = "REFUSED_WITHOUT_PUSHBACK"
    ledger.book(told, clock() - start)


async def leave(method: Any, ledger: Ledger, sent: bytes, data: bytes, timeout_s: float) -> None:
    """A call that is cancelled at a random moment within its time."""
    ledger.offer()
    call = method(iter((data,)))
    await asyncio.sleep(random.uniform(0, timeout_s))
    call.cancel()
    ledger.book("left")


async def broken(method: Any, ledger: Ledger, sent: bytes, data: bytes, timeout_s: float) -> None:
    """A call whose one crop has a byte too few."""
    await one_shot(method, ledger, sent, request(sent[:-1]).SerializeToString(), timeout_s)


async def hurried(method: Any, ledger: Ledger, sent: bytes, data: bytes, timeout_s: float) -> None:
    """A call whose message has a random time up to ``timeout_s``, told in the message; the crop says until when."""
    within_s = random.uniform(timeout_s / 10, timeout_s)
    sent = DEADLINE_MARK + int((time.monotonic() + within_s) * 1e6).to_bytes(8, "little") + sent[16:-8] + sent[:8]
    data = request(sent, timeout_ms=round(within_s * 1e3)).SerializeToString()
    await one_shot(method, ledger, sent, data, timeout_s + 3)


async def open_loop(
    opened: Sequence[grpc.aio.Channel],
    ledger: Ledger,
    rate_per_s: float,
    duration_s: float,
    timeout_s: float = 3.0,
    send: Callable[[Any, Ledger, bytes, bytes, float], Awaitable[None]] = one_shot,
) -> float:
    """Calls by the clock, over the channels in turn; the rate really offered."""
    clock, methods, tasks = asyncio.get_running_loop().time, itertools.cycle([stub(c) for c in opened]), set()
    start, numbers = clock(), itertools.count(random.getrandbits(40))
    sent = 0
    while (now := clock()) < start + duration_s:
        while sent < (now - start) * rate_per_s:
            pixels = ledger.crops.crop(next(numbers))
            data = request(pixels).SerializeToString()
            task = asyncio.ensure_future(send(next(methods), ledger, pixels, data, timeout_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            if sent % 8 == 0:
                await asyncio.sleep(0)
                now = clock()
                if now > start + duration_s:
                    break
        await asyncio.sleep(0.001)
    reached = sent / (clock() - start)
    await asyncio.gather(*tasks)
    return reached


async def upload_for_ever(channel: grpc.aio.Channel, items: int, salt: int) -> None:
    """Write messages of so many items as fast as the connection takes them, and read no answer."""
    call = stub(channel)()
    data = request(*(crop(number, salt) for number in range(items))).SerializeToString()
    try:
        while True:
            await call.write(data)
    except grpc.aio.AioRpcError:
        pass
    finally:
        call.cancel()


async def bidi(channel: grpc.aio.Channel, ledger: Ledger, stream: int, stop: asyncio.Event, pause_s: float) -> str:
    """A long stream: a message, its answer, a pause, until told to stop or ended by the server; how it ended."""
    clock, call = asyncio.get_running_loop().time, stub(channel)()
    for number in itertools.count():
        if stop.is_set():
            await call.done_writing()
            return "stopped"
        pixels, start = ledger.crops.crop(number, stream), clock()
        ledger.offer()
        try:
            await call.write(request(pixels, number=number).SerializeToString())
            response = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            response = grpc.aio.EOF
        if response is grpc.aio.EOF or response.draining:
            code = await call.code() if response is grpc.aio.EOF else grpc.StatusCode.UNAVAILABLE
            if response is not grpc.aio.EOF:
                await call.done_writing()
            ledger.book("not accepted" if response is not grpc.aio.EOF else f"ended {code.name}")
            return "drained" if response is not grpc.aio.EOF else code.name
        if response.retry_after_ms:
            ledger.book("OVERLOADED", clock() - start)
        else:
            ledger.book_result(response.results[0], pixels, clock() - start)
        await asyncio.sleep(pause_s)
    return "never"
