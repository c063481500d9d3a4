"""Servers of the contract that answer each call as they are told to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
from facenet_client import Embedding
from facenet_proto.v1 import face_pb2 as pb
from nets import crop, embed


def images(count: int) -> list[np.ndarray]:
    """Crops that can be told apart by their answers."""
    return [crop(number % 250, number // 250, 40) for number in range(count)]


def assert_answers(results: Sequence[Embedding], sent: Sequence[np.ndarray]) -> None:
    """One answer for each, in order."""
    assert [result.error for result in results] == [None] * len(sent)
    np.testing.assert_allclose([np.asarray(result) for result in results], embed(np.stack(sent))[0], atol=1e-6)


class Scripted:
    """A server of the contract that answers each call as the next of its scripts says. ``ready`` is what its health
    says, if it says any."""

    def __init__(self, *scripts: Any, ready: bool | None = None) -> None:
        self._scripts = list(scripts)
        self.calls = 0
        self.ready = ready

    async def embed(self, _: Any, context: Any) -> None:
        self.calls += 1
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        await script(context)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        async def info(_: bytes, __: Any) -> bytes:
            limits = pb.Limits(max_message_bytes=1 << 20, max_items_per_message=1, max_messages_in_flight=4)
            return pb.GetServerInfoResponse(limits=limits).SerializeToString()

        async def health(_: bytes, __: Any) -> bytes:
            return b"\x08\x01" if self.ready else b"\x08\x02"

        server = grpc.aio.server()
        if self.ready is not None:
            check: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(health)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", check),))
        methods: dict[str, Any] = {
            "Embed": grpc.stream_stream_rpc_method_handler(self.embed),
            "GetServerInfo": grpc.unary_unary_rpc_method_handler(info),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("facenet.v1.FaceService", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)


async def answer_all(context: Any, most: int | None = None, refused: range = range(0)) -> None:
    """Answer messages, those ``refused`` with a request to come back."""
    count = 0
    while (data := await context.read()) is not grpc.aio.EOF and (most is None or count < most):
        request = pb.EmbedRequest.FromString(data)
        response = pb.EmbedResponse(id=request.id)
        for item in request.items:
            rows = np.frombuffer(item.crop.raw.rgb, np.uint8).reshape(1, 160, 160, 3)
            vector = embed(rows)[0][0].astype("<f4").tobytes()
            response.results.add().embedding.CopyFrom(pb.Embedding(vector=vector, dimension=4, model="colour"))
        if count in refused:
            response = pb.EmbedResponse(id=request.id, retry_after_ms=10)
            response.results.add().error.CopyFrom(pb.ItemError(code=8, reason="OVERLOADED"))
        count += 1
        await context.write(response.SerializeToString())


async def answer(context: Any) -> None:
    await answer_all(context)


def refusing(retry_after_s: float, after_s: float = 0.0) -> Any:
    """A script that refuses its call, with a time to come back."""

    async def refuse(context: Any) -> None:
        await asyncio.sleep(after_s)
        pushback = (("grpc-retry-pushback-ms", str(round(1000 * retry_after_s))),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", pushback)

    return refuse
