"""A stream's messages over its lanes, until each has its answer: what a lost or busy server did not answer is sent
again, elsewhere or later.

Face inference changes nothing on the server, so that a message may safely be sent twice; its answer is given once. The
SDK does this itself, message by message: gRPC's own retries know calls only, and end with the first answer.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from facenet_client import _wire
from facenet_client._call import Link
from facenet_client._connections import Connections
from facenet_client._lane import Lane, Message
from facenet_client._patience import pause_s
from facenet_client.errors import AnswerTimeout, CallError, ServerOverloaded, ServerUnavailable

_ATTEMPTS_WITHOUT_DEADLINE = 30  # about a minute


class Lanes:
    """At most one lane on each link, opened where all others are busy. One whose server says that it is not ready gets
    no messages until it is.

    ``send`` never fails: what goes wrong with a message sits on its answer.
    """

    def __init__(self, connections: Connections, links: Sequence[Link], exchange: _wire.Exchange[Any, Any]) -> None:
        self._connections = connections
        self._exchange = exchange
        self._free = deque(links)  # that have no lane
        self._lanes: list[Lane] = []
        self._opening = asyncio.Lock()
        self._waits: set[asyncio.Task[None]] = set()  # of messages to be sent again
        self._open: set[Message] = set()  # that have no answer
        self._answered = False  # any message
        self._finished = self._ended = False

    async def close(self) -> None:
        """End every lane, and tell whoever waits for an answer."""
        self._ended = True
        waits = list(self._waits)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        for lane in list(self._lanes):
            if lane.ends_in_order:
                self._connections.end_beside(lane.ended())
            else:
                await lane.__aexit__(None, None, None)
        for message in list(self._open):
            message.fail(CallError("the client was closed"))

    async def send(self, message: Message) -> None:
        """Put a message on a lane; its answer comes whenever it does."""
        self._open.add(message)
        message.answer.add_done_callback(lambda _: self._closed(message))
        await self._send(message)

    def finish(self) -> None:
        """No further messages come: lanes end once all are answered."""
        self._finished = True
        self._finish_lanes()

    async def _send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(message.left_s):
                lane = await self._lane(message)
        except CallError as error:  # first: an AnswerTimeout, here of a check, is a TimeoutError too
            message.attempts += 1
            self._again([message], error)
        except TimeoutError:
            message.fail(ServerUnavailable(f"no server within the message's time: {self._connections.trouble}"))
        except Exception as error:  # noqa: BLE001 (nobody may wait for ever, whatever went wrong)
            message.fail(CallError(f"a message could not be sent: {error!r}"))
        else:
            lane.send(message)

    async def _lane(self, message: Message) -> Lane:
        """The lane with the fewest messages; a new one where all have some. Raises CallError, also where a server that
        has no room rests for longer than the message has time."""
        async with self._opening:
            ready = [lane for lane in self._lanes if self._connections.health.is_ready(lane.link.address)]
            lane = min(ready, key=self._load, default=None)
            links = self._free if ready else [*self._free, *(lane.link for lane in self._lanes)]
            if links and (lane is None or any(self._load(lane))):
                link = min(links, key=self._trouble)
                if lane is None or self._connections.is_free(link.address):  # no message that has a lane waits for one
                    lane = await self._lane_on(link, message)
        assert lane is not None
        self._connections.health.follow(lane.link)
        return lane

    def _load(self, lane: Lane) -> tuple[float, int]:
        return self._connections.rests.full_until(lane.link.address), lane.under_way

    def _trouble(self, link: Link) -> tuple[bool, float]:
        return not self._connections.known(link), self._connections.rests.free_at(link.address)

    async def _lane_on(self, link: Link, message: Message) -> Lane:
        """The link's lane, once its server can be used; a new one where it has none."""
        if link in self._free:  # if it is in vain, the others come first
            self._free.remove(link)
            self._free.append(link)
        if wait_s := self._connections.rests.left_s(link.address):
            wait_s += random.uniform(0, pause_s(0))  # not all at the same moment
            refusal = self._connections.rests.refusal(link.address)
            if refusal is not None and message.left_s is not None and message.left_s <= wait_s:
                raise refusal
            await asyncio.sleep(wait_s)
        await self._connections.check(link)
        lane = next((lane for lane in self._lanes if lane.link is link), None)
        if lane is None:
            lane = await Lane(link, self._exchange, self._on_answer, self._on_end).__aenter__()
            self._free.remove(link)
            self._lanes.append(lane)
        return lane

    def _on_answer(self, lane: Lane, message: Message, response: Any) -> None:
        if response.retry_after_ms and all(result.error.reason == "OVERLOADED" for result in response.results):
            told = f"the server has no room now; again in {response.retry_after_ms} ms"
            self._connections.rests.no_room(lane.link.address, response.retry_after_ms / 1000)
            self._again([message], ServerOverloaded(told, retry_after_s=response.retry_after_ms / 1000))
        elif not message.answer.done():
            self._connections.budget.refill()
            self._answered = True
            message.answer.set_result(response)

    def _on_end(self, lane: Lane, unanswered: list[Message], error: CallError | None) -> None:
        self._lanes.remove(lane)
        self._free.append(lane.link)
        if isinstance(error, ServerUnavailable | AnswerTimeout):
            self._connections.lost(lane.link.address, error)
        elif isinstance(error, ServerOverloaded):
            self._connections.refused(lane.link.address, error)
        told = error or ServerUnavailable(f"{lane.link.address}: the call ended without an answer")
        self._again(unanswered, told)

    def _again(self, messages: Sequence[Message], error: CallError) -> None:
        """Send the messages that a server has not answered again after a while, if that may help.

        A message that a server had no room for goes to another server, at once or as soon as one is free. A server
        that refuses is not free for the time that it told, so the attempts come to an end.
        """
        elsewhere = any(map(self._connections.is_free, self._connections.addresses))
        waits_s = [self._wait_s(message, error, elsewhere=elsewhere) for message in messages]
        may_ask = any(wait_s is not None for wait_s in waits_s) and (elsewhere or self._may_ask(error))
        for message, wait_s in zip(messages, waits_s, strict=True):
            if wait_s is None or not may_ask:
                message.fail(error)
                continue
            wait = asyncio.create_task(self._send_after(wait_s, message))
            self._waits.add(wait)
            wait.add_done_callback(self._waits.discard)

    def _may_ask(self, error: CallError) -> bool:
        """Whether a busy server may be asked again: each time that it refuses costs a token, but for a stream that is
        under way. That one is worth waiting for, and asks for little: what waits holds back what follows."""
        return not isinstance(error, ServerOverloaded) or self._answered or self._connections.budget.take()

    def _wait_s(self, message: Message, error: CallError, *, elsewhere: bool) -> float | None:
        """How long to wait before the next attempt; None: it does not help, or comes too late."""
        if self._ended or not self._connections.retry or message.answer.done():
            return None
        if message.deadline is None and message.attempts > _ATTEMPTS_WITHOUT_DEADLINE:
            return None
        wait_s = random.uniform(0, pause_s(message.attempts - 1))
        if isinstance(error, ServerOverloaded) and error.retry_after_s is not None:
            wait_s = 0.0 if elsewhere else wait_s + min(error.retry_after_s, self._connections.free_in_s())
        elif not isinstance(error, ServerUnavailable | AnswerTimeout):  # an AnswerTimeout may be another message's
            return None
        left_s = message.left_s
        return wait_s if left_s is None or wait_s < left_s else None

    async def _send_after(self, wait_s: float, message: Message) -> None:
        await asyncio.sleep(wait_s)
        await self._send(message)

    def _closed(self, message: Message) -> None:
        self._open.discard(message)
        self._finish_lanes()

    def _finish_lanes(self) -> None:
        if self._finished and not self._open:
            for lane in self._lanes:
                lane.finish()
