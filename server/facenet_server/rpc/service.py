"""The RPC surface: each method's messages in, its answers out. How a stream lives is in ``stream``."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from typing import TYPE_CHECKING, Any

import grpc
from facenet_proto.v1 import face_pb2 as pb
from google.protobuf.message import Message

from facenet_server.admission.controller import AdmissionController
from facenet_server.config import Config
from facenet_server.errors import ItemError, Refused
from facenet_server.rpc import converters, prescan
from facenet_server.rpc.auth import Callers
from facenet_server.rpc.converters import About
from facenet_server.rpc.stream import End, Method, Stream, StreamLimits
from facenet_server.rpc.unary import UnaryCalls, refuse, serialized
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.micro_batch import EMBEDDINGS, RAW_CROPS, ItemHandler, MicroBatches, RequestContext
from facenet_server.serving.pipeline import ByteBudget, Pipeline
from facenet_server.telemetry.counters import Stats
from facenet_server.telemetry.error_id import log_error
from facenet_server.vision.sources import Encoded, Raw

_UNARY_CALLS_BESIDE = 128  # a connection that watches the health
SERVICE = pb.DESCRIPTOR.services_by_name["FaceService"].full_name

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, Message]


class FaceService:
    """FaceService of the contract. ``drain`` lets its streams finish what they accepted, then end."""

    def __init__(
        self,
        pipeline: Pipeline,
        about: About,
        config: Config,
        stats: Stats,
        admission: AdmissionController,
        callers: Callers,
        scan: Callable[[bytes, prescan.Fields, int], prescan.Prescan] = prescan.scan,
    ) -> None:
        self._pipeline = pipeline
        self._info = converters.server_info(about, config)
        self._stats = stats
        self._limits = self._info.limits
        self._max_write_stall_s = config.max_write_stall_s
        self._micro_batches = MicroBatches(pipeline, config.images_per_group, admission)
        self._draining = asyncio.Event()
        self._scan = scan
        self.callers = callers
        self.admission = admission
        self.unary_calls = UnaryCalls(callers, self._limits.max_connections + _UNARY_CALLS_BESIDE)

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
            name: grpc.stream_stream_rpc_method_handler(self._handler(method, bounds), response_serializer=serialized)
            for name, method in self._methods().items()
        }
        methods["GetServerInfo"] = self.unary_calls.handler(pb.GetServerInfoRequest, self._get_server_info)
        methods["GetServerStats"] = self.unary_calls.handler(pb.GetServerStatsRequest, self._get_server_stats)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _handler(self, method: Method, limits: StreamLimits) -> Callable[[Any, Context], Coroutine[Any, Any, None]]:
        """A method as grpc.aio calls it."""

        async def handle(_: Any, context: Context) -> None:
            try:
                caller = self.callers.name(context)
                stream = Stream(method, context, limits, self.admission, self._draining, self._scan)
                end = await stream.serve(caller)
            except Refused as refused:
                await refuse(context, refused)
            except Exception:  # noqa: BLE001 (a stream's failure is its own: the server goes on)
                end = End(grpc.StatusCode.INTERNAL, f"internal error {log_error('a stream failed')}")
            if end is not None:
                await context.abort(end.code, end.details)

        return handle

    def drain(self) -> None:
        """Read no further message; streams end with UNAVAILABLE once what they accepted is answered."""
        self._draining.set()

    # ---- the methods: one message in, one message out ----

    def _methods(self) -> dict[str, Method]:
        return {
            "Detect": Method(pb.DetectRequest, pb.DetectResponse, "images", self._detect, {}),
            "Embed": Method(
                pb.EmbedRequest,
                pb.EmbedResponse,
                "items",
                self._embed,
                {"image": {}, "crop": {"encoded": {}}},
                RAW_CROPS,
            ),
            "Compare": Method(
                pb.CompareRequest,
                pb.CompareResponse,
                "pairs",
                self._compare,
                {"a": {"image": {}}, "b": {"image": {}}},
                EMBEDDINGS,
            ),
        }

    async def _detect(self, request: pb.DetectRequest, context: RequestContext) -> pb.DetectResponse:
        budget = ByteBudget(self._limits.max_crop_bytes, context.crops.take)
        options = cache(lambda: converters.read_detect_options(request.options))

        async def one(image: pb.Image, barrier: BatchBarrier) -> pb.DetectResult:
            found = await self._pipeline.detect(converters.read_image(image), options(), budget, barrier)
            return pb.DetectResult(detection=converters.detection(found))

        def failed(error: ItemError) -> pb.DetectResult:
            return pb.DetectResult(error=converters.item_error(error))

        handler = ItemHandler(
            one, lambda image: [converters.size_of(image)], lambda _: True, failed, request.options.return_crops
        )
        results = await self._micro_batches.answer(request.images, handler, context)
        return pb.DetectResponse(id=request.id, results=results)

    async def _embed(self, request: pb.EmbedRequest, context: RequestContext) -> pb.EmbedResponse:
        budget = ByteBudget(self._limits.max_crop_bytes, context.crops.take)
        options = cache(lambda: converters.read_embed_options(request.options))  # where they are wrong, wrong for each

        async def one(item: pb.EmbedItem, barrier: BatchBarrier) -> pb.EmbedResult:
            if item.WhichOneof("input") == "crop":
                crop = await self._pipeline.embed_crop(converters.read_image(item.crop), options(), barrier.deadline)
                return pb.EmbedResult(
                    embedding=converters.embedding(crop), exif_orientation=crop.exif_orientation, damaged=crop.damaged
                )
            found = await self._pipeline.embed(converters.read_image(item.image), options(), budget, barrier)
            return pb.EmbedResult(detection=converters.detection(found))

        def needs_threads(item: pb.EmbedItem) -> bool:
            return item.HasField("image") or item.crop.HasField("encoded")

        def images(item: pb.EmbedItem) -> list[Encoded | Raw | None]:
            return [converters.size_of(item.image)] if item.HasField("image") else []

        def failed(error: ItemError) -> pb.EmbedResult:
            return pb.EmbedResult(error=converters.item_error(error))

        handler = ItemHandler(one, images, needs_threads, failed, request.options.detect.return_crops)
        results = await self._micro_batches.answer(request.items, handler, context)
        return pb.EmbedResponse(id=request.id, results=results)

    async def _compare(self, request: pb.CompareRequest, context: RequestContext) -> pb.CompareResponse:
        options = cache(lambda: converters.read_compare_options(request.options))

        async def one(pair: pb.Pair, barrier: BatchBarrier) -> pb.CompareResult:
            a, b = converters.read_side(pair.a), converters.read_side(pair.b)
            found = await self._pipeline.compare(a, b, options(), barrier)
            return pb.CompareResult(comparison=converters.comparison(found))

        def images(pair: pb.Pair) -> list[Encoded | Raw | None]:
            return [converters.size_of(side.image) for side in (pair.a, pair.b) if side.HasField("image")]

        def failed(error: ItemError) -> pb.CompareResult:
            return pb.CompareResult(error=converters.item_error(error))

        handler = ItemHandler(one, images, lambda pair: bool(images(pair)), failed)
        results = await self._micro_batches.answer(request.pairs, handler, context)
        return pb.CompareResponse(id=request.id, results=results)

    async def _get_server_info(self, _: Message, __: Context) -> pb.GetServerInfoResponse:
        return self._info

    async def _get_server_stats(self, _: Message, __: Context) -> pb.GetServerStatsResponse:
        return converters.server_stats(self._stats, self.admission.counts)
