"""Converts between the SDK's values and the contract's messages, for both clients. No waiting, no connection.

An Exchange describes one streaming method for one call's options: how an input becomes an item of a request,
and how an item of a response becomes a result.
"""

import os
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Generic, NamedTuple, TypeVar

import grpc
import numpy as np
from facenet_proto.v1 import face_pb2 as pb

from facenet_client import _answers, _images, _requests, errors, types
from facenet_client._encoding import Encoded, field, joined, leaf
from facenet_client._targets import is_local
from facenet_client.errors import ItemError
from facenet_client.types import Comparison, Detection, Embedding, Face

SERVICE = pb.DESCRIPTOR.services_by_name["FaceService"].full_name

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),  # answers are bounded by their requests and the server's limits
    ("grpc.max_send_message_length", -1),  # messages are cut to the server's limits before they are sent
    ("grpc.http2.bdp_probe", 0),  # bounded flow control, as on the server
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # each channel has a connection of its own
]


def channel_options(address: str) -> list[tuple[str, Any]]:
    """gRPC's options for a channel. Connections to this machine use no proxy, whatever the environment says."""
    return [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)] if is_local(address) else CHANNEL_OPTIONS


_MOST_MS = (1 << 32) - 1  # the largest value of the contract's field

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Exchange(Generic[InputT, ResultT]):
    """One streaming method with one call's ``options``. ``name`` is the method's name in the SDK, ``method`` its name
    in the contract."""

    name: str
    method: str
    options: Mapping[str, Any]
    request: Callable[[int, Sequence[Encoded], int | None], bytes]
    response: type[Any]
    to_item: Callable[[InputT], Encoded]
    from_result: Callable[[Any], ResultT]
    from_error: Callable[[ItemError], ResultT]
    check_item: Callable[[Any], None] | None = None

    @property
    def path(self) -> str:
        """The RPC's full name."""
        return f"/{SERVICE}/{self.method}"

    def prepare(self, value: InputT) -> Encoded | ItemError:
        """The input as an item of a request, or an ItemError if it cannot be sent."""
        try:
            return self.to_item(value)
        except ItemError as error:
            return error


class Chunk(NamedTuple):
    """Inputs that are sent in one message: the request's bytes (None if there is nothing to send), and for each input
    its ItemError if it cannot be sent."""

    id: int
    request: bytes | None
    errors: Sequence[ItemError | None]


def chunk(
    exchange: Exchange[Any, Any], number: int, prepared: Sequence[Encoded | ItemError], timeout_s: float | None
) -> Chunk:
    """Prepared inputs as one message. The server may give up its work after ``timeout_s``."""
    timeout_ms = None if timeout_s is None else _milliseconds(timeout_s)
    items = [item for item in prepared if not isinstance(item, ItemError)]
    failed = [item if isinstance(item, ItemError) else None for item in prepared]
    return Chunk(number, exchange.request(number, items, timeout_ms) if items else None, failed)


def with_time_left(request: bytes, left_s: float) -> bytes:
    """A request that is sent late, with the time that is left. In protobuf, the last value of a repeated field number
    counts; the number of ``timeout_ms`` is the same in all requests."""
    return request + pb.EmbedRequest(timeout_ms=_milliseconds(left_s)).SerializeToString()


def _milliseconds(seconds: float) -> int:
    return min(max(1, round(1000 * seconds)), _MOST_MS)


def results(exchange: Exchange[Any, ResultT], chunk: Chunk, response: Any) -> list[ResultT]:
    """One result per input of the chunk; raises ServerFault where the response is not this chunk's."""
    answers: Iterator[Any] = iter(())
    if chunk.request is not None:
        expected = sum(error is None for error in chunk.errors)
        if response.id != chunk.id or len(response.results) != expected:
            raise errors.ServerFault(
                f"message {chunk.id} of {expected} items was answered by {response.id} with {len(response.results)}"
            )
        answers = iter(response.results)
    return [_result(exchange, next(answers)) if error is None else exchange.from_error(error) for error in chunk.errors]


def check_inputs(exchange: Exchange[Any, Any], inputs: Any) -> None:
    """Raises TypeError, with the right call, if ``inputs`` is one image instead of an iterable of images.

    Raises it also if an item of a list or tuple cannot be an input. Items of an iterator are checked when they come.
    """
    name = exchange.name
    most_dimensions = 2 if exchange.options.get("colour") == "grey" else 3
    is_one = isinstance(
        inputs, str | bytes | bytearray | memoryview | os.PathLike | Mapping | Face | Embedding | Detection
    )
    if is_one or _images.is_file(inputs) or _images.is_pillow(inputs) or _is_one_array(inputs, most_dimensions):
        example = "(a, b)" if exchange.check_item else "image"
        raise TypeError(f"{name} takes an iterable, as {name}([{example}]), not one {type(inputs).__name__}")
    if not (isinstance(inputs, Iterable | AsyncIterable)):
        raise TypeError(f"{name} takes an iterable, not a {type(inputs).__name__}")
    if exchange.check_item and isinstance(inputs, list | tuple):
        for item in inputs:
            exchange.check_item(item)


def _is_one_array(inputs: Any, most_dimensions: int) -> bool:
    """Whether ``inputs`` is the pixels of one image. An array of several images has one more dimension; an array of
    file names has another dtype."""
    return isinstance(inputs, np.ndarray) and inputs.dtype.kind in "biuf" and inputs.ndim <= most_dimensions


def too_large(size: int, limit: int) -> ItemError:
    """The error for an item that does not fit into a message."""
    return errors.ImageError(
        f"the item takes {size:,} bytes, a message at most {limit:,}: shrink the image, send pixels as a "
        "file, or raise the server's --max-message-mib",
        code=grpc.StatusCode.INVALID_ARGUMENT.value[0],
        reason="IMAGE_TOO_LARGE",
    )


def _result(exchange: Exchange[Any, ResultT], result: Any) -> ResultT:
    if result.HasField("error"):
        return exchange.from_error(_answers.item_error(result.error))
    return exchange.from_result(result)


def _request(empty: Any, items_field: str) -> Callable[[int, Sequence[Encoded], int | None], bytes]:
    """A function that builds requests: each has the options of the ``empty`` request, and its own id and items."""
    kind, options = type(empty), leaf(empty)
    number_of_field = kind.DESCRIPTOR.fields_by_name[items_field].number

    def request(number: int, items: Sequence[Encoded], timeout_ms: int | None) -> bytes:
        head = leaf(kind(id=number, timeout_ms=timeout_ms))
        return joined([head, options, *(field(number_of_field, item) for item in items)])

    return request


# ---- the four exchanges ----


def detect(options: Mapping[str, Any]) -> Exchange[types.ImageLike, Detection]:
    """Images to their faces."""
    _requests.known(options, types.DetectOptions)
    message = _requests.detect_options(options)
    return Exchange(
        "detect",
        "Detect",
        options,
        _request(pb.DetectRequest(options=message), "images"),
        pb.DetectResponse,
        lambda image: _requests.image(image, options),
        lambda result: _answers.detection(result.detection),
        _answers.failed_detection,
    )


def embed(options: Mapping[str, Any]) -> Exchange[types.ImageLike, Detection]:
    """Images to their faces with embeddings."""
    _requests.known(options, types.EmbedOptions)
    message = pb.EmbedOptions(
        detect=_requests.detect_options(options), faces=_requests.selection(options), model=options.get("model") or ""
    )
    return Exchange(
        "embed",
        "Embed",
        options,
        _request(pb.EmbedRequest(options=message), "items"),
        pb.EmbedResponse,
        lambda image: field(pb.EmbedItem.IMAGE_FIELD_NUMBER, _requests.image(image, options)),
        lambda result: _answers.detection(result.detection),
        _answers.failed_detection,
    )


def embed_crops(options: Mapping[str, Any]) -> Exchange[types.ImageLike, Embedding]:
    """Ready 160×160 crops to embeddings."""
    _requests.known(options, types.CropOptions)
    message = pb.EmbedOptions(model=options.get("model") or "")
    return Exchange(
        "embed_crops",
        "Embed",
        options,
        _request(pb.EmbedRequest(options=message), "items"),
        pb.EmbedResponse,
        lambda crop: field(pb.EmbedItem.CROP_FIELD_NUMBER, _requests.image(crop, options)),
        lambda result: _answers.embedding(result.embedding, damaged=result.damaged),
        lambda error: Embedding(np.empty(0, np.float32), "", error),
    )


def compare(options: Mapping[str, Any]) -> Exchange[tuple[types.Side, types.Side], Comparison]:
    """Pairs to distances."""
    _requests.known(options, types.CompareOptions)
    message = pb.CompareOptions(
        detect=_requests.detect_options(options),
        faces=_requests.selection(options),
        model=options.get("model") or "",
        threshold=options.get("threshold"),
        operating_point=options.get("operating_point") or "",
    )

    def pair(sides: tuple[types.Side, types.Side]) -> Encoded:
        _check_pair(sides)
        return _requests.pair(sides, options)

    return Exchange(
        "compare",
        "Compare",
        options,
        _request(pb.CompareRequest(options=message), "pairs"),
        pb.CompareResponse,
        pair,
        lambda result: _answers.comparison(result.comparison),
        lambda error: Comparison(nan, error=error),
        _check_pair,
    )


def _check_pair(pair: Any) -> None:
    """Raises TypeError if ``pair`` is no pair of sides."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        given = _images.shown(repr(pair)) if isinstance(pair, str | os.PathLike) else f"a {type(pair).__name__}"
        raise TypeError(f"compare takes pairs, each of two sides, as compare([(a, b)]); {given} is none")
