"""One call to one server: messages go in, and their answers come out in the same order."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from facenet_client import _wire
from facenet_client._call import Call, Link
from facenet_client.errors import AnswerTimeout, CallError, ServerFault, ServerUnavailable

_STILL_FRESH = 0.95  # share of a message's time; with less left the server is told
_END_S = 0.25  # for a server to end a call when all is answered


class Message:
    """A chunk of a stream on its way: its answer to come, until when (on the loop's clock; None: whenever) and within
    how long, and how often it was sent."""

    def __init__(self, chunk: _wire.Chunk, deadline: float | None) -> None:
        self.chunk = chunk
        self.deadline = deadline
        self.attempts = 0
        self.given_s = self.left_s
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def left_s(self) -> float | None:
        """Seconds that are left for its answer."""
        return None if self.deadline is None else max(0.0, self.deadline - asyncio.get_running_loop().time())

    def has_waited(self, left: float) -> bool:
        """Whether so much of its time is gone that less than this share is left."""
        return self.given_s is not None and (self.left_s or 0) < left * self.given_s

    def fail(self, error: CallError) -> None:
        """There will be no answer."""
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # perhaps nobody waits for it any more


class _End(NamedTuple):
    """Nothing more is sent; with the error that is why, if it is one."""

    error: CallError | None


class Lane:
    """A call with a task that writes and one that reads.

    A server that takes no more messages holds up no other lane. Answers are taken as they come, however slow their
    consumer, so that a call that ends early loses none.

    ``on_answer`` gets each message with its response. ``on_end`` is told how the call ended, and the messages that
    have no answer: a call that ends in order is no sign that all were answered.
    """

    def __init__(
        self,
        link: Link,
        exchange: _wire.Exchange[Any, Any],
        on_answer: Callable[["Lane", Message, Any], None],
        on_end: Callable[["Lane", list[Message], CallError | None], None],
    ) -> None:
        self.link = link
        self._response = exchange.response
        self._on_answer = on_answer
        self._on_end = on_end
        self._call: Call = link.call(exchange.path)
        self._unanswered: deque[Message] = deque()
        self._unsent: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the stream's window, as is the other
        self._sent: asyncio.Queue[_End | None] = asyncio.Queue()  # None: a message; bounded by the window
        self._alarm: asyncio.TimerHandle | None = None  # when the first of them is out of time, or earlier
        self._late: Message | None = None  # out of time
        self._tasks: list[asyncio.Task[None]] = []
        self._is_finishing = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(work) for work in (self._write(), self._read())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()  # no effect on one that has ended
        self._hush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._call.close()

    @property
    def ends_in_order(self) -> bool:
        """Whether all is answered, and nothing follows: it soon ends by itself."""
        return self._is_finishing and not self._unanswered

    async def ended(self) -> None:
        """Wait until it has ended by itself."""
        await asyncio.wait(self._tasks)
        await self._call.close()

    @property
    def under_way(self) -> int:
        """Messages without an answer."""
        return len(self._unanswered)

    def send(self, message: Message) -> None:
        """Send a message, after those before it."""
        assert message.chunk.request is not None
        message.attempts += 1
        self._unanswered.append(message)
        if message.deadline is not None and (self._alarm is None or message.deadline < self._alarm.when()):
            self._keep_time()
        request = message.chunk.request
        if message.has_waited(_STILL_FRESH) and message.left_s is not None:
            request = _wire.with_time_left(request, message.left_s)
        self._unsent.put_nowait(request)

    def finish(self) -> None:
        """Tell the server that no message follows."""
        self._is_finishing = True
        self._unsent.put_nowait(None)

    async def _write(self) -> None:
        end = None
        try:
            while (request := await self._unsent.get()) is not None:
                self._sent.put_nowait(None)
                await self._call.write(request)
            await self._call.done_writing()
        except CallError as error:
            end = error
        except Exception as error:  # noqa: BLE001 (nobody may wait for ever, whatever went wrong)
            end = CallError(f"{self.link.address}: a message could not be sent: {error!r}")
        self._sent.put_nowait(_End(end))  # behind what can still be read

    async def _read(self) -> None:
        end = await self._read_answers()
        if self._late is not None:
            end = self._too_late(self._late)
        if end is None:  # in order; a cancel would count as one at the server, and as abuse at proxies
            await self._call.ended(_END_S)
        self._call.cancel()
        self._hush()
        self._tasks[0].cancel()  # the writer: there is nobody to write to
        unanswered = list(self._unanswered)
        self._unanswered.clear()
        self._on_end(self, unanswered, end)

    async def _read_answers(self) -> CallError | None:
        """Until the call ends; how it did."""
        try:
            while self._late is None:
                if (sent := await self._sent.get()) is not None:
                    return sent.error
                response = await self._next_response()
                self._on_answer(self, self._unanswered.popleft(), response)
            return None
        except CallError as error:
            return error
        except Exception as error:  # noqa: BLE001 (nobody may wait for ever)
            return ServerFault(f"{self.link.address}: an answer could not be read: {error!r}")

    def _keep_time(self) -> None:
        """Once one of the messages under way is out of time, end the call. One that was sent again fails alone, while
        there are others: it may have had less time than those before it."""
        self._hush()
        late = [message for message in self._unanswered if message.left_s == 0]
        first = next((message for message in late if message.attempts == 1), None)
        if late and (first or len(late) == len(self._unanswered)):
            self._late = first or late[0]
            self._call.cancel()
            return
        for message in late:
            message.fail(self._too_late(message))
        deadlines = [each.deadline for each in self._unanswered if each.deadline is not None and each not in late]
        if deadlines:
            self._alarm = asyncio.get_running_loop().call_at(min(deadlines), self._keep_time)

    def _too_late(self, message: Message) -> AnswerTimeout:
        return AnswerTimeout(f"{self.link.address}: no answer within {message.given_s:.2g} s")

    def _hush(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def _next_response(self) -> Any:
        response = self._response.FromString(await self._call.read(None))
        if response.draining:
            raise ServerUnavailable(f"{self.link.address}: the server is shutting down")
        if any(result.error.reason == "DEVICE_LOST" for result in response.results):
            raise ServerUnavailable(f"{self.link.address}: the server's device is lost")
        return response
