"""The RPC surface: streams of batches in, answers in request order out.

A stream has one reader task and one writer, the handler itself. The reader takes a message only with a credit
for it, and the credit returns when its answer is written: a caller that sends faster than it is served, or
does not read, is held back by its own connection. A read is never cancelled while its stream lives, since
grpc.aio would lose the message.
"""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import grpc
from facenet_proto.v1 import face_pb2 as pb
from google.protobuf.message import DecodeError, Message

from facenet_server import messages
from facenet_server.company import Company
from facenet_server.errors import ItemError, ProtocolError
from facenet_server.pipeline import ByteBudget, Pipeline
from facenet_server.seats import Seats
from facenet_server.stats import Stats

SERVICE = pb.DESCRIPTOR.services_by_name["FaceService"].full_name

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, Message]
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Method(NamedTuple):
    """A streaming method: its request message, the field that holds the batch, and who answers."""

    request: type[Any]
    response: type[Any]
    batch_field: str
    answer: Callable[[Any, Seats], Coroutine[Any, Any, Message]]


class _End(NamedTuple):
    """How a stream ends early, after the answers to everything that was accepted."""

    code: grpc.StatusCode
    details: str


_DRAINING = _End(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
_LINGER_S = 2.0  # how long a stream's end waits for its caller, who has been told, to close its side


class _Batch(NamedTuple, Generic[Item, Result]):
    """How the items of one message are answered: each, how many images to search it holds, whether it is work for
    the threads, and its failure."""

    one: Callable[[Item, Company], Awaitable[Result]]
    n_images: Callable[[Item], int]
    is_work: Callable[[Item], bool]
    failed: Callable[[pb.ItemError], Result]


_Accepted = asyncio.Queue[asyncio.Task[Message] | _End | None]  # None: the caller has no more


class FaceService:
    """FaceService of the contract. ``drain`` lets its streams finish what they accepted, then end."""

    def __init__(self, pipeline: Pipeline, info: pb.GetServerInfoResponse, stats: Stats) -> None:
        self._pipeline = pipeline
        self._info = info
        self._stats = stats
        self._limits = info.limits
        self._seats = Seats(self._limits.max_images_in_flight)
        self._draining = asyncio.Event()

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a grpc.aio server is given. Messages arrive as bytes, so that bad ones are ours to answer."""
        streams = {
            "Detect": _Method(pb.DetectRequest, pb.DetectResponse, "images", self._detect),
            "Embed": _Method(pb.EmbedRequest, pb.EmbedResponse, "items", self._embed),
            "Compare": _Method(pb.CompareRequest, pb.CompareResponse, "pairs", self._compare),
        }
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.stream_stream_rpc_method_handler(self._stream_handler(method), response_serializer=_serialize)
            for name, method in streams.items()
        }
        methods["GetServerInfo"] = grpc.unary_unary_rpc_method_handler(
            self._get_server_info, response_serializer=_serialize
        )
        methods["GetServerStats"] = grpc.unary_unary_rpc_method_handler(
            self._get_server_stats, response_serializer=_serialize
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def drain(self) -> None:
        """Read no further message; streams end with UNAVAILABLE once what they accepted is answered."""
        self._draining.set()

    # ---- the methods: one message in, one message out ----

    async def _detect(self, request: pb.DetectRequest, seats: Seats) -> pb.DetectResponse:
        budget = ByteBudget(self._limits.max_crop_bytes)

        async def one(image: pb.Image, company: Company) -> pb.DetectResult:
            options = messages.read_detect_options(request.options)
            found = await self._pipeline.detect(messages.read_image(image), options, budget, company)
            return pb.DetectResult(detection=messages.detection(found))

        batch = _Batch(one, lambda _: 1, lambda _: True, lambda error: pb.DetectResult(error=error))
        results = await self._each(request.images, batch, seats)
        return pb.DetectResponse(id=request.id, results=results)

    async def _embed(self, request: pb.EmbedRequest, seats: Seats) -> pb.EmbedResponse:
        budget = ByteBudget(self._limits.max_crop_bytes)

        async def one(item: pb.EmbedItem, company: Company) -> pb.EmbedResult:
            options = messages.read_embed_options(request.options)
            if item.WhichOneof("input") == "crop":
                crop = await self._pipeline.embed_crop(messages.read_image(item.crop), options)
                return pb.EmbedResult(embedding=messages.embedding(crop), exif_orientation=crop.exif_orientation)
            found = await self._pipeline.embed(messages.read_image(item.image), options, budget, company)
            return pb.EmbedResult(detection=messages.detection(found))

        def is_work(item: pb.EmbedItem) -> bool:
            return item.HasField("image") or item.crop.HasField("encoded")

        batch = _Batch(one, lambda item: item.HasField("image"), is_work, lambda error: pb.EmbedResult(error=error))
        results = await self._each(request.items, batch, seats)
        return pb.EmbedResponse(id=request.id, results=results)

    async def _compare(self, request: pb.CompareRequest, seats: Seats) -> pb.CompareResponse:
        async def one(pair: pb.Pair, company: Company) -> pb.CompareResult:
            options = messages.read_compare_options(request.options)
            a, b = messages.read_side(pair.a), messages.read_side(pair.b)
            found = await self._pipeline.compare(a, b, options, company)
            return pb.CompareResult(comparison=messages.comparison(found))

        def n_images(pair: pb.Pair) -> int:
            return pair.a.HasField("image") + pair.b.HasField("image")

        batch = _Batch(one, n_images, lambda pair: n_images(pair) > 0, lambda error: pb.CompareResult(error=error))
        results = await self._each(request.pairs, batch, seats)
        return pb.CompareResponse(id=request.id, results=results)

    async def _each(self, items: Sequence[Item], batch: _Batch[Item, Result], seats: Seats) -> list[Result]:
        """Answer a message's items, in groups whose images go side by side; one that fails has its error."""
        size = self._limits.images_per_group
        groups = [items[start : start + size] for start in range(0, len(items), size)]
        answered = await asyncio.gather(*(self._group(group, batch, seats) for group in groups))
        return [result for results in answered for result in results]

    async def _group(self, items: Sequence[Item], batch: _Batch[Item, Result], seats: Seats) -> list[Result]:
        company = Company(sum(map(batch.n_images, items)))
        answers = (_answer(item, batch, company) for item in items)
        work = sum(max(batch.n_images(item), batch.is_work(item)) for item in items)
        if not work:
            return await asyncio.gather(*answers)
        async with seats.taken(work), self._seats.taken(work):  # its stream's share, then the server's
            return await asyncio.gather(*answers)

    async def _get_server_info(self, data: bytes, context: Context) -> pb.GetServerInfoResponse:
        try:
            pb.GetServerInfoRequest.FromString(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the bytes are no GetServerInfoRequest")
        return self._info

    async def _get_server_stats(self, _: bytes, __: Context) -> pb.GetServerStatsResponse:
        return messages.server_stats(self._stats)

    # ---- streams ----

    def _stream_handler(self, method: _Method) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
        async def handle(_: AsyncIterator[bytes], context: Context) -> None:
            try:
                end = await self._serve(method, context)
            except Exception:
                incident = _log_incident("a stream failed")
                end = _End(grpc.StatusCode.INTERNAL, f"internal error {incident}")
            if end is not None:
                await context.abort(end.code, end.details)

        return handle

    async def _serve(self, method: _Method, context: Context) -> _End | None:
        """Write a stream's answers, in request order, until it ends."""
        credits = asyncio.Semaphore(self._limits.max_messages_in_flight)
        accepted: _Accepted = asyncio.Queue()  # bounded by the credits
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(method, context, credits, accepted, tasks))
            while isinstance(answer := await accepted.get(), asyncio.Task):
                await context.write(await answer)
                credits.release()
            if answer is _DRAINING:
                await context.write(method.response(draining=True))
                # A caller that still writes when its call ends may lose answers that it has not read.
                await asyncio.wait({reader}, timeout=_LINGER_S)
                reader.cancel()
        return answer

    async def _read(
        self,
        method: _Method,
        context: Context,
        credits: asyncio.Semaphore,
        accepted: _Accepted,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Accept a stream's messages, each for a credit, until there are no more to accept."""
        seats = Seats(self._limits.max_images_per_stream)
        draining = asyncio.create_task(self._draining.wait())
        try:
            while True:
                await credits.acquire()
                read = _start_read(context)
                await asyncio.wait({read, draining}, return_when=asyncio.FIRST_COMPLETED)
                if draining.done():
                    accepted.put_nowait(_DRAINING)
                    await _discard(read, context)
                    return
                data = read.result()
                if data is grpc.aio.EOF:
                    accepted.put_nowait(None)
                    return
                accepted.put_nowait(tasks.create_task(method.answer(self._parse(method, data), seats)))
        except ProtocolError as error:
            accepted.put_nowait(_End(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
        finally:
            draining.cancel()

    def _parse(self, method: _Method, data: bytes) -> Any:
        try:
            request = method.request.FromString(data)
        except DecodeError:
            raise ProtocolError(f"the bytes are no {method.request.DESCRIPTOR.name}") from None
        count, limit = len(getattr(request, method.batch_field)), self._limits.max_items_per_message
        if count > limit:
            raise ProtocolError(f"the message holds {count} items; the limit is {limit}")
        return request


async def _answer(item: Item, batch: _Batch[Item, Result], company: Company) -> Result:
    try:
        return await batch.one(item, company)
    except ItemError as error:
        return batch.failed(messages.item_error(error))
    except Exception:
        return batch.failed(messages.internal_error(_log_incident("an item failed")))
    finally:
        company.leave(batch.n_images(item))


def _log_incident(what: str) -> str:
    """Log the exception being handled under an id that may be told to callers, who see nothing else of it."""
    incident = uuid.uuid4().hex[:12]
    _log.exception("%s, incident %s", what, incident)
    return incident


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _start_read(context: Context) -> asyncio.Future[Any]:
    """A read to be waited for with asyncio.wait: a read that is cancelled loses its message."""
    read = asyncio.ensure_future(context.read())
    read.add_done_callback(_retrieve)
    return read


async def _discard(read: asyncio.Future[Any], context: Context) -> None:
    """Read on to the caller's end."""
    await asyncio.wait({read})
    while read.result() is not grpc.aio.EOF:
        read = _start_read(context)
        await asyncio.wait({read})


def _retrieve(read: asyncio.Future[Any]) -> None:
    """Look at a read's error, which nobody waits for once its stream has ended."""
    if not read.cancelled():
        read.exception()
