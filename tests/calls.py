"""Raw gRPC callers: messages of pixels, an open stream, a question and its answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.rpc.service import SERVICE


def raw(pixels: np.ndarray) -> pb.Image:
    return pb.Image(raw=pb.RawImage(rgb=pixels.tobytes(), height=pixels.shape[0], width=pixels.shape[1]))


def crops(*pixels: np.ndarray, **options: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(items=[pb.EmbedItem(crop=raw(p)) for p in pixels], options=pb.EmbedOptions(**options))


@asynccontextmanager
async def stream(
    target: str, method: str, response: Any, credentials: Any = None, metadata: Any = None
) -> AsyncIterator[Any]:
    """An open call that takes messages or bytes, over a connection of its own: without a name, a caller of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if credentials is None:
        opened = grpc.aio.insecure_channel(target, options)
    else:
        opened = grpc.aio.secure_channel(target, credentials, options)
    async with opened as channel:
        open_call: Any = channel.stream_stream(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        call = open_call(metadata=metadata)
        try:
            yield call
        finally:
            call.cancel()


async def ask(call: Any, request: Any) -> Any:
    await call.write(request)
    return await call.read()


async def until(condition: Any) -> None:
    """Wait for what must come; the test's own timeout bounds it."""
    while not condition():  # noqa: ASYNC110 (the condition is the server's own count)
        await asyncio.sleep(0.005)
