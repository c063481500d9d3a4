"""Servers of the contract that answer each call as they are told to."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
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


def free_address() -> str:
    """An address where nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


HEARD_S = 2.0  # in which a server is heard from, on a machine that stalls for a second too
LIMITS = {"max_message_bytes": 1 << 20, "max_items_per_message": 1, "max_messages_in_flight": 4}


class Seen:
    """A call as its script sees it, with the ids of the messages that were read and of those that were answered."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.read_ids: list[int] = []
        self.answered_ids: list[int] = []

    async def read(self) -> Any:
        data = await self._context.read()
        if data is not grpc.aio.EOF:
            self.read_ids.append(pb.EmbedRequest.FromString(data).id)
        return data

    async def write(self, data: bytes) -> None:
        await self._context.write(data)
        self.answered_ids.append(pb.EmbedResponse.FromString(data).id)

    async def abort(self, *end: Any) -> None:
        await self._context.abort(*end)


class Scripted:
    """A server of the contract that answers each call as the next of its scripts says. ``ready`` is what its health
    says, if it says any; ``watch`` is how it answers a Watch, if it knows any; ``limits`` are what it
    says of itself, unless with ``info_fails`` it says nothing; ``model`` is its default embedder."""

    def __init__(
        self,
        *scripts: Any,
        ready: bool | None = None,
        watch: Any = None,
        limits: Mapping[str, int] | None = None,
        info_fails: grpc.StatusCode | None = None,
        model: str = "",
    ) -> None:
        self._scripts = list(scripts)
        self._ready = ready
        self._watch = watch
        self._limits = {**LIMITS, **(limits or {})}
        self.info_fails, self.model = info_fails, model
        self.seen: list[Seen] = []  # a call each
        self.changed = asyncio.Event()  # whether it is ready; a new one with each change
        self.watches = self.watchers = 0  # all that came, and those that are there
        self.infos = 0  # how often it was asked what it runs

    @property
    def calls(self) -> int:
        return len(self.seen)

    @property
    def read_ids(self) -> list[int]:
        """Of all calls."""
        return [each for seen in self.seen for each in seen.read_ids]

    @property
    def ready(self) -> bool | None:
        return self._ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def status(self) -> bytes:
        """A HealthCheckResponse."""
        return b"\x08\x01" if self.ready else b"\x08\x02"

    async def embed(self, _: Any, context: Any) -> None:
        self.seen.append(Seen(context))
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        await script(self.seen[-1])

    @contextlib.asynccontextmanager
    async def serve(self, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
        server = grpc.aio.server()
        if self.ready is not None:
            handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", self._health())
            server.add_generic_rpc_handlers((handler,))
        methods: dict[str, Any] = {
            "Embed": grpc.stream_stream_rpc_method_handler(self.embed),
            "GetServerInfo": grpc.unary_unary_rpc_method_handler(self._info),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("facenet.v1.FaceService", methods),))
        port = server.add_insecure_port(address)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)

    async def _info(self, _: bytes, context: Any) -> bytes:
        self.infos += 1
        if self.info_fails is not None:
            await context.abort(self.info_fails, "not now")
        info = pb.GetServerInfoResponse(limits=pb.Limits(**self._limits), default_embedder=self.model)
        return info.SerializeToString()

    def _health(self) -> dict[str, Any]:
        async def check(_: bytes, __: Any) -> bytes:
            return self.status

        async def watch(_: bytes, context: Any) -> None:
            self.watches += 1
            self.watchers += 1
            try:
                await self._watch(self, context)
            finally:
                self.watchers -= 1

        methods: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(check)}
        if self._watch is not None:
            methods["Watch"] = grpc.unary_stream_rpc_method_handler(watch)
        return methods


async def tell_changes(server: Scripted, context: Any) -> None:
    """A Watch as it should be."""
    while True:
        changed = server.changed
        await context.write(server.status)
        await changed.wait()


def answered(data: bytes) -> pb.EmbedResponse:
    """The answer to a request."""
    request = pb.EmbedRequest.FromString(data)
    response = pb.EmbedResponse(id=request.id)
    for item in request.items:
        rows = np.frombuffer(item.crop.raw.rgb, np.uint8).reshape(1, 160, 160, 3)
        vector = embed(rows)[0][0].astype("<f4").tobytes()
        response.results.add().embedding.CopyFrom(pb.Embedding(vector=vector, dimension=4, model="colour"))
    return response


async def answer_all(
    context: Any, most: int | None = None, refused: range = range(0), retry_after_ms: int = 10
) -> None:
    """Answer messages, those ``refused`` with a request to come back."""
    count = 0
    while (data := await context.read()) is not grpc.aio.EOF and (most is None or count < most):
        response = answered(data)
        if count in refused:
            response = pb.EmbedResponse(id=response.id, retry_after_ms=retry_after_ms)
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
