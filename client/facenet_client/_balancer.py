"""Sends a session's messages over exchange streams, until each has its answer. Messages that a lost or busy server did
not answer are sent again, to another server or later."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from facenet_client import _wire
from facenet_client._call import Channel
from facenet_client._endpoint import Endpoint
from facenet_client._endpoints import LONGEST_WAIT_S, Endpoints
from facenet_client._exchange_stream import ExchangeStream, Message
from facenet_client._retry import Retry
from facenet_client.errors import AnswerTimeout, CallError, ServerOverloaded, ServerUnavailable


class Balancer:
    """Least outstanding: a message goes to the stream with the fewest messages under way. Streams of servers with room
    come first. Each channel has one stream at most, which is opened when all other streams are busy.

    ``send`` never raises: an error of a message is set on its ``answer``.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        channels: Sequence[tuple[Endpoint, Channel]],
        retry: Retry,
        exchange: _wire.Exchange[Any, Any],
    ) -> None:
        self._endpoints = endpoints
        self._unused = deque(channels)  # that have no stream
        self._retry = retry
        self._exchange = exchange
        self._streams: list[ExchangeStream] = []
        self._resending: set[asyncio.Task[None]] = set()
        self._unanswered: set[Message] = set()
        self._has_answered = self._is_finishing = self._is_closed = False

    async def close(self) -> None:
        """End every stream. Whoever waits for an answer gets an error."""
        self._is_closed = True
        resending = list(self._resending)
        for task in resending:
            task.cancel()
        await asyncio.gather(*resending, return_exceptions=True)
        for stream in list(self._streams):
            if stream.ends_in_order:
                self._endpoints.close_in_background(stream.ended())
            else:
                await stream.close()
        for message in list(self._unanswered):
            message.fail(CallError("the client was closed"))

    async def send(self, message: Message) -> None:
        """Send a message, and do not wait for its answer."""
        self._unanswered.add(message)
        message.answer.add_done_callback(lambda _: self._forget(message))
        await self._send(message)

    def finish(self) -> None:
        """Say that no further messages come: the streams end when all messages are answered."""
        self._is_finishing = True
        self._finish_streams()

    async def _send(self, message: Message) -> None:
        try:
            stream = self._choose() or await self._wait_for_stream(message)
        except CallError as error:
            message.fail(error)
        except Exception as error:  # noqa: BLE001 (nobody may wait for ever, whatever went wrong)
            message.fail(CallError(f"a message could not be sent: {error!r}"))
        else:
            stream.endpoint.used()
            stream.send(message)

    async def _wait_for_stream(self, message: Message) -> ExchangeStream:
        left_s = LONGEST_WAIT_S if message.remaining_s is None else message.remaining_s
        async with self._endpoints.within(left_s, message.timeout_s or LONGEST_WAIT_S):
            while (stream := self._choose()) is None:
                await self._endpoints.wait_for_room(message.remaining_s)
            return stream

    def _choose(self) -> ExchangeStream | None:
        """The stream with the fewest messages, or a new one if all streams have messages. None if no server can be
        used."""
        least = min((each for each in self._streams if each.endpoint.is_ready), key=_load, default=None)
        if least is not None and not any(_load(least)):
            return least
        free = [  # of servers that are full, only the first stream
            (endpoint, channel)
            for endpoint, channel in self._unused
            if endpoint.is_ready and not (endpoint.opens_in_s if least is None else endpoint.full_until)
        ]
        if not free:
            return least
        endpoint, channel = min(free, key=lambda each: each[0].full_until)
        self._unused.remove((endpoint, channel))
        stream = ExchangeStream(endpoint, channel, self._exchange, self._on_answer, self._on_end)
        stream.open()
        self._streams.append(stream)
        return stream

    def _on_answer(self, stream: ExchangeStream, message: Message, response: Any) -> None:
        if response.retry_after_ms and all(result.error.reason == "OVERLOADED" for result in response.results):
            told = f"the server has no room now; again in {response.retry_after_ms} ms"
            self._refused(stream, [message], ServerOverloaded(told, retry_after_s=response.retry_after_ms / 1000))
        elif not message.answer.done():
            self._retry.answered()
            self._has_answered = True
            message.answer.set_result(response)

    def _on_end(self, stream: ExchangeStream, unanswered: list[Message], error: CallError | None) -> None:
        self._streams.remove(stream)
        self._unused.append((stream.endpoint, stream.channel))
        if isinstance(error, ServerOverloaded):
            self._refused(stream, unanswered, error)
        elif error is not None:
            if isinstance(error, ServerUnavailable | AnswerTimeout):
                stream.endpoint.lost(error)
            self._resend(unanswered, error)

    def _refused(self, stream: ExchangeStream, messages: Sequence[Message], error: ServerOverloaded) -> None:
        """Send messages that a server has no room for to another server, at once, or as soon as a server has room.

        Asking again costs a token, unless the session has had an answer already. Such a session is worth waiting for,
        and adds little load: its window is full of messages that wait.
        """
        if self._retry.is_on and error.retry_after_s is not None:  # without retries, a refusal delays no other call
            stream.endpoint.refused(error)
        self._resend(messages, error, is_free=self._has_answered or self._endpoints.room_in_s() == 0)

    def _resend(self, messages: Sequence[Message], error: CallError, *, is_free: bool = True) -> None:
        """Send messages without an answer again, after a wait, if that can help. Otherwise they fail with the error."""
        room_in_s = self._endpoints.room_in_s()
        waiting = [each for each in messages if not each.answer.done()]
        waits_s = [self._retry.wait_s(error, each.attempts, each.remaining_s, room_in_s) for each in waiting]
        helps = not self._is_closed and any(wait_s is not None for wait_s in waits_s)
        may_ask = helps and (is_free or self._retry.take())
        for message, wait_s in zip(waiting, waits_s, strict=True):
            if wait_s is None or not may_ask:
                message.fail(error)
            else:
                task = asyncio.create_task(self._send_after(wait_s, message))
                self._resending.add(task)
                task.add_done_callback(self._resending.discard)

    async def _send_after(self, wait_s: float, message: Message) -> None:
        await asyncio.sleep(wait_s)
        await self._send(message)

    def _forget(self, message: Message) -> None:
        self._unanswered.discard(message)
        self._finish_streams()

    def _finish_streams(self) -> None:
        if self._is_finishing and not self._unanswered:
            for stream in self._streams:
                stream.finish()


def _load(stream: ExchangeStream) -> tuple[float, int]:
    return stream.endpoint.full_until, stream.n_under_way
