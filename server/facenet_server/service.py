"""The RPC surface: each method's messages in, its answers out. How a stream lives is in ``streams``."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import grpc
from facenet_proto.v1 import face_pb2 as pb
from google.protobuf.message import DecodeError, Message

from facenet_server import messages
from facenet_server.admission import Admission
from facenet_server.backlog import Work
from facenet_server.capacity import Capacity
from facenet_server.company import Company, companies
from facenet_server.errors import ItemError, Overloaded, Refused, TimedOut
from facenet_server.images import Encoded, Raw
from facenet_server.methods import CROPS, VECTORS, Method, Place, StreamLimits
from facenet_server.pipeline import ByteBudget, Pipeline
from facenet_server.seats import Seats
from facenet_server.stats import Stats
from facenet_server.streams import End, Stream

PUSHBACK = "grpc-retry-pushback-ms"  # gRFC A6's name for when to come back
SERVICE = pb.DESCRIPTOR.services_by_name["FaceService"].full_name

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, Message]
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Batch(NamedTuple, Generic[Item, Result]):
    """How the items of one message are answered: each, its images to be searched, whether it is work for the threads,
    its failure, the seats of those that are no such work (None: they need none), and whether crops were asked for."""

    one: Callable[[Item, Company], Awaitable[Result]]
    images: Callable[[Item], Sequence[pb.Image]]
    is_work: Callable[[Item], bool]
    failed: Callable[[pb.ItemError], Result]
    other_seats: Seats | None = None
    has_crops: bool = False


class FaceService:
    """FaceService of the contract. ``drain`` lets its streams finish what they accepted, then end."""

    def __init__(
        self, pipeline: Pipeline, info: pb.GetServerInfoResponse, stats: Stats, max_write_stall_s: float = 30.0
    ) -> None:
        self._pipeline = pipeline
        self._info = info
        self._stats = stats
        self._limits = limits = info.limits
        self._max_write_stall_s = max_write_stall_s
        self._seats = Seats(limits.max_images_in_flight)
        self._pixels = Seats(limits.max_pixels_in_flight)
        self._crop_seats = Seats(2 * limits.max_batch_rows)  # a batch that runs, and the next: callers take turns
        self._draining = asyncio.Event()
        self.admission = Admission(
            Capacity(
                items_per_stream=limits.max_items_per_stream,
                items_per_caller=limits.max_items_per_caller,
                items=limits.max_items_in_flight,
                n_bytes=limits.max_bytes_in_flight,
                streams=limits.max_streams,
            ),
            pipeline.n_threads,
        )

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a grpc.aio server is given. Messages arrive as bytes, so that bad ones are ours to answer."""
        limits = self._limits
        bounds = StreamLimits(
            max_messages=limits.max_messages_in_flight,
            max_items_per_message=limits.max_items_per_message,
            max_images=limits.max_images_per_stream,
            max_write_stall_s=self._max_write_stall_s,
        )
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.stream_stream_rpc_method_handler(
                _handler(method, bounds, self.admission, self._draining), response_serializer=_serialize
            )
            for name, method in self._methods().items()
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

    def _methods(self) -> dict[str, Method]:
        return {
            "Detect": Method(pb.DetectRequest, pb.DetectResponse, "images", self._detect),
            "Embed": Method(pb.EmbedRequest, pb.EmbedResponse, "items", self._embed, (["image"],), CROPS),
            "Compare": Method(
                pb.CompareRequest, pb.CompareResponse, "pairs", self._compare, (["a", "b"], ["image"]), VECTORS
            ),
        }

    async def _detect(self, request: pb.DetectRequest, place: Place) -> pb.DetectResponse:
        budget = ByteBudget(self._limits.max_crop_bytes, place.crops.add)
        options = cache(lambda: messages.read_detect_options(request.options))

        async def one(image: pb.Image, company: Company) -> pb.DetectResult:
            found = await self._pipeline.detect(messages.read_image(image), options(), budget, company)
            return pb.DetectResult(detection=messages.detection(found))

        has_crops = request.options.return_crops
        batch = _Batch(
            one, lambda image: [image], lambda _: True, lambda error: pb.DetectResult(error=error), None, has_crops
        )
        results = await self._each(request.images, batch, place)
        return pb.DetectResponse(id=request.id, results=results)

    async def _embed(self, request: pb.EmbedRequest, place: Place) -> pb.EmbedResponse:
        budget = ByteBudget(self._limits.max_crop_bytes, place.crops.add)
        options = cache(lambda: messages.read_embed_options(request.options))  # where they are wrong, wrong for each

        async def one(item: pb.EmbedItem, company: Company) -> pb.EmbedResult:
            if item.WhichOneof("input") == "crop":
                crop = await self._pipeline.embed_crop(messages.read_image(item.crop), options(), company.deadline)
                return pb.EmbedResult(embedding=messages.embedding(crop), exif_orientation=crop.exif_orientation)
            found = await self._pipeline.embed(messages.read_image(item.image), options(), budget, company)
            return pb.EmbedResult(detection=messages.detection(found))

        def is_work(item: pb.EmbedItem) -> bool:
            return item.HasField("image") or item.crop.HasField("encoded")

        def images(item: pb.EmbedItem) -> list[pb.Image]:
            return [item.image] if item.HasField("image") else []

        has_crops = request.options.detect.return_crops
        batch = _Batch(one, images, is_work, lambda error: pb.EmbedResult(error=error), self._crop_seats, has_crops)
        results = await self._each(request.items, batch, place)
        return pb.EmbedResponse(id=request.id, results=results)

    async def _compare(self, request: pb.CompareRequest, place: Place) -> pb.CompareResponse:
        options = cache(lambda: messages.read_compare_options(request.options))

        async def one(pair: pb.Pair, company: Company) -> pb.CompareResult:
            a, b = messages.read_side(pair.a), messages.read_side(pair.b)
            found = await self._pipeline.compare(a, b, options(), company)
            return pb.CompareResult(comparison=messages.comparison(found))

        def images(pair: pb.Pair) -> list[pb.Image]:
            return [side.image for side in (pair.a, pair.b) if side.HasField("image")]

        batch = _Batch(one, images, lambda pair: bool(images(pair)), lambda error: pb.CompareResult(error=error))
        results = await self._each(request.pairs, batch, place)
        return pb.CompareResponse(id=request.id, results=results)

    async def _each(self, items: Sequence[Item], batch: _Batch[Item, Result], place: Place) -> list[Result]:
        """Answer a message's items, in groups whose images go side by side; one that fails has its error."""
        pixels = await self._pixels_of([batch.images(item) for item in items])
        limits = self._limits
        groups = companies(pixels, limits.images_per_group, limits.max_pixels_in_flight // 2)
        answers = [self._group(items[some], sum(pixels[some]), batch, place) for some in groups]
        return [result for results in await _gathered(answers) for result in results]

    async def _pixels_of(self, images: Sequence[Sequence[pb.Image]]) -> list[int]:
        """How many pixels the images of each item claim to have."""
        sources = [[_size_alone(image) for image in some if image.WhichOneof("data")] for some in images]
        claimed = iter(await self._pipeline.claimed_pixels([source for some in sources for source in some]))
        return [sum(islice(claimed, len(some))) for some in sources]

    async def _group(
        self, items: Sequence[Item], pixels: int, batch: _Batch[Item, Result], place: Place
    ) -> list[Result]:
        n_images = [len(batch.images(item)) for item in items]
        company = Company(sum(n_images), place.deadline)
        work = sum(n or batch.is_work(item) for n, item in zip(n_images, items, strict=True))
        try:
            async with asyncio.timeout_at(place.deadline) as wait, self._seated(batch, len(items), work, pixels, place):
                wait.reschedule(None)
                place.work.seated(len(items))
                return await _gathered([_answer(item, batch, company, place.work) for item in items])
        except TimeoutError:
            return [batch.failed(messages.item_error(TimedOut())) for _ in items]
        except Overloaded as error:
            return [batch.failed(messages.item_error(error)) for _ in items]

    @asynccontextmanager
    async def _seated(
        self, batch: _Batch[Item, Result], n_items: int, work: int, pixels: int, place: Place
    ) -> AsyncIterator[None]:
        """Room for a group: where it is work, its stream's share of the seats, then memory for its pixels, then the
        server's seats, which so are held by what runs alone, all of it while there is room for the crops that were
        asked for; else its other seats."""
        if not work:
            async with batch.other_seats.taken(n_items, place.caller) if batch.other_seats else nullcontext():
                yield
            return
        while True:
            if batch.has_crops:
                await place.crops.turn()  # without a seat
            async with (
                place.seats.taken(work),
                self._pixels.taken(pixels, place.caller),
                self._seats.taken(work, place.caller),
            ):
                if not batch.has_crops or place.crops.has_room():
                    yield
                    return

    async def _get_server_info(self, data: bytes, context: Context) -> pb.GetServerInfoResponse:
        try:
            pb.GetServerInfoRequest.FromString(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the bytes are no GetServerInfoRequest")
        return self._info

    async def _get_server_stats(self, data: bytes, context: Context) -> pb.GetServerStatsResponse:
        try:
            pb.GetServerStatsRequest.FromString(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the bytes are no GetServerStatsRequest")
        return messages.server_stats(self._stats, self.admission.counts)


def _handler(
    method: Method,
    limits: StreamLimits,
    admission: Admission,
    draining: asyncio.Event,
) -> Callable[[Any, Context], Coroutine[Any, Any, None]]:
    """A method as grpc.aio calls it."""

    async def handle(_: Any, context: Context) -> None:
        try:
            end = await Stream(method, context, limits, draining).serve(admission)
        except Refused as refused:
            pushback = ((PUSHBACK, str(round(1000 * refused.retry_after_s))),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(refused), pushback)
        except Exception:
            end = End(grpc.StatusCode.INTERNAL, f"internal error {_log_incident('a stream failed')}")
        if end is not None:
            await context.abort(end.code, end.details)

    return handle


def _size_alone(image: pb.Image) -> Encoded | Raw:
    """An image of which only the size matters: raw pixels are left where they are, to read them is to copy them."""
    return Raw(b"", image.raw.height, image.raw.width) if image.HasField("raw") else messages.read_image(image)


async def _gathered(answers: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All side by side; one alone needs no task of its own, which costs a message of one crop a tenth."""
    return [await answers[0]] if len(answers) == 1 else list(await asyncio.gather(*answers))


async def _answer(item: Item, batch: _Batch[Item, Result], company: Company, work: Work) -> Result:
    try:
        async with asyncio.timeout_at(company.deadline):
            return await batch.one(item, company)
    except TimeoutError:
        return batch.failed(messages.item_error(TimedOut()))
    except ItemError as error:
        return batch.failed(messages.item_error(error))
    except Exception:
        return batch.failed(messages.internal_error(_log_incident("an item failed")))
    finally:
        work.done()
        company.leave(len(batch.images(item)))


def _log_incident(what: str) -> str:
    """Log the exception being handled under an id that may be told to callers, who see nothing else of it."""
    incident = uuid.uuid4().hex[:12]
    _log.exception("%s, incident %s", what, incident)
    return incident


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
