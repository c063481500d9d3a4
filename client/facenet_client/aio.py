"""The asynchronous client."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
from facenet_proto.v1 import face_pb2 as pb

from facenet_client import _answers, _wire
from facenet_client._stream import Stream
from facenet_client.types import (
    CompareOptions,
    Comparison,
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

    ``target`` is a gRPC target as "127.0.0.1:50051". ``timeout_s`` bounds the wait for each message's answer
    (None: for ever); a stream as a whole has no deadline. Methods take any iterable or asynchronous iterable,
    of any length, cut it into messages by the server's limits, and answer in input order. What is wrong with
    one item sits on its result's ``error``; what is wrong with the call is raised as a CallError.

    Ordinary iterables are advanced in a worker thread, so that they may block.
    """

    def __init__(self, target: str, *, timeout_s: float | None = 30.0) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None
        self._info: pb.GetServerInfoResponse | None = None
        self._streams: weakref.WeakSet[Stream[Any, Any]] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target, options=_wire.CHANNEL_OPTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in list(self._streams):
            await stream.__aexit__(None, None, None)  # whoever waits for its results is told
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def server_info(self) -> ServerInfo:
        """The server's models, providers and limits."""
        return _answers.server_info(await self._fetch_info())

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
        self, crops: Iterable[ImageLike] | AsyncIterable[ImageLike], *, model: str = ""
    ) -> list[Embedding]:
        """Embed ready crops of 160×160 pixels, each one face."""
        return [result async for result in self.embed_crops_stream(crops, model=model)]

    def embed_crops_stream(
        self, crops: Iterable[ImageLike] | AsyncIterable[ImageLike], *, model: str = ""
    ) -> AsyncIterator[Embedding]:
        """``embed_crops`` over unbounded input, result by result."""
        return self._results(_wire.embed_crops(model), crops)

    async def compare(
        self,
        pairs: Iterable[tuple[Side, Side]] | AsyncIterable[tuple[Side, Side]],
        **options: Unpack[CompareOptions],
    ) -> list[Comparison]:
        """The distance between the two faces of each pair, and whether they are the same person's."""
        return [result async for result in self.compare_stream(pairs, **options)]

    def compare_stream(
        self,
        pairs: Iterable[tuple[Side, Side]] | AsyncIterable[tuple[Side, Side]],
        **options: Unpack[CompareOptions],
    ) -> AsyncIterator[Comparison]:
        """``compare`` over unbounded input, result by result."""
        return self._results(_wire.compare(options), pairs)

    async def open_stream(
        self, exchange: _wire.Exchange[InputT, ResultT], inputs: Iterable[InputT] | AsyncIterable[InputT]
    ) -> Stream[InputT, ResultT]:
        """For the SDK's own use: a stream that is ready to be entered."""
        info = await self._fetch_info()
        stream = Stream(
            self._connected(), self._target, exchange, inputs, info.limits, self._timeout_s, self._forget_info
        )
        self._streams.add(stream)
        return stream

    def _results(
        self, exchange: _wire.Exchange[InputT, ResultT], inputs: Iterable[InputT] | AsyncIterable[InputT]
    ) -> AsyncIterator[ResultT]:
        _wire.check_inputs(inputs)
        return self._iterate(exchange, inputs)

    async def _iterate(
        self, exchange: _wire.Exchange[InputT, ResultT], inputs: Iterable[InputT] | AsyncIterable[InputT]
    ) -> AsyncIterator[ResultT]:
        async with await self.open_stream(exchange, inputs) as stream:
            while (results := await stream.next_results()) is not None:
                for result in results:
                    yield result

    def _forget_info(self) -> None:
        """The server may have been restarted with other limits."""
        self._info = None

    async def _fetch_info(self) -> pb.GetServerInfoResponse:
        if self._info is None:
            call: Any = self._connected().unary_unary(
                f"/{_wire.SERVICE}/GetServerInfo",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=pb.GetServerInfoResponse.FromString,
            )
            try:
                self._info = await call(pb.GetServerInfoRequest(), timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                raise _answers.call_error(self._target, error.code(), error.details()) from None
        return self._info

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise RuntimeError("the client is not open: use it as `async with AsyncClient(...)`")
        return self._channel
