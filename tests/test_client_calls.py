"""One call of the SDK: its reads and writes, and what becomes of those that nobody waits for any more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from facenet_client import AnswerTimeout
from facenet_client._call import Call, Channel
from facenet_client.errors import ServerOverloaded, ServerUnavailable
from scripted import Scripted

EMBED = "/facenet.v1.FaceService/Embed"


@asynccontextmanager
async def called(script: Callable[[Any], Any]) -> AsyncIterator[Call]:
    """A call that the script answers."""
    async with Scripted(script).serve() as target, grpc.aio.insecure_channel(target) as channel:
        call = Channel(target, channel).call(EMBED)
        try:
            yield call
        finally:
            call.cancel()


class Slow:
    """It answers with two messages, the first of them once it is let, and waits."""

    def __init__(self) -> None:
        self.let, self.has_ended = asyncio.Event(), asyncio.Event()

    async def __call__(self, context: Any) -> None:
        try:
            await self.let.wait()
            for data in (b"\x08\x01", b"\x08\x02"):
                await context.write(data)
            await asyncio.Event().wait()
        finally:
            self.has_ended.set()


async def begun_and_left(operation: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
    """Its task, which was cancelled while it waited."""
    task = asyncio.create_task(operation)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
    return task


async def test_whoever_leaves_a_read_ends_its_call() -> None:
    """It would be the reader of a message that nobody gets."""
    script = Slow()
    async with called(script) as call:
        assert (await begun_and_left(call.read(5))).cancelled()
        await asyncio.wait_for(script.has_ended.wait(), 5)
        with pytest.raises(ServerUnavailable, match="CANCELLED"):
            await call.read(5)


async def test_what_is_under_way_when_its_call_is_ended_says_so() -> None:
    async with called(Slow()) as call:
        reading = asyncio.create_task(call.read(5))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(ServerUnavailable, match="CANCELLED"):
            await reading


async def test_what_had_no_time_at_all_was_too_late() -> None:
    async with called(Slow()) as call:
        with pytest.raises(AnswerTimeout):
            await call.read(0)


async def test_a_read_that_is_not_in_time_ends_its_call() -> None:
    script = Slow()
    async with called(script) as call:
        with pytest.raises(AnswerTimeout, match=r"0\.05 s"):
            await call.read(0.05)
        await asyncio.wait_for(script.has_ended.wait(), 5)


async def test_a_write_that_is_not_in_time_ends_its_call() -> None:
    async def fill(call: Call) -> None:
        while True:  # until nothing more fits in what lies unread
            await call.write(bytes(1 << 20), 0.2)

    script = Slow()
    async with called(script) as call:
        with pytest.raises(AnswerTimeout, match=r"0\.2 s"):
            await fill(call)
        await asyncio.wait_for(script.has_ended.wait(), 5)


@asynccontextmanager
async def unconnected(silent: str) -> AsyncIterator[Call]:
    """A call to an address that takes connections and says nothing."""
    async with grpc.aio.insecure_channel(silent) as channel:
        yield Channel(silent, channel).call(EMBED)


async def test_a_write_that_waits_for_its_connection_is_not_in_time_either(silent: str) -> None:
    async with unconnected(silent) as call:
        with pytest.raises(AnswerTimeout, match=r"0\.2 s"):
            await asyncio.wait_for(call.write(b"", 0.2), 5)


OPERATIONS: list[Callable[[Call], Coroutine[Any, Any, object]]] = [
    lambda call: call.write(b""),
    lambda call: call.done_writing(),
    lambda call: call.read(None),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=["write", "done_writing", "read"])
async def test_what_waits_for_its_connection_ends_with_its_call(
    silent: str, operation: Callable[[Call], Coroutine[Any, Any, object]]
) -> None:
    async with unconnected(silent) as call:
        asyncio.get_running_loop().call_later(0.1, call.cancel)
        with pytest.raises(ServerUnavailable, match="CANCELLED"):
            await asyncio.wait_for(operation(call), 5)


async def test_the_end_of_a_call_that_was_there_in_time_is_told_as_it_was() -> None:
    async def busy(context: Any) -> None:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    async with called(busy) as call:
        await asyncio.wait({call._status}, timeout=5)
        call._give_up(1.0)
        with pytest.raises(ServerOverloaded, match="busy"):
            await call.read(5)


async def test_a_task_that_was_cancelled_before_is_still_told_how_its_call_ended() -> None:
    async with called(Slow()) as call:

        async def goes_on() -> None:
            try:
                await asyncio.sleep(5)
            finally:
                await call.read(0.05)

        task = asyncio.create_task(goes_on())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(AnswerTimeout):
            await task
