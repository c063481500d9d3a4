"""The asynchronous client."""

import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, Unpack

import grpc

from facenet_client import _answers, _wire
from facenet_client._call import Channel
from facenet_client._endpoints import Endpoints
from facenet_client._images import shown
from facenet_client._requests import check_timeout, known
from facenet_client._retry import Retry
from facenet_client._session import Session
from facenet_client.errors import CallError, RequestRefused
from facenet_client.stats import ServerStats, together
from facenet_client.types import (
    CallOptions,
    CompareOptions,
    Comparison,
    CropOptions,
    Detection,
    DetectOptions,
    Embedding,
    EmbedOptions,
    ImageLike,
    ServerInfo,
    Side,
)

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


class AsyncClient:
    """A connection to a FaceNet Serve server, for asyncio.

    ``target`` is a gRPC target as "127.0.0.1:50051", or several: a list, or "host:50051,host:50052". The client spreads
    the messages of each stream, and single small calls, over all servers; the servers must run the same models.
    ``connections`` is the number of connections to each server. ``credentials`` are gRPC's, for TLS and tokens (None:
    plain text). ``timeout_s`` limits the wait for each message's answer (None: no limit). Each call may set its own; a
    stream as a whole has no deadline. If a server is away or not up yet, a call waits for it, up to ``timeout_s``
    (None: a minute), unless ``retry=False``. Methods take any iterable or asynchronous iterable, of any length, split
    it into messages by the server's limits, and give results in input order. An error of one item is its result's
    ``error``; an error of the whole call is raised as a CallError.

    A worker thread reads ordinary iterables, so they may block.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        timeout_s: float | None = 30.0,
        connections: int = 1,
        retry: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self._retry = Retry(is_on=retry)
        self._endpoints = Endpoints(target, connections, timeout_s, self._retry, credentials=credentials)
        self._sessions: weakref.WeakSet[Session[Any, Any]] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def open(self) -> None:
        """Open the client on the running event loop, as ``async with`` does; no effect if it is open. Raises
        RuntimeError if the client is open on another event loop, or if gevent has replaced this process's threads. If
        this process was forked after another client was opened, later calls raise it."""
        self._endpoints.open()

    def __repr__(self) -> str:
        return f"AsyncClient({','.join(self._endpoints.addresses)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncClient cannot be pickled or copied: it is a connection, open one in each process")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client, as the end of ``async with`` does: running calls end with a CallError. No effect on a
        closed client."""
        while self._endpoints.is_ours() and self._sessions:
            session = next(iter(self._sessions))
            await session.__aexit__(None, None, None)  # tasks that wait for the session's results get an error
            self._sessions.discard(session)
        self._sessions.clear()
        await self._endpoints.close()

    async def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Wait until a server says that it is ready. Raises ServerUnavailable if none is ready in time (None: waits for
        ever). Where waiting does not help, raises another CallError at once."""
        check_timeout(timeout_s)
        await self._endpoints.wait_until_ready(timeout_s)

    async def is_ready(self, timeout_s: float = 1.0) -> bool:
        """Whether a server is ready now. Use it in a service's own health check."""
        try:
            await self.wait_until_ready(timeout_s)
        except CallError:
            return False
        return True

    async def server_info(self, **options: Unpack[CallOptions]) -> ServerInfo:
        """The server's models, providers and limits. With several servers, each limit is the smallest of theirs."""
        known(options, CallOptions)
        return _answers.server_info(await self._endpoints.info(self._timeout_of(options)))

    async def server_stats(self, **options: Unpack[CallOptions]) -> ServerStats:
        """What the server has done so far. With several servers, the sum over all."""
        known(options, CallOptions)
        answers = await self._endpoints.stats(self._timeout_of(options))
        return together(list(map(_answers.server_stats, answers)))

    def _timeout_of(self, options: Mapping[str, Any]) -> float | None:
        """The call's own ``timeout_s``, or the client's."""
        timeout_s: float | None = options.get("timeout_s", self.timeout_s)
        return timeout_s

    async def detect(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[DetectOptions]
    ) -> list[Detection]:
        """Find the faces of each image."""
        return [result async for result in self.detect_stream(images, **options)]

    def detect_stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[DetectOptions]
    ) -> AsyncIterator[Detection]:
        """``detect`` over unbounded input, result by result."""
        return self._results(_wire.detect(options), images)

    async def embed(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[EmbedOptions]
    ) -> list[Detection]:
        """Find the faces of each image and embed them: ``Face.embedding`` is set."""
        return [result async for result in self.embed_stream(images, **options)]

    def embed_stream(
        self, images: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[EmbedOptions]
    ) -> AsyncIterator[Detection]:
        """``embed`` over unbounded input, result by result."""
        return self._results(_wire.embed(options), images)

    async def embed_crops(
        self, crops: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[CropOptions]
    ) -> list[Embedding]:
        """Embed ready crops of 160×160 pixels, each one face."""
        return [result async for result in self.embed_crops_stream(crops, **options)]

    def embed_crops_stream(
        self, crops: Iterable[ImageLike] | AsyncIterable[ImageLike], **options: Unpack[CropOptions]
    ) -> AsyncIterator[Embedding]:
        """``embed_crops`` over unbounded input, result by result."""
        return self._results(_wire.embed_crops(options), crops)

    async def compare(
        self,
        pairs: Iterable[tuple[Side, Side]] | AsyncIterable[tuple[Side, Side]],
        **options: Unpack[CompareOptions],
    ) -> list[Comparison]:
        """Give the distance between the two faces of each pair, and whether they are of the same person."""
        return [result async for result in self.compare_stream(pairs, **options)]

    def compare_stream(
        self,
        pairs: Iterable[tuple[Side, Side]] | AsyncIterable[tuple[Side, Side]],
        **options: Unpack[CompareOptions],
    ) -> AsyncIterator[Comparison]:
        """``compare`` over unbounded input, result by result."""
        return self._results(_wire.compare(options), pairs)

    async def open_session(
        self, exchange: _wire.Exchange[InputT, ResultT], inputs: Iterable[InputT] | AsyncIterable[InputT]
    ) -> Session[InputT, ResultT]:
        """For the SDK's own use: a session for ``async with``."""
        timeout_s = self._timeout_of(exchange.options)
        info = await self._endpoints.info(timeout_s)
        embedders = [model.name for model in info.models if model.kind == "embedder"]
        if (name := exchange.options.get("model")) and embedders and name not in embedders:
            raise RequestRefused(f"no embedder {shown(repr(name))} is served; there is {', '.join(sorted(embedders))}")
        session = Session(self._endpoints, self._retry, exchange, inputs, info.limits, timeout_s)
        self._sessions.add(session)
        return session

    def channels(self) -> list[Channel]:
        """For the SDK's own use: every connection."""
        return [channel for _, channel in self._endpoints.channels()]

    def _results(
        self, exchange: _wire.Exchange[InputT, ResultT], inputs: Iterable[InputT] | AsyncIterable[InputT]
    ) -> AsyncIterator[ResultT]:
        _wire.check_inputs(exchange, inputs)
        return self._iterate(exchange, inputs)

    async def _iterate(
        self, exchange: _wire.Exchange[InputT, ResultT], inputs: Iterable[InputT] | AsyncIterable[InputT]
    ) -> AsyncIterator[ResultT]:
        async with await self.open_session(exchange, inputs) as session:
            while (results := await session.next_results()) is not None:
                for result in results:
                    yield result
