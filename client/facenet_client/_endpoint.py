"""One server from the client's view, a subchannel in gRPC's terms.

An endpoint connects and becomes ready. When the server is lost, the endpoint connects again, after a backoff. A server
that has no room is in cooldown.
"""

from __future__ import annotations  # the callbacks take the class itself

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence

from facenet_proto.v1 import face_pb2 as pb

from facenet_client import _health
from facenet_client._call import Channel
from facenet_client._retry import backoff_s
from facenet_client.errors import (
    AnswerTimeout,
    CallError,
    RequestRefused,
    ServerFault,
    ServerOverloaded,
    ServerUnavailable,
)

_LONGEST_COOLDOWN_S, _LONGEST_CLOSED_S = 60.0, 1.0
_WATCH_PAUSE_S = 2.0  # before a broken Watch is started again


class Endpoint:
    """A server's channels, whether it is ready, and when it has room. Times are on the event loop's clock.

    ``learn`` asks the server what it runs, each time that it connects. ``on_change`` is called when the server's state
    changes, which others may wait for. While the server gets messages, a Watch tells when it is no longer ready.
    """

    watch_idle_s = 60.0  # time without messages after which the Watch ends, so that the server may close the connection

    def __init__(
        self,
        channels: Sequence[Channel],
        learn: Callable[[Endpoint], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        self.address = channels[0].address
        self.channels = channels
        self.is_ready = False
        self.info: pb.GetServerInfoResponse | None = None
        self.error: CallError | None = None  # why the server is not ready; None: it is, or was not asked yet
        self.attempts = 0  # finished attempts to connect, and losses
        self._learn = learn
        self._on_change = on_change
        self._connecting: asyncio.Task[None] | None = None
        self._failures = 0  # in a row
        self._backoff_until = self._full_until = self._closed_until = -math.inf
        self._watching: asyncio.Task[None] | None = None
        self._watch_end: asyncio.TimerHandle | None = None
        self._can_watch = True
        self._losses = 0  # calls of ``lost``

    async def close(self) -> None:
        """Close the channels, and end the running tasks."""
        if self._watch_end is not None:
            self._watch_end.cancel()
        tasks = [task for task in (self._connecting, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(channel.connection.close() for channel in self.channels))

    # ---- is it ready? ----

    @property
    def has_refused(self) -> bool:
        """Whether the server is not ready for a reason that waiting does not remove."""
        return self.error is not None and not isinstance(
            self.error, ServerUnavailable | AnswerTimeout | ServerOverloaded | ServerFault
        )

    def connect(self) -> None:
        """Ask the server whether it is ready, again and again, until it is. A server that was ready counts as ready
        meanwhile."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())

    def lost(self, error: CallError) -> None:
        """Note that the server did not serve, or said that it is not ready."""
        self._losses += 1  # a running attempt to connect does not count any more
        if self.is_ready:
            self._failed(error)
        self.connect()

    def forget(self) -> None:
        """Forget what the server runs, since another server may have its address by now. If the server had refused, ask
        it again at once."""
        self.info = None
        if self.has_refused and self._connecting is not None:
            self._connecting.cancel()
            self._connecting, self.error, self._failures, self._backoff_until = None, None, 0, -math.inf
            self.connect()

    async def _connect(self) -> None:
        while True:
            await asyncio.sleep(self._backoff_until - _now())
            losses = self._losses
            try:
                if not self.is_ready or self.info is None:
                    await self._learn(self)
                await _health.check(self.channels[0])
                if self._losses != losses:  # meanwhile a call or the Watch has found the server not ready
                    raise _health.not_ready(self.address)
            except CallError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 (nobody may wait for ever, whatever went wrong)
                self._failed(CallError(f"{self.address}: {error!r}"))
            else:
                self._admit()
                return

    def _failed(self, error: CallError) -> None:
        longest_s = backoff_s(self._failures)
        told_s = error.retry_after_s or 0.0 if isinstance(error, ServerOverloaded) else 0.0
        self._backoff_until = _now() + min(told_s, _LONGEST_COOLDOWN_S) + random.uniform(longest_s / 2, longest_s)
        self._failures += 1
        self._set_state(error)

    def _admit(self) -> None:
        if not self.is_ready:
            self._failures, self._can_watch = 0, True
            self._backoff_until = self._full_until = self._closed_until = -math.inf
        self._set_state(None)

    def _set_state(self, error: CallError | None) -> None:
        self.is_ready, self.error = error is None, error
        self.attempts += 1
        self._on_change()

    def used(self) -> None:
        """Note that the server gets a message, and watch whether it stays ready."""
        if self._can_watch and (self._watching is None or self._watching.done()):
            self._watching = asyncio.create_task(self._watch())
        if self._watching is not None:
            if self._watch_end is not None:
                self._watch_end.cancel()
            self._watch_end = asyncio.get_running_loop().call_later(self.watch_idle_s, self._watching.cancel)

    async def _watch(self) -> None:
        try:
            await _health.watch(self.channels[0], self.lost)
        except RequestRefused:  # the server has no Watch: the calls will show whether it works
            self._can_watch = False
        except CallError:
            await asyncio.sleep(random.uniform(_WATCH_PAUSE_S / 2, _WATCH_PAUSE_S))

    # ---- has it room? ----

    def refused(self, error: ServerOverloaded) -> None:
        """Note that the server has no room. Its cooldown is as long as it said last. Other servers are preferred for
        that time. New streams wait for a second of it at most, because the server only guesses."""
        cooldown_s = min(max(error.retry_after_s or 0.0, backoff_s(0)), _LONGEST_COOLDOWN_S)
        self._full_until, self._closed_until = _now() + cooldown_s, _now() + min(cooldown_s, _LONGEST_CLOSED_S)

    @property
    def full_until(self) -> float:
        """When the cooldown ends; 0 if the server has room."""
        return self._full_until if self._full_until > _now() else 0.0

    @property
    def room_in_s(self) -> float:
        """Seconds until its cooldown ends."""
        return max(0.0, self._full_until - _now())

    @property
    def opens_in_s(self) -> float:
        """Seconds until it may get a new stream."""
        return max(0.0, self._closed_until - _now())


def _now() -> float:
    return asyncio.get_running_loop().time()
