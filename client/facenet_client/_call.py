"""One call to one server, as bytes, and the channel that it goes over."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio

from facenet_client import _answers
from facenet_client._targets import proxy_note
from facenet_client.errors import AnswerTimeout, CallError, ServerFault

T = TypeVar("T")


class Call:
    """A stream of messages to and from one server, as bytes. All methods raise CallError if they fail.

    One task may write, and one may read. An operation that is not in time ends the call. So does a cancelled read,
    since grpc.aio would lose its message.
    """

    def __init__(self, address: str, call: Any) -> None:
        self._address = address
        self._call = call
        self._is_connected = False
        self._late_s: float | None = None  # the time limit of the operation that was late and ended the call
        # The call's first status. If a write fails because of this status, grpc.aio replaces it with a status of its
        # own.
        self._status: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._ended)

    def _ended(self, call: Any) -> None:
        if not self._status.done():
            told = (call.code(), call.details(), call.trailing_metadata())
            self._status.set_result(tuple(_at_once(each) for each in told))

    async def write(self, data: bytes, timeout_s: float | None = None) -> None:
        """Send a message, once there is room for it on the way."""
        writing = self._call.write(data)
        await self._in_time(writing if self._is_connected else self._connected(writing), timeout_s)

    async def done_writing(self) -> None:
        """Tell the server that no message follows."""
        await self._in_time(self._call.done_writing(), None)

    async def read(self, timeout_s: float | None) -> bytes | None:
        """The next message; None where the server has ended the call in order."""
        data = await self._in_time(self._call.read(), timeout_s)
        return None if data is grpc.aio.EOF else bytes(data)

    def cancel(self) -> None:
        """End the call and its running operations, if it has not ended."""
        self._call.cancel()

    async def _connected(self, first: Coroutine[Any, Any, None]) -> None:
        """Do the first write, which waits for the connection. If the call ends meanwhile, grpc.aio never tells the
        write."""
        writing = asyncio.ensure_future(first)
        writing.add_done_callback(retrieve_exception)
        try:
            await asyncio.wait({writing, self._status}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writing.cancel()  # no effect on one that has ended
        if not writing.done():
            raise asyncio.InvalidStateError("the call has ended")
        writing.result()
        self._is_connected = True

    def _give_up(self, after_s: float) -> None:
        if self._call.cancel():  # it had not ended
            self._late_s = after_s

    async def _in_time(self, operation: Awaitable[T], timeout_s: float | None) -> T:
        """Await an operation within its time. It is awaited directly: with a task and a wait for each operation, a
        message would cost a tenth more here."""
        late, n_cancels = None, _cancels()
        if timeout_s is not None:
            late = asyncio.get_running_loop().call_later(timeout_s, self._give_up, timeout_s)
        try:
            return await operation
        except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            raise await self._end() from None
        except asyncio.CancelledError:  # grpc.aio raises this also when the call itself was cancelled
            if _cancels() > n_cancels:
                raise
            raise await self._end() from None
        finally:
            if late is not None:
                late.cancel()

    async def _end(self) -> CallError:
        """The error of a call that ended although an answer was still to come."""
        await self._call.code()
        if self._late_s is not None:
            return AnswerTimeout(f"{self._address}: no answer within {self._late_s:.2g} s")
        code, details, trailers = self._status.result()
        if code is grpc.StatusCode.OK:
            return ServerFault(f"{self._address}: the server ended the stream with messages unanswered")
        return _answers.call_error(self._address, code, details, trailers or ())


def _at_once(ready: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        ready.send(None)
    except StopIteration as given:
        return given.value  # type: ignore[no-any-return]
    raise AssertionError("the call has not ended")


def retrieve_exception(done: asyncio.Future[Any]) -> None:
    """Retrieve an error for which perhaps nobody waits any more, so that asyncio does not log it."""
    if not done.cancelled():
        done.exception()


def _cancels() -> int:
    """How often the running task itself was cancelled, not counting what it waits for."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


class Channel(NamedTuple):
    """A gRPC channel, and the address that it connects to."""

    address: str
    connection: grpc.aio.Channel

    def call(self, path: str) -> Call:
        """A new stream of messages."""
        stream: Any = self.connection.stream_stream(path)
        return Call(self.address, stream())

    async def ask(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        """The one answer to a request. Raises CallError."""
        method: Any = self.connection.unary_unary(path)
        n_cancels = _cancels()
        try:
            return bytes(await method(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s is not None:
                raise AnswerTimeout(
                    f"{self.address}: no answer within {timeout_s:.2g} s{proxy_note(self.address)}"
                ) from None
            raise _answers.call_error(self.address, error.code(), error.details(), error.trailing_metadata()) from None
        except asyncio.CancelledError:  # grpc.aio raises this also when the channel was closed
            if _cancels() > n_cancels:
                raise
            raise CallError("the client was closed") from None
