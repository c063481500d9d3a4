"""A session: one streaming call of the SDK, from inputs to results. Both clients use this code, which may wait.

::

    inputs ──feeder──▶ prepared items ──writer──▶ messages ──balancer──▶ answers ──next_results──▶ results

The feeder prepares inputs ahead. For an ordinary iterable it runs in a thread of its own, which may block. Whenever the
window has room, the writer makes a message of the items that are ready: items of a slow source are sent at once, items
of a fast source in full messages. Results come in the order of the inputs, whichever servers the messages went to, and
however often they were sent.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncIterable, Iterable
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

from facenet_proto.v1 import face_pb2 as pb

from facenet_client import _requests, _wire
from facenet_client._balancer import Balancer
from facenet_client._endpoints import Endpoints
from facenet_client._exchange_stream import Message
from facenet_client._retry import Retry
from facenet_client.errors import AnswerTimeout, CallError, ItemError, ServerOverloaded

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")

_WINDOW_AHEAD = 2  # messages on their way, in addition to those that the server reads ahead
_FIRST_ITEMS = 64  # items under way on a channel before the first answer shows how fast the server is
_QUICK, _LATE = 0.25, 0.5  # shares of a message's time: quick up to the first, late after the second
_ITEM_OVERHEAD_BYTES = 16  # an item's tag and length in its message
_REQUEST_OVERHEAD_BYTES = 1024  # a request's id and options


class _End(NamedTuple):
    """The end of the items or results, with the error that caused it, if there is one."""

    error: BaseException | None


class _Window:
    """How many items may be under way: additive increase, multiplicative decrease (Chiu and Jain 1989), as TCP's.

    Messages that wait at a slow server behind others would run out of time. So a message that is answered late halves
    the window, but only once for all messages that were under way at that time. Quick answers widen a full window by
    its first size in each round trip.
    """

    def __init__(self, items: float) -> None:
        self._limit = self._step = items
        self._under_way = 0
        self._shrunk_at = -math.inf  # on the loop's clock
        self._answered = asyncio.Event()

    async def wait_for_room(self) -> None:
        """Wait until another message may be sent."""
        while self._under_way >= self._limit:
            self._answered.clear()
            await self._answered.wait()

    def add(self, message: Message) -> None:
        """Count the message as under way until it has its answer."""
        n_items, began_at = len(message.chunk.errors), asyncio.get_running_loop().time()
        self._under_way += n_items

        def answered(_: object) -> None:
            if not message.has_left(1 - _LATE):
                if began_at >= self._shrunk_at:
                    self._limit = max(1.0, self._limit / 2)
                    self._shrunk_at = asyncio.get_running_loop().time()
            elif self._under_way >= self._limit and message.has_left(1 - _QUICK):
                self._limit += self._step * n_items / self._limit
            self._under_way -= n_items
            self._answered.set()

        message.answer.add_done_callback(answered)


class Session(Generic[InputT, ResultT]):
    """An open call. ``next_results`` gives each message's results in input order, then None.

    A session opens at most one stream on each channel.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        retry: Retry,
        exchange: _wire.Exchange[InputT, ResultT],
        inputs: Iterable[InputT] | AsyncIterable[InputT],
        limits: pb.Limits,
        timeout_s: float | None,
    ) -> None:
        channels = endpoints.channels()
        self._exchange = exchange
        self._inputs = inputs
        self._limits = limits
        self._timeout_s = timeout_s
        self._endpoints = endpoints
        self._balancer = Balancer(endpoints, channels, retry, exchange)
        self._prepared: asyncio.Queue[Any] = asyncio.Queue()  # bounded by _room
        self._handed: deque[Any] = deque()  # from the feeder's thread, not yet in _prepared
        self._handing = False
        self._thread_room = threading.Semaphore(limits.max_items_per_message)
        self._room: threading.Semaphore | asyncio.Semaphore = self._thread_room  # room for the feeder that is in use
        self._held: list[Any] = []  # taken from the queue, but did not fit: for the next message
        self._untaken = asyncio.Semaphore((limits.max_messages_in_flight + _WINDOW_AHEAD) * len(channels))
        self._window = _Window(math.inf if timeout_s is None else _FIRST_ITEMS * len(channels))
        self._sent: asyncio.Queue[Message | _End] = asyncio.Queue()  # bounded by _untaken
        self._end: _End | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write())]
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
        self._room.release()  # so that the feeder's thread, if it waits for room, sees that the session is closed
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._balancer.close()
        self._sent.put_nowait(_End(CallError("the client was closed")))

    async def next_results(self) -> list[ResultT] | None:
        """The next message's results; None after the last.

        Raises CallError. If the inputs' iterator raised an error, raises that error after the results before it.
        """
        sent = self._end or await self._sent.get()
        try:
            if not isinstance(sent, _End):
                response = await sent.answer
                self._untaken.release()
                return _wire.results(self._exchange, sent.chunk, response)
        except CallError as error:
            sent = _End(error)
        self._end = sent  # for later calls of this method
        if isinstance(sent.error, CallError) and not isinstance(sent.error, ServerOverloaded | AnswerTimeout):
            self._endpoints.forget_info()
        if sent.error is not None:
            raise sent.error
        return None

    # ---- inputs to prepared items ----

    async def _feed(self, inputs: AsyncIterable[InputT], room: asyncio.Semaphore) -> None:
        end: BaseException | None = None
        try:
            async for value in inputs:
                await room.acquire()
                self._prepared.put_nowait(await self._prepare(value))
        except BaseException as error:  # the caller's own error: given back after the results before it
            if self._closed:
                raise
            end = error
        self._prepared.put_nowait(_End(end))

    async def _prepare(self, value: InputT) -> Any:
        if _requests.needs_time(value):
            return await asyncio.to_thread(self._exchange.prepare, value)
        return self._exchange.prepare(value)

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
                self._hand_over(prepared, loop)
        except BaseException as error:  # noqa: BLE001 (not passed on: next_results gives it back)
            end = error
        if not loop.is_closed():
            self._hand_over(_End(end), loop)

    def _hand_over(self, prepared: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Give an item from the feeder's thread to the loop. The loop is woken only once for all items that it has not
        taken over yet."""
        self._handed.append(prepared)
        if not self._handing:
            self._handing = True
            loop.call_soon_threadsafe(self._take_over)

    def _take_over(self) -> None:
        self._handing = False  # first, so that an item that comes from now on wakes the loop again
        while self._handed:
            self._prepared.put_nowait(self._handed.popleft())

    # ---- prepared items to messages ----

    async def _write(self) -> None:
        number, end = 0, None
        try:
            while end is None:
                await self._untaken.acquire()
                await self._window.wait_for_room()
                items, end = await self._next_items()
                message = Message(_wire.chunk(self._exchange, number, items, self._timeout_s), self._timeout_s)
                self._sent.put_nowait(message)
                if message.chunk.request is None:
                    message.answer.set_result(None)
                else:
                    self._window.add(message)
                    await self._balancer.send(message)
                number += 1
            self._balancer.finish()
        except Exception as error:  # noqa: BLE001 (nobody may wait for ever, whatever went wrong)
            end = _End(CallError(f"a message could not be sent: {error!r}"))
        self._sent.put_nowait(end)

    async def _next_items(self) -> tuple[list[Any], _End | None]:
        """The items that are ready: at least one, and at most one message full. And the end, if it was reached."""
        items: list[Any] = []
        room = self._limits.max_message_bytes - _REQUEST_OVERHEAD_BYTES
        left = room
        while len(items) < self._limits.max_items_per_message:
            if items and not self._held and self._prepared.empty():
                break
            item = self._held.pop() if self._held else await self._take()
            if isinstance(item, _End):
                return items, item
            size = 0 if isinstance(item, ItemError) else item.size + _ITEM_OVERHEAD_BYTES
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
