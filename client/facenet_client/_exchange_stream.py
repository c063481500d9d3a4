"""One call to one server: messages go in, and their answers come out in the same order."""

from __future__ import annotations  # the callbacks take the class itself

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from facenet_client import _wire
from facenet_client._call import Channel
from facenet_client._endpoint import Endpoint
from facenet_client.errors import AnswerTimeout, CallError, ServerFault, ServerUnavailable

_STILL_FRESH = 0.95  # share of a message's time; with less left, the request is sent with the time that is left
_END_S = 0.25  # time for a server to end the call when all is answered


class Message:
    """A chunk of a session on its way to a server, with its future answer, its deadline (on the loop's clock; None: no
    deadline) and the number of attempts to send it."""

    def __init__(self, chunk: _wire.Chunk, timeout_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        self.chunk = chunk
        self.timeout_s = timeout_s
        self.deadline = None if timeout_s is None else loop.time() + timeout_s
        self.attempts = 0
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.was_fresh = True  # when it was sent last: with nearly all of its time
        self.alarm: asyncio.TimerHandle | None = None  # for its deadline, while it is under way

    @property
    def remaining_s(self) -> float | None:
        """Seconds until its deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - asyncio.get_running_loop().time())

    def has_left(self, share: float) -> bool:
        """Whether at least this share of the message's time is left, or it has no deadline."""
        return self.timeout_s is None or (self.remaining_s or 0) >= share * self.timeout_s

    def fail(self, error: CallError) -> None:
        """Give the error instead of an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # perhaps nobody waits for it any more


class ExchangeStream:
    """A call with a task that writes and one that reads.

    A server that reads no more messages delays no other stream. Answers are read as soon as they come, even if their
    consumer is slow, so that a call that ends early loses no answer.

    ``on_answer`` gets each message with its response. ``on_end`` gets the messages without an answer, and the error
    that ended the call: even a call that ends normally may have left messages unanswered.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        channel: Channel,
        exchange: _wire.Exchange[Any, Any],
        on_answer: Callable[[ExchangeStream, Message, Any], None],
        on_end: Callable[[ExchangeStream, list[Message], CallError | None], None],
    ) -> None:
        self.endpoint = endpoint
        self.channel = channel
        self._response = exchange.response
        self._on_answer = on_answer
        self._on_end = on_end
        self._call = channel.call(exchange.path)
        self._under_way: deque[Message] = deque()
        self._unsent: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the session's window
        self._error: CallError | None = None  # why the SDK ended the call
        self._ending: asyncio.TimerHandle | None = None  # no message follows: time for the server to end the call
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begin to write and to read."""
        self._tasks = [asyncio.create_task(work) for work in (self._write(), self._read())]

    async def close(self) -> None:
        """End the call, without calling ``on_end``."""
        for task in self._tasks:
            task.cancel()
        self._stop()
        await self.ended()

    async def ended(self) -> None:
        """Wait until the call has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def n_under_way(self) -> int:
        """Messages without an answer."""
        return len(self._under_way)

    @property
    def ends_in_order(self) -> bool:
        """Whether all messages are answered and none follows: then the call soon ends by itself."""
        return self._ending is not None

    def send(self, message: Message) -> None:
        """Send a message, after those before it."""
        request = message.chunk.request
        assert request is not None
        message.attempts += 1
        self._under_way.append(message)
        if (remaining_s := message.remaining_s) is not None:
            message.alarm = asyncio.get_running_loop().call_later(remaining_s, self._too_late, message)
            message.was_fresh = message.has_left(_STILL_FRESH)
            if not message.was_fresh:
                request = _wire.with_time_left(request, remaining_s)
        self._unsent.put_nowait(request)

    def finish(self) -> None:
        """Say that all is answered and no message follows: the server may end the call."""
        self._unsent.put_nowait(None)
        self._ending = asyncio.get_running_loop().call_later(_END_S, self._call.cancel)

    async def _write(self) -> None:
        try:
            while (request := await self._unsent.get()) is not None:
                await self._call.write(request)
            await self._call.done_writing()
        except CallError:  # the reader gets this error, too, after the last answer
            pass
        except Exception as error:  # noqa: BLE001 (nobody may wait for ever, whatever went wrong)
            self._give_up(CallError(f"{self.channel.address}: a message could not be sent: {error!r}"))

    async def _read(self) -> None:
        end: CallError | None = None
        try:
            while (data := await self._call.read(None)) is not None:
                response = self._parsed(data)
                message = self._under_way.popleft()
                _cancel_alarm(message)
                self._on_answer(self, message, response)
            if self._under_way:
                end = ServerFault(f"{self.channel.address}: the server ended the call with messages unanswered")
        except CallError as error:
            end = None if self.ends_in_order else self._error or error
        except Exception as error:  # noqa: BLE001 (nobody may wait for ever)
            end = ServerFault(f"{self.channel.address}: an answer could not be read: {error!r}")
        self._on_end(self, self._stop(), end)

    def _parsed(self, data: bytes) -> Any:
        response = self._response.FromString(data)
        if response.draining:
            raise ServerUnavailable(f"{self.channel.address}: the server is shutting down")
        if any(result.error.reason == "DEVICE_LOST" for result in response.results):
            raise ServerUnavailable(f"{self.channel.address}: the server's device is lost")
        return response

    def _stop(self) -> list[Message]:
        """End the call, and return the messages without an answer."""
        self._call.cancel()
        self._tasks[0].cancel()  # the writer: there is nobody to write to
        if self._ending is not None:
            self._ending.cancel()
        unanswered = list(self._under_way)
        self._under_way.clear()
        for message in unanswered:
            _cancel_alarm(message)
        return unanswered

    def _too_late(self, message: Message) -> None:
        """Handle a message whose time is over. If the message had all of its time on this call, the call ends, because
        the server may hang. If it had waited before, it fails alone, as long as other messages wait: the server had
        less time for it."""
        error = AnswerTimeout(f"{self.channel.address}: no answer within {message.timeout_s:.2g} s")
        message.fail(error)
        if message.was_fresh:
            self.endpoint.lost(error)
            self._give_up(error)
        elif all(each.answer.done() for each in self._under_way):
            self._give_up(CallError(str(error)))

    def _give_up(self, error: CallError) -> None:
        self._error = error
        self._call.cancel()


def _cancel_alarm(message: Message) -> None:
    if message.alarm is not None:
        message.alarm.cancel()
