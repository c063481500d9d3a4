"""A client's connections: which addresses, how many channels to each, and what every server there says of itself."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import itertools
import random
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio
from facenet_proto.v1 import face_pb2 as pb

from facenet_client import _answers, _wire
from facenet_client._patience import Budget, Rest, pause_s
from facenet_client.errors import AnswerTimeout, CallError, ServerFault, ServerUnavailable

T = TypeVar("T")

_CHECK_S = 2.0  # a server that takes longer to say that it is ready is not
_SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse, status SERVING

_INFO_ATTEMPTS = 12  # with their pauses about ten seconds: a restart

_LISTS = ("ipv4:", "ipv6:")  # schemes whose one target has commas of its own


class Call:
    """A stream of messages to one server, bytes in both directions. What fails raises a CallError.

    One task may write and one may read. A read that is cancelled, or not in time, ends the call.
    """

    def __init__(self, address: str, call: Any) -> None:
        self._address = address
        self._call = call
        # The first that it had: where a write fails because of it, grpc.aio puts one of its own in its place.
        self._status: tuple[Any, ...] | None = None
        call.add_done_callback(self._ended)

    def _ended(self, call: Any) -> None:
        if self._status is None:
            self._status = tuple(_at_once(each) for each in (call.code(), call.details(), call.trailing_metadata()))

    async def write(self, data: bytes, timeout_s: float | None = None) -> None:
        """Send a message, once there is room for it on the way."""
        await self._in_time(self._call.write(data), timeout_s)

    async def done_writing(self) -> None:
        """Tell the server that no message follows."""
        await self._in_time(self._call.done_writing(), None)

    async def read(self, timeout_s: float | None) -> bytes:
        """The next message; there must be one."""
        data = await self._in_time(self._call.read(), timeout_s)
        if data is grpc.aio.EOF:
            raise await self._end()
        return bytes(data)

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        self._call.cancel()

    async def _in_time(self, operation: Awaitable[Any], timeout_s: float | None) -> Any:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(timeout_s):
                return await operation
        except TimeoutError:
            raise AnswerTimeout(f"{self._address}: no answer within {timeout_s:.2g} s") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self._end() from None
        except asyncio.CancelledError:  # so grpc.aio says, too, that the server cancelled the call
            if task is not None and task.cancelling():
                raise
            raise await self._end() from None

    async def _end(self) -> CallError:
        """The error of a call that ended though an answer was due."""
        await self._call.code()
        assert self._status is not None
        code, details, trailers = self._status
        if code is grpc.StatusCode.OK:
            return ServerFault(f"{self._address}: the server ended the stream with messages unanswered")
        return _answers.call_error(self._address, code, details, trailers or ())


def _at_once(ready: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that has nothing to wait for."""
    try:
        ready.send(None)
    except StopIteration as given:
        return given.value  # type: ignore[no-any-return]
    raise AssertionError("the call has not ended")


class Link(NamedTuple):
    """A channel, and the address at its end."""

    address: str
    channel: grpc.aio.Channel

    def call(self, path: str) -> Call:
        """A new stream of messages."""
        stream: Any = self.channel.stream_stream(path)
        return Call(self.address, stream())


def addresses(target: str | Sequence[str]) -> tuple[str, ...]:
    """One or several gRPC targets: a list of them, or one text with commas between. Raises ValueError for none."""
    given = [target] if isinstance(target, str) else target
    several = [part for text in given for part in ([text] if text.startswith(_LISTS) else text.split(","))]
    found = tuple(part.strip() for part in several)
    if not found or not all(found):
        raise ValueError(f"{target!r} names no server, or an empty one")
    return found


class Connections:
    """So many channels to each address, from ``open`` to ``close``.

    Messages are spread over them by the streams' lanes, not by gRPC's round_robin: a lane knows how many answers its
    server owes. Before an address gets its first lane, and again after it was lost, its server is asked whether it is
    ready, and runs the same models. One that was lost rests, longer each time. ``retry``: streams send again what was
    not answered.
    """

    def __init__(
        self, target: str | Sequence[str], per_address: int, timeout_s: float | None, *, retry: bool = True
    ) -> None:
        if per_address < 1:
            raise ValueError(f"connections is {per_address}; it takes one at least")
        self.addresses = addresses(target)
        self._per_address = per_address
        self._timeout_s = timeout_s
        self._links: list[Link] = []
        self._next = 0
        self._info: pb.GetServerInfoResponse | None = None
        self.retry = retry
        self.budget = Budget()
        self.trouble = "none was asked"  # the last
        self._checked: set[str] = set()
        self._checked_once = False
        self._asking = asyncio.Lock()
        self._rests: dict[str, Rest] = {}

    def open(self) -> None:
        """Make the channels; they connect when they are used. Called on an event loop."""
        self._links = [
            Link(address, grpc.aio.insecure_channel(address, options=_wire.CHANNEL_OPTIONS))
            for _ in range(self._per_address)
            for address in self.addresses
        ]

    async def close(self) -> None:
        """Close the channels."""
        links, self._links = self._links, []
        await asyncio.gather(*(link.channel.close() for link in links))

    def links(self) -> list[Link]:
        """All of them, from another one on each time: calls that use few spread over all."""
        links = self._opened()
        first = self._next = (self._next + 1) % len(links)
        return links[first:] + links[:first]

    async def info(self) -> pb.GetServerInfoResponse:
        """What the servers say of themselves, with each limit the smallest of theirs; asked for once.

        Of several servers those that can be reached count; servers that were met before are waited for. Raises
        CallError, also where they differ in their models.
        """
        async with self._asking:
            for attempt in itertools.count():
                if self._info is not None:
                    return self._info
                try:
                    self._info = await self._ask_for_info()
                except ServerUnavailable:
                    if not self.retry or not self._checked_once or attempt >= _INFO_ATTEMPTS:
                        raise
                    await asyncio.sleep(random.uniform(0, pause_s(attempt)))
        raise AssertionError

    async def _ask_for_info(self) -> pb.GetServerInfoResponse:
        asked = self._opened()[: len(self.addresses)]
        answers = await asyncio.gather(*(self._ask_info(link) for link in asked), return_exceptions=True)
        reached = {link.address: each for link, each in zip(asked, answers, strict=True) if not _is_away(each)}
        for answer in (*reached.values(), *answers):
            if isinstance(answer, BaseException) and (not reached or not _is_away(answer)):
                raise answer
        infos = [answer for answer in reached.values() if isinstance(answer, pb.GetServerInfoResponse)]
        _check_alike(list(reached), infos)
        for name in (field.name for field in pb.Limits.DESCRIPTOR.fields):
            setattr(infos[0].limits, name, min(getattr(info.limits, name) for info in infos))
        self._checked.update(reached)
        self._checked_once = True
        for address in reached:
            self._rests.pop(address, None)
        return infos[0]

    async def check(self, link: Link) -> None:
        """Make sure that the link's server is ready, and that it runs the models that the others run.

        Raises CallError.
        """
        if self.known(link):
            return
        try:
            await self._check_ready(link)
            answer = await self._ask_info(link)
        except CallError as error:
            self.lost(link.address, error)
            raise
        if self._info is not None:
            _check_alike([self.addresses[0], link.address], [self._info, answer])
        self._checked.add(link.address)
        self._rests.pop(link.address, None)

    def lost(self, address: str, error: CallError) -> None:
        """The address did not serve: it rests for a while, and is checked before it is used again."""
        self.trouble = str(error)
        self._checked.discard(address)
        now = asyncio.get_running_loop().time()
        rest = self._rests.get(address, Rest(0, now))
        if rest.until <= now:  # its other lanes were lost with it
            longest = pause_s(rest.times)
            self._rests[address] = Rest(rest.times + 1, now + random.uniform(longest / 2, longest))

    def rest(self, address: str, seconds: float) -> None:
        """The address has no room now: it is asked again later."""
        now = asyncio.get_running_loop().time()
        rest = self._rests.get(address, Rest(0, now))
        self._rests[address] = Rest(rest.times, max(rest.until, now + seconds))

    def known(self, link: Link) -> bool:
        """Whether the link's server can be used without a check."""
        return link.address in self._checked

    def rest_s(self, address: str) -> float:
        """How long the address still rests."""
        rest = self._rests.get(address)
        return 0.0 if rest is None else max(0.0, rest.until - asyncio.get_running_loop().time())

    async def _check_ready(self, link: Link) -> None:
        check: Any = link.channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer = await check(b"", timeout=_CHECK_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a proxy, perhaps: its calls will tell
                return
            raise _answers.call_error(link.address, error.code(), error.details()) from None
        if answer != _SERVING:
            raise ServerUnavailable(f"{link.address}: the server is not ready")

    async def _ask_info(self, link: Link) -> Any:
        return await self._ask(link, "GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse)

    def forget_info(self) -> None:
        """A server may have been restarted with other limits."""
        self._info = None

    async def stats(self) -> list[pb.GetServerStatsResponse]:
        """What each server has done. Raises CallError."""
        return await self._ask_all("GetServerStats", pb.GetServerStatsRequest(), pb.GetServerStatsResponse)

    async def _ask_all(self, method: str, request: Any, response: Any) -> list[Any]:
        links = self._opened()[: len(self.addresses)]
        return await asyncio.gather(*(self._ask(link, method, request, response) for link in links))

    async def _ask(self, link: Link, method: str, request: Any, response: Any) -> Any:
        call: Any = link.channel.unary_unary(f"/{_wire.SERVICE}/{method}", response_deserializer=response.FromString)
        try:
            return await call(request.SerializeToString(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _answers.call_error(link.address, error.code(), error.details()) from None

    def _opened(self) -> list[Link]:
        if not self._links:
            raise RuntimeError("the client is not open: use it as `async with AsyncClient(...)`")
        return self._links


def _is_away(answer: Any) -> bool:
    return isinstance(answer, ServerUnavailable | AnswerTimeout)


def _check_alike(at: Sequence[str], answers: Sequence[pb.GetServerInfoResponse]) -> None:
    """Answers of servers with other models would be mixed unseen."""
    for address, answer in zip(at, answers, strict=True):
        if _models(answer) != _models(answers[0]):
            raise CallError(f"{at[0]} and {address} run different models, or another one by default")


def _models(info: pb.GetServerInfoResponse) -> tuple[str, list[tuple[str, str]]]:
    return info.default_embedder, sorted((model.name, model.onnx_sha256) for model in info.models)
