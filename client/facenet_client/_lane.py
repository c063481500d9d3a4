"""One call to one server: messages go in, and their answers come out in the same order."""

import asyncio
from types import TracebackType
from typing import Any, NamedTuple, Self

from facenet_client import _wire
from facenet_client._connections import Call, Link
from facenet_client.errors import CallError, ServerFault, ServerUnavailable


class _End(NamedTuple):
    """Nothing more comes; with the error that is why, if it is one."""

    error: CallError | None


class Lane:
    """A call with a task that writes and one that reads: a server that takes no more messages holds up no other lane,
    and answers are taken as they come, however slow their consumer, so that a call that ends early loses none.

    ``under_way`` counts the messages without an answer.
    """

    def __init__(self, link: Link, exchange: _wire.Exchange[Any, Any], timeout_s: float | None) -> None:
        self.under_way = 0
        self._address = link.address
        self._response = exchange.response
        self._timeout_s = timeout_s
        self._call: Call = link.call(exchange.path)
        self._unsent: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the stream's window, as are the others
        self._sent: asyncio.Queue[_End | None] = asyncio.Queue()  # None: a message
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(work) for work in (self._write(), self._read())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()  # no effect on one that has ended
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._answers.put_nowait(_End(CallError("the client was closed")))

    def send(self, request: bytes) -> None:
        """Send a message, after those before it."""
        self.under_way += 1
        self._unsent.put_nowait(request)

    def finish(self) -> None:
        """Tell the server that no message follows."""
        self._unsent.put_nowait(None)

    async def answer(self) -> Any:
        """The answer to the next message, in the order of sending. Raises CallError where there will be none."""
        answer = await self._answers.get()
        if not isinstance(answer, _End):
            return answer
        self._answers.put_nowait(answer)  # for whoever asks again
        raise answer.error or ServerFault(f"{self._address}: there is no answer")

    async def _write(self) -> None:
        end = None
        try:
            while (request := await self._unsent.get()) is not None:
                self._sent.put_nowait(None)
                await self._call.write(request)
            await self._call.done_writing()
        except CallError as error:
            end = error
        except Exception as error:  # nobody may wait for ever, whatever went wrong
            end = CallError(f"{self._address}: a message could not be sent: {error!r}")
        self._sent.put_nowait(_End(end))  # behind what can still be read

    async def _read(self) -> None:
        end: CallError | None
        try:
            while (sent := await self._sent.get()) is None:
                self._answers.put_nowait(await self._next_response())
                self.under_way -= 1
            end = sent.error
        except CallError as error:
            end = error
        except Exception as error:  # as above
            end = ServerFault(f"{self._address}: an answer could not be read: {error!r}")
        self._answers.put_nowait(_End(end))

    async def _next_response(self) -> Any:
        response = self._response.FromString(await self._call.read(self._timeout_s))
        if response.draining:
            raise ServerUnavailable(f"{self._address}: the server is shutting down")
        return response
