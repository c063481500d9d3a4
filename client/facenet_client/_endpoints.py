"""A client's servers. Whoever needs a server waits until one is ready."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio
from facenet_proto.v1 import face_pb2 as pb

from facenet_client import _answers, _health, _process, _wire
from facenet_client._call import Channel
from facenet_client._endpoint import Endpoint
from facenet_client._images import shown
from facenet_client._requests import check_timeout
from facenet_client._retry import Retry, backoff_s
from facenet_client._targets import addresses
from facenet_client.errors import AnswerTimeout, CallError, ServerOverloaded, ServerUnavailable

LONGEST_WAIT_S = 60.0  # how long calls without a time limit wait for servers that are away

_INFO_S = 10.0  # for a server to say what it runs


class Endpoints:
    """``per_address`` channels to each address, from ``open`` to ``close``. If ``retry`` is off, a call asks each
    server once, and waits no longer."""

    def __init__(
        self,
        target: str | Sequence[str],
        per_address: int,
        timeout_s: float | None,
        retry: Retry,
        *,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if not isinstance(per_address, int) or isinstance(per_address, bool) or per_address < 1:
            raise ValueError(f"connections is {shown(repr(per_address))}; it is a whole number, 1 at least")
        check_timeout(timeout_s)
        if not isinstance(credentials, grpc.ChannelCredentials | None):
            raise TypeError("credentials are gRPC's, as grpc.ssl_channel_credentials(), or None for plain text")
        self.addresses = addresses(target)
        self._per_address = per_address
        self._grace_s = _health.CHECK_S if timeout_s is None else min(_health.CHECK_S, timeout_s / 4)
        self._retry = retry
        self._credentials = credentials
        self._all: list[Endpoint] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # that they were opened on
        self._next = 0
        self._changed = asyncio.Event()  # a new one with each change
        self._info: pb.GetServerInfoResponse | None = None
        self._models: tuple[str, Any] | None = None  # the address that answered first, and the models that all must run
        self._closing = set[asyncio.Task[None]]()

    # ---- open and close ----

    def open(self) -> None:
        """Make the channels; they connect when they are used. Call it on an event loop. No effect if the channels
        exist. Raises RuntimeError if gRPC cannot work in this process, or if the channels belong to another event
        loop."""
        if _process.is_forked():  # raised by calls: see Client.open
            return
        _process.check_usable()
        if self._all:
            self._opened()
            return
        self._loop = asyncio.get_running_loop()
        self._changed, self._info, self._models = asyncio.Event(), None, None
        for address in self.addresses:
            channels = [Channel(address, self._connection(address)) for _ in range(self._per_address)]
            self._all.append(Endpoint(channels, self._learn, self._notify))

    def _connection(self, address: str) -> grpc.aio.Channel:
        options = _wire.channel_options(address)
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials, options=options)

    async def close(self) -> None:
        """Close the channels. Channels of another event loop, or of the process that this process was forked from, are
        left open."""
        is_ours = self.is_ours()
        endpoints, self._all = self._all, []
        if is_ours:
            self._notify()
            await asyncio.gather(*self._closing, return_exceptions=True)
            await asyncio.gather(*(each.close() for each in endpoints))

    def close_in_background(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close something that its caller no longer needs, in a task of its own. ``close`` waits for this task."""
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def is_ours(self) -> bool:
        """Whether the channels were opened in this process, on the running event loop."""
        return not _process.is_forked() and asyncio.get_running_loop() is self._loop

    def _opened(self) -> list[Endpoint]:
        _process.check_not_forked()
        if not self._all:
            raise RuntimeError("the client is not open: use it as `async with AsyncClient(...)`, or call open() first")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("the client was opened on another event loop: open one on each loop")
        return self._all

    def channels(self) -> list[tuple[Endpoint, Channel]]:
        """All channels, starting with another one each time, so that calls that use only a few spread over all."""
        endpoints = self._opened()
        every = [(each, each.channels[number]) for number in range(self._per_address) for each in endpoints]
        first = self._next = (self._next + 1) % len(every)
        return every[first:] + every[:first]

    # ---- waiting for servers ----

    @asynccontextmanager
    async def within(
        self,
        left_s: float | None,
        of_s: float | None,
        failure: str = "no server",
        silent: type[CallError] = AnswerTimeout,
    ) -> AsyncIterator[None]:
        """A time limit for the body of ``async with``: what is left of the caller's time. Raises ServerUnavailable when
        it is over, with the servers' errors. If no server has answered in time it raises ``silent``, and if all are
        overloaded the first server's error."""
        try:
            async with asyncio.timeout(left_s):
                yield
        except CallError:  # first: an AnswerTimeout is a TimeoutError too
            raise
        except TimeoutError:
            errors = [each.error for each in self._all if each.error is not None]
            if errors and all(isinstance(error, ServerOverloaded) for error in errors):
                raise errors[0] from None
            kind = silent if all(isinstance(error, AnswerTimeout) for error in errors) else ServerUnavailable
            trouble = "; ".join(map(str, errors))
            raise kind(f"{failure} within {of_s:.2g} s: {trouble or 'none has answered'}") from None

    async def wait_until_ready(self, timeout_s: float | None) -> None:
        """Wait until one of the servers says that it is ready. Raises ServerUnavailable if none does in time, and
        another CallError if waiting does not help."""
        if any(each.has_refused for each in self._opened()):
            self.forget_info()
        asked = {each: each.attempts for each in self._opened()}
        async with self.within(timeout_s, timeout_s, "no server was ready", ServerUnavailable):
            await self._until(lambda each: each.is_ready and each.attempts > asked[each], retry=True)

    async def wait_for_room(self, remaining_s: float | None) -> None:
        """Wait until a new stream may find a server. Raises CallError if no server will have room in the time that
        remains, or if waiting does not help."""
        await self._until(lambda each: each.is_ready)
        first = min((each for each in self._all if each.is_ready), key=lambda each: each.opens_in_s)
        if not first.opens_in_s:
            return
        wait_s = first.opens_in_s + random.uniform(0, backoff_s(0))  # not all at the same moment
        if remaining_s is not None and remaining_s <= wait_s:
            raise ServerOverloaded(f"{first.address}: the server has no room now", retry_after_s=first.room_in_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wait_for_change()  # another server may be ready sooner

    def room_in_s(self) -> float:
        """Seconds until one of the ready servers has room, by their own words; infinite if no server is ready."""
        return min((each.room_in_s for each in self._all if each.is_ready), default=math.inf)

    async def _until(self, is_found: Callable[[Endpoint], bool], *, retry: bool = False) -> None:
        """Wait until ``is_found`` is true for one of the servers. Raises CallError if waiting does not help: all
        servers have refused, or all were asked in vain and neither the client nor this call retries."""
        asked = [(each, each.attempts) for each in self._opened()]
        while not any(map(is_found, self._all)):
            in_vain = [
                each.error
                for each, attempts in asked
                if each.has_refused or (not (retry or self._retry.is_on) and each.attempts > attempts)
            ]
            if len(in_vain) == len(asked) and in_vain[0] is not None:
                raise in_vain[0]
            for each in self._all:
                if not is_found(each):
                    each.connect()
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        await self._changed.wait()
        if not self._all:
            raise CallError("the client was closed")

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # ---- what they run ----

    async def info(self, timeout_s: float | None) -> pb.GetServerInfoResponse:
        """What the servers run, with the smallest value of each limit. The servers are asked only once.

        Servers that cannot be reached do not count. If none can be reached, or none is up yet, the call waits. Raises
        CallError, also if the servers run different models.
        """
        self._opened()
        if self._info is not None:
            return self._info
        try:
            wait_s = LONGEST_WAIT_S if timeout_s is None else timeout_s
            async with self.within(wait_s, wait_s):
                while self._info is None:  # another call's error may have it forgotten meanwhile
                    await self._gather_info()
        except CallError:
            self.forget_info()
            raise
        return self._info

    async def _gather_info(self) -> None:
        await self._until(lambda each: each.info is not None)
        with suppress(TimeoutError):  # the other servers get this much time more
            async with asyncio.timeout(self._grace_s):
                while any(each.error is None and not (each.is_ready and each.info) for each in self._all):
                    await self._wait_for_change()
        for each in self._all:
            if each.has_refused and each.error is not None:
                raise each.error
        if infos := [each.info for each in self._all if each.info is not None]:
            self._info = _answers.together(infos)

    async def _learn(self, endpoint: Endpoint) -> None:
        """Ask a server what it runs. Raises CallError, also if another server runs other models: answers of different
        models would be mixed without notice."""
        answer = await endpoint.channels[0].ask(f"/{_wire.SERVICE}/GetServerInfo", b"", _INFO_S)
        info = _answers.parsed_info(endpoint.address, answer)
        first, models = self._models = self._models or (endpoint.address, _answers.models(info))
        if _answers.models(info) != models:
            other = "before" if first == endpoint.address else first
            raise CallError(f"{endpoint.address} runs different models than {other}, or another one by default")
        endpoint.info = info

    def forget_info(self) -> None:
        """Forget the servers' limits: a server may have been restarted with others. If no server is ready, forget the
        models too."""
        self._info = None
        if not any(each.is_ready for each in self._all):
            self._models = None
        for each in self._all:
            each.forget()

    async def stats(self, timeout_s: float | None) -> list[pb.GetServerStatsResponse]:
        """What each server has done. Raises CallError."""
        await self.info(timeout_s)  # which waits for servers
        path = f"/{_wire.SERVICE}/GetServerStats"
        answers = await asyncio.gather(*(each.channels[0].ask(path, b"", timeout_s) for each in self._opened()))
        return list(map(pb.GetServerStatsResponse.FromString, answers))
