"""A client's connections: which addresses, how many channels to each, and what every server there says of itself."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import itertools
import math
import random
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc.aio
from facenet_proto.v1 import face_pb2 as pb

from facenet_client import _process, _wire
from facenet_client._call import Link, look_at_error
from facenet_client._health import CHECK_S, Health
from facenet_client._images import shown
from facenet_client._patience import Budget, Rests, pause_s
from facenet_client._requests import check_timeout
from facenet_client._targets import addresses
from facenet_client.errors import AnswerTimeout, CallError, ServerFault, ServerOverloaded, ServerUnavailable

T = TypeVar("T")

_LONGEST_WAIT_S = 60.0  # for servers that are away, of calls without a time limit


class Connections:
    """So many channels to each address, from ``open`` to ``close``.

    Messages are spread over them by the streams' lanes, not by gRPC's round_robin: a lane knows how many answers its
    server owes. Before an address gets its first lane, and again after it was lost, its server is asked whether it is
    ready, and runs the same models. One that was lost, or says that it is not ready any more, rests, longer each time,
    and is then asked again until it is back. ``retry``: streams send again what was not answered.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        per_address: int,
        timeout_s: float | None,
        *,
        retry: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if not isinstance(per_address, int) or isinstance(per_address, bool) or per_address < 1:
            raise ValueError(f"connections is {shown(repr(per_address))}; it is a whole number, 1 at least")
        check_timeout(timeout_s)
        if not isinstance(credentials, grpc.ChannelCredentials | None):
            raise TypeError("credentials are gRPC's, as grpc.ssl_channel_credentials(), or None for plain text")
        self.addresses = addresses(target)
        self._per_address = per_address
        self._timeout_s = timeout_s
        self._links: list[Link] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # that they were opened on
        self._next = 0
        self._info: pb.GetServerInfoResponse | None = None
        self.retry = retry
        self._credentials = credentials
        self.budget = Budget()
        self.rests = Rests()
        self.health = Health(self.lost, self.check)
        self.trouble = "none was asked"  # the last
        self._checked: set[str] = set()
        self._asking: asyncio.Task[pb.GetServerInfoResponse] | None = None
        self._waits_s: list[float] = []  # of those who wait for what is asked
        self._ready = set[asyncio.Task[None]]()  # that wait until a server is
        self._refusal: CallError | None = None  # the last, of servers that are asked until they are there
        self._awaited: dict[str, asyncio.Task[None]] = {}  # addresses that were lost, until they are back
        self._ending = set[asyncio.Task[None]]()

    def open(self) -> None:
        """Make the channels; they connect when they are used. Called on an event loop. No effect where they are there.
        Raises RuntimeError where this process cannot have any, or another event loop has them."""
        if _process.is_forked():  # told where it is used: as Client.open says
            return
        _process.check_usable()
        if self._links:
            self._opened()
            return
        self._loop = asyncio.get_running_loop()
        self._links = [
            Link(address, self._channel(address)) for _ in range(self._per_address) for address in self.addresses
        ]

    def _channel(self, address: str) -> grpc.aio.Channel:
        options = _wire.channel_options(address)
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials, options=options)

    async def close(self) -> None:
        """Close the channels. Those of another event loop, or of the process that this one was forked from, are left to
        that."""
        is_ours = self.is_ours()
        links, self._links = self._links, []
        if not is_ours:
            return
        self._info = None
        self._checked.clear()
        tasks = [*self._awaited.values(), *self._ready, *([self._asking] if self._asking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(self.health.close(), *tasks, *self._ending, return_exceptions=True)
        await asyncio.gather(*(link.channel.close() for link in links))

    def is_ours(self) -> bool:
        """Whether they were opened in this process, on the running event loop."""
        return not _process.is_forked() and asyncio.get_running_loop() is self._loop

    def links(self) -> list[Link]:
        """All of them, from another one on each time: calls that use few spread over all."""
        links = self._opened()
        first = self._next = (self._next + 1) % len(links)
        return links[first:] + links[:first]

    async def info(self, timeout_s: float | None) -> pb.GetServerInfoResponse:
        """What the servers say of themselves, with each limit the smallest of theirs; asked for once.

        Of several servers those that can be reached count. Where none can, or none is up yet, they are waited for.
        Raises CallError, also where they differ in their models.
        """
        self._opened()
        if self._info is not None:
            return self._info
        if self._asking is None:  # whoever else asks meanwhile waits for the same
            self._asking = asyncio.create_task(self._ask_until_there())
            self._asking.add_done_callback(self._asked)
        asking, wait_s = self._asking, _LONGEST_WAIT_S if timeout_s is None else timeout_s
        self._waits_s.append(wait_s)
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(asking)
        except CallError:  # first: an AnswerTimeout is a TimeoutError too
            raise
        except TimeoutError:
            raise self._none_within(wait_s) from None
        except asyncio.CancelledError:
            if asking.cancelled() and not self._links:
                raise CallError("the client was closed") from None
            raise
        finally:
            self._waits_s.remove(wait_s)

    def _asked(self, asking: asyncio.Task[Any]) -> None:
        look_at_error(asking)
        if self._asking is asking:
            self._asking = None

    def _none_within(self, wait_s: float) -> CallError:
        if isinstance(self._refusal, ServerUnavailable):
            return ServerUnavailable(f"no server within {wait_s:.2g} s: {self._refusal}")
        return self._refusal or AnswerTimeout(f"{', '.join(self.addresses)}: no answer within {wait_s:.2g} s")

    async def _ask_until_there(self) -> pb.GetServerInfoResponse:
        self._refusal = None
        for attempt in itertools.count():
            try:
                self._info = await self._ask_for_info()
                return self._info
            except (ServerUnavailable, ServerOverloaded, AnswerTimeout) as error:
                if not self.retry or not self._waits_s:
                    raise
                self._refusal = error
                told_s = error.retry_after_s if isinstance(error, ServerOverloaded) else None
            await asyncio.sleep((told_s or 0.0) + random.uniform(0, pause_s(attempt)))
        raise AssertionError

    async def wait_until_ready(self, timeout_s: float | None) -> None:
        """Until one of the servers can be used. Raises ServerUnavailable where none can in time, and another CallError
        where waiting does not help."""
        self.trouble = "none has answered"
        tasks = [asyncio.create_task(self._until_ready(link)) for link in self._opened()[: len(self.addresses)]]
        self._ready.update(tasks)
        try:
            async with asyncio.timeout(timeout_s):
                error = await _first(tasks)
        except TimeoutError:
            raise ServerUnavailable(f"no server was ready within {timeout_s:.2g} s: {self.trouble}") from None
        except asyncio.CancelledError:
            if not self._links:
                raise CallError("the client was closed") from None
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._ready.difference_update(tasks)
        if error is not None:
            raise error

    async def _until_ready(self, link: Link) -> None:
        while True:
            await asyncio.sleep(self.rests.left_s(link.address))
            try:
                if self.known(link):
                    await self.health.ask(link)  # again: it may have been long ago
                else:
                    await self.check(link)
                return
            except CallError as error:
                if not _is_away(error):
                    raise
                self.lost(link.address, error)

    async def _ask_for_info(self) -> pb.GetServerInfoResponse:
        links = self._opened()[: len(self.addresses)]
        wait_s = max(self._waits_s, default=CHECK_S)
        answers = await self._soon(*(self._ask_info(link, wait_s) for link in links))
        reached = {link: each for link, each in zip(links, answers, strict=True) if not _is_away(each)}
        for answer in (*reached.values(), *answers):
            if isinstance(answer, CallError) and (not reached or not _is_away(answer)):
                raise answer
        infos = [answer for answer in reached.values() if isinstance(answer, pb.GetServerInfoResponse)]
        _check_alike([link.address for link in reached], infos)
        for name in (field.name for field in pb.Limits.DESCRIPTOR.fields):
            setattr(infos[0].limits, name, min(getattr(info.limits, name) for info in infos))
        for link, answer in zip(links, answers, strict=True):
            if isinstance(answer, CallError):
                self.lost(link.address, answer)
        new = [link for link in reached if not self.known(link)]
        for link, trouble in zip(new, await self._soon(*(self._check_ready(link) for link in new)), strict=True):
            if isinstance(trouble, CallError):
                self.lost(link.address, trouble)
        return infos[0]

    async def _soon(self, *operations: Coroutine[Any, Any, T]) -> list[T | CallError]:
        """Their results or errors, side by side; once one has succeeded, the others have as long as a check may take,
        or a quarter of what callers wait."""
        tasks = [asyncio.create_task(operation) for operation in operations]
        pending, timeout_s = set(tasks), None
        try:
            while pending:
                done, pending = await asyncio.wait(pending, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                if any(task.exception() is None for task in done):
                    timeout_s = CHECK_S if self._timeout_s is None else min(CHECK_S, self._timeout_s / 4)
            return [_outcome(task) for task in tasks]
        finally:
            for task in pending:
                task.cancel()

    async def check(self, link: Link) -> None:
        """Make sure that the link's server is ready, and that it runs the models that the others run.

        Raises CallError.
        """
        if self.known(link):
            return
        try:
            turns = await self.health.ask(link)
            answer = await self._ask_info(link, self._timeout_s)
            if self._info is not None:
                _check_alike([self.addresses[0], link.address], [self._info, answer])
            self._admit(link.address, turns)
        except CallError as error:
            self.lost(link.address, error)
            raise

    async def _check_ready(self, link: Link) -> None:
        self._admit(link.address, await self.health.ask(link))

    def _admit(self, address: str, turns: int) -> None:
        self.health.admit(address, turns)
        self._checked.add(address)
        self.rests.back(address)

    def lost(self, address: str, error: CallError) -> None:
        """The address did not serve: it rests for a while, and is checked before it is used again, by whoever comes
        first."""
        self.trouble = str(error)
        self._checked.discard(address)
        self.rests.lost(address)
        awaited = self._awaited.get(address)
        if self._links and (awaited is None or awaited.done()):
            self._awaited[address] = asyncio.create_task(self._await(address))

    async def _await(self, address: str) -> None:
        """Ask a lost address whether it is back, after its rests, until it is."""
        link = next(link for link in self._links if link.address == address)
        while not self.known(link):
            await asyncio.sleep(self.rests.left_s(address))
            with suppress(CallError):  # it rests again
                await self.check(link)

    def refused(self, address: str, error: ServerOverloaded) -> None:
        """The address has no room now."""
        if self.retry and error.retry_after_s is not None:
            self.rests.refused(address, error, error.retry_after_s)

    def end_beside(self, ended: Coroutine[Any, Any, None]) -> None:
        """What is over for its caller ends beside what follows; ``close`` waits for it."""
        task = asyncio.create_task(ended)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def known(self, link: Link) -> bool:
        """Whether the link's server can be used without a check."""
        return link.address in self._checked

    def is_free(self, address: str) -> bool:
        """Whether the address can be used at once, as far as it said."""
        return address in self._checked and not self.rests.free_at(address)

    def free_in_s(self) -> float:
        """How long until one of those that serve has room, as far as they said; infinite where none serves."""
        return min(map(self.rests.free_in_s, self._checked), default=math.inf)

    async def _ask_info(self, link: Link, timeout_s: float | None) -> pb.GetServerInfoResponse:
        answer = await link.ask(f"/{_wire.SERVICE}/GetServerInfo", b"", timeout_s)
        return pb.GetServerInfoResponse.FromString(answer)

    def forget_info(self) -> None:
        """A server may have been restarted with other limits."""
        self._info = None

    async def stats(self, timeout_s: float | None) -> list[pb.GetServerStatsResponse]:
        """What each server has done. Raises CallError."""
        await self.info(timeout_s)  # which waits for servers
        links = self._opened()[: len(self.addresses)]
        path = f"/{_wire.SERVICE}/GetServerStats"
        answers = await asyncio.gather(*(link.ask(path, b"", timeout_s) for link in links))
        return list(map(pb.GetServerStatsResponse.FromString, answers))

    def _opened(self) -> list[Link]:
        _process.check_not_forked()
        if not self._links:
            raise RuntimeError("the client is not open: use it as `async with AsyncClient(...)`, or call open() first")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("the client was opened on another event loop: open one on each loop")
        return self._links


async def _first(tasks: Sequence[asyncio.Task[None]]) -> CallError | None:
    """Wait until one has succeeded; the last one's error where none does."""
    error = None
    for task in asyncio.as_completed(tasks):
        try:
            await task
            return None
        except CallError as failed:
            error = failed
    return error


def _outcome(task: asyncio.Task[T]) -> T | CallError:
    if not task.done():
        return AnswerTimeout("others have answered long before")
    error = task.exception()
    if error is None or isinstance(error, CallError):
        return error or task.result()
    raise error


def _is_away(answer: Any) -> bool:
    return isinstance(answer, ServerUnavailable | AnswerTimeout | ServerOverloaded | ServerFault)


def _check_alike(at: Sequence[str], answers: Sequence[pb.GetServerInfoResponse]) -> None:
    """Answers of servers with other models would be mixed unseen."""
    for address, answer in zip(at, answers, strict=True):
        if _models(answer) != _models(answers[0]):
            raise CallError(f"{at[0]} and {address} run different models, or another one by default")


def _models(info: pb.GetServerInfoResponse) -> tuple[str, list[tuple[str, str]]]:
    return info.default_embedder, sorted((model.name, model.onnx_sha256) for model in info.models)
