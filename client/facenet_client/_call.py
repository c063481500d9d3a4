"""One call to one server, as bytes, and the channel that it goes over."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio

from facenet_client import _answers
from facenet_client.errors import AnswerTimeout, CallError, ServerFault

T = TypeVar("T")


class Call:
    """A stream of messages to one server, bytes in both directions. What fails raises a CallError.

    One task may write and one may read. Each write and each read is a task of its own, since grpc.aio loses a message
    whose read is cancelled: only the end of the call cancels them. What is not in time ends the call.
    """

    def __init__(self, address: str, call: Any) -> None:
        self._address = address
        self._call = call
        self._under_way: set[asyncio.Task[Any]] = set()
        self._reading: asyncio.Task[Any] | None = None  # for the next message
        # The first that it had: where a write fails because of it, grpc.aio puts one of its own in its place.
        self._status: tuple[Any, ...] | None = None
        call.add_done_callback(self._ended)

    def _ended(self, call: Any) -> None:
        if self._status is None:
            self._status = tuple(_at_once(each) for each in (call.code(), call.details(), call.trailing_metadata()))

    async def write(self, data: bytes, timeout_s: float | None = None) -> None:
        """Send a message, once there is room for it on the way."""
        await self._in_time(self._begun(self._call.write(data)), timeout_s)

    async def done_writing(self) -> None:
        """Tell the server that no message follows."""
        await self._in_time(self._begun(self._call.done_writing()), None)

    async def read(self, timeout_s: float | None) -> bytes:
        """The next message; there must be one."""
        data = await self._in_time(self._next(), timeout_s)
        self._reading = None
        if data is grpc.aio.EOF:
            raise await self._end()
        return bytes(data)

    async def is_there(self, timeout_s: float) -> bool:
        """Whether the next message, or the end of the call, comes in time: ``read`` gives it, now or later."""
        done, _ = await asyncio.wait({self._next()}, timeout=timeout_s)
        return bool(done)

    async def ended(self, timeout_s: float) -> None:
        """Wait until the server has ended the call, of which no message more is wanted; no longer than that."""
        with suppress(CallError):
            await self._in_time(self._next(), timeout_s)

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        self._call.cancel()
        for operation in self._under_way:
            operation.cancel()

    async def close(self) -> None:
        """End the call, and all that is under way of it."""
        self.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _next(self) -> asyncio.Task[Any]:
        if self._reading is None:
            self._reading = self._begun(self._call.read())
        return self._reading

    def _begun(self, operation: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(operation)
        self._under_way.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, operation: asyncio.Task[Any]) -> None:
        self._under_way.discard(operation)
        if not operation.cancelled():
            operation.exception()  # looked at: whoever waited for it may have left

    async def _in_time(self, operation: asyncio.Task[T], timeout_s: float | None) -> T:
        done, _ = await asyncio.wait({operation}, timeout=timeout_s)
        if not done:
            self.cancel()
            raise AnswerTimeout(f"{self._address}: no answer within {timeout_s:.2g} s")
        if operation.cancelled():  # so grpc.aio says, too, that the server cancelled the call
            raise await self._end()
        if isinstance(operation.exception(), grpc.aio.AioRpcError | asyncio.InvalidStateError):
            raise await self._end()
        return operation.result()

    async def _end(self) -> CallError:
        """The error of a call that ended though an answer was due."""
        await self._call.code()
        assert self._status is not None
        code, details, trailers = self._status
        if code is grpc.StatusCode.OK:
            return ServerFault(f"{self._address}: the server ended the stream with messages unanswered")
        return _answers.call_error(self._address, code, details, trailers or ())


def _at_once(ready: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that has nothing to wait for."""
    try:
        ready.send(None)
    except StopIteration as given:
        return given.value  # type: ignore[no-any-return]
    raise AssertionError("the call has not ended")


class Link(NamedTuple):
    """A channel, and the address at its end."""

    address: str
    channel: grpc.aio.Channel

    def call(self, path: str) -> Call:
        """A new stream of messages."""
        stream: Any = self.channel.stream_stream(path)
        return Call(self.address, stream())

    async def ask(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        """The one answer to a request. Raises CallError."""
        method: Any = self.channel.unary_unary(path)
        task = asyncio.current_task()
        try:
            return bytes(await method(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            raise _answers.call_error(self.address, error.code(), error.details(), error.trailing_metadata()) from None
        except asyncio.CancelledError:  # so grpc.aio says, too, that the channel was closed
            if task is not None and task.cancelling():
                raise
            raise CallError("the client was closed") from None
