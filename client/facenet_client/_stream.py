"""One streaming call, from inputs to results: what waits, for both clients.

::

    inputs ──feeder──▶ prepared items ──writer──▶ messages sent ──reader──▶ answers ──next_results──▶ results

The feeder prepares inputs ahead: those of an ordinary iterable in a thread of the stream's own, which may block. The
writer sends what is ready whenever the window has room: a slow source's items leave at once, a fast one's leave in
full messages. The reader takes answers as they come, however slow their consumer, so that a call that ends early
loses none. One task writes and one reads; no read is ever cancelled but by ending the call.
"""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import threading
from collections.abc import AsyncIterable, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import grpc
import grpc.aio
from facenet_proto.v1 import face_pb2 as pb

from facenet_client import _wire
from facenet_client._connections import Link, end_of
from facenet_client.errors import AnswerTimeout, CallError, ItemError, ServerFault, ServerUnavailable

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")

_WINDOW_AHEAD = 2  # messages under way while the server holds as many as it reads ahead
_ITEM_OVERHEAD_BYTES = 16  # an item's tag and length in its message
_REQUEST_OVERHEAD_BYTES = 1024  # a request's id and options


class _End(NamedTuple):
    """Nothing more comes; with the error that is why, if it is one."""

    error: BaseException | None


class _Answer(NamedTuple):
    chunk: _wire.Chunk
    response: Any


class Stream(Generic[InputT, ResultT]):
    """An open call. ``next_results`` gives each message's results in input order, then None.

    ``on_failure`` is told when the call as a whole fails.
    """

    def __init__(
        self,
        link: Link,
        exchange: _wire.Exchange[InputT, ResultT],
        inputs: Iterable[InputT] | AsyncIterable[InputT],
        limits: pb.Limits,
        timeout_s: float | None,
        on_failure: Callable[[], None],
    ) -> None:
        self._target = link.address
        self._exchange = exchange
        self._inputs = inputs
        self._limits = limits
        self._timeout_s = timeout_s
        self._on_failure = on_failure
        self._call = link.call(exchange.path)
        self._prepared: asyncio.Queue[Any] = asyncio.Queue()  # bounded by the room
        self._thread_room = threading.Semaphore(limits.max_items_per_message)
        self._room: threading.Semaphore | asyncio.Semaphore = self._thread_room  # of the feeder that is at work
        self._held: list[Any] = []  # taken from the queue, but for the next message
        self._window = asyncio.Semaphore(limits.max_messages_in_flight + _WINDOW_AHEAD)
        self._sent: asyncio.Queue[_wire.Chunk | _End] = asyncio.Queue()  # bounded by the window
        self._answers: asyncio.Queue[_Answer | _End] = asyncio.Queue()  # likewise
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(work) for work in (self._write(), self._read())]
        if isinstance(self._inputs, AsyncIterable):
            self._room = room = asyncio.Semaphore(self._limits.max_items_per_message)
            self._tasks.append(asyncio.create_task(self._feed(self._inputs, room)))
        else:
            # A daemon: a source that blocks for ever must not keep the process alive.
            work = (self._inputs, self._thread_room, asyncio.get_running_loop())
            threading.Thread(target=self._feed_in_thread, args=work, daemon=True).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._room.release()  # the feeder's thread, if it waits for room, sees that it is over
        self._call.cancel()  # no effect on one that has ended
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._answers.put_nowait(_End(CallError(f"{self._target}: the client was closed")))

    async def next_results(self) -> list[ResultT] | None:
        """The next message's results; None after the last.

        Raises CallError, and whatever the inputs' iterator raised, in its place.
        """
        answer = await self._answers.get()
        if isinstance(answer, _End):
            self._answers.put_nowait(answer)  # for whoever asks again
            if isinstance(answer.error, CallError):
                self._on_failure()
            if answer.error is not None:
                raise answer.error
            return None
        self._window.release()
        return _wire.results(self._exchange, answer.chunk, answer.response)

    async def _read(self) -> None:
        end: BaseException | None
        try:
            while not isinstance(chunk := await self._sent.get(), _End):
                response = await self._response() if chunk.request is not None else None
                self._answers.put_nowait(_Answer(chunk, response))
            end = chunk.error
        except CallError as error:
            end = error
        except Exception as error:  # nobody may wait for ever, whatever went wrong
            end = ServerFault(f"{self._target}: an answer could not be read: {error!r}")
        self._answers.put_nowait(_End(end))

    async def _response(self) -> Any:
        read = asyncio.ensure_future(self._call.read())
        read.add_done_callback(lambda read: read.cancelled() or read.exception())  # may be left by its waiter
        await asyncio.wait({read}, timeout=self._timeout_s)
        if not read.done():
            raise AnswerTimeout(f"{self._target}: no answer within {self._timeout_s:g} s")
        try:
            data = read.result()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            raise await end_of(self._call, self._target) from None
        if data is grpc.aio.EOF:
            raise await end_of(self._call, self._target)
        response = self._exchange.response.FromString(data)
        if response.draining:
            raise ServerUnavailable(f"{self._target}: the server is shutting down")
        return response

    async def _feed(self, inputs: AsyncIterable[InputT], room: asyncio.Semaphore) -> None:
        end: BaseException | None = None
        try:
            async for value in inputs:
                await room.acquire()
                self._prepared.put_nowait(await asyncio.to_thread(self._exchange.prepare, value))
        except BaseException as error:  # the caller's own: handed back to the caller in its place
            if self._closed:
                raise
            end = error
        self._prepared.put_nowait(_End(end))

    def _feed_in_thread(
        self, inputs: Iterable[InputT], room: threading.Semaphore, loop: asyncio.AbstractEventLoop
    ) -> None:
        end: BaseException | None = None
        try:
            for value in inputs:
                prepared = self._exchange.prepare(value)
                room.acquire()
                if self._closed:
                    return
                loop.call_soon_threadsafe(self._prepared.put_nowait, prepared)
        except BaseException as error:  # as above
            end = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._prepared.put_nowait, _End(end))

    async def _write(self) -> None:
        try:
            number, end = 0, None
            while end is None:
                await self._window.acquire()
                items, end = await self._next_items()
                chunk = _wire.chunk(self._exchange, number, items)
                self._sent.put_nowait(chunk)
                if chunk.request is not None:
                    await self._call.write(chunk.request.SerializeToString())
                number += 1
            await self._call.done_writing()
            self._sent.put_nowait(end)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._sent.put_nowait(_End(await end_of(self._call, self._target)))  # behind what the reader can still get
        except Exception as error:  # as above
            self._sent.put_nowait(_End(CallError(f"{self._target}: a message could not be sent: {error!r}")))

    async def _next_items(self) -> tuple[list[Any], _End | None]:
        """What is ready, one item at least and one message's worth at most; and the end, if it is there."""
        items: list[Any] = []
        room = self._limits.max_message_bytes - _REQUEST_OVERHEAD_BYTES
        left = room
        while len(items) < self._limits.max_items_per_message:
            if items and not self._held and self._prepared.empty():
                break
            item = self._held.pop() if self._held else await self._take()
            if isinstance(item, _End):
                return items, item
            size = 0 if isinstance(item, ItemError) else item.ByteSize() + _ITEM_OVERHEAD_BYTES
            if size > room:
                item, size = _wire.too_large(size, room), 0
            if size > left:
                self._held.append(item)
                break
            items.append(item)
            left -= size
        return items, None

    async def _take(self) -> Any:
        item = await self._prepared.get()
        self._room.release()
        return item
