"""The contract's messages as the SDK's values and errors. No waiting, no connection."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

import grpc
import numpy as np
from facenet_proto.v1 import face_pb2 as pb
from google.protobuf.message import DecodeError

from facenet_client import errors
from facenet_client._targets import proxy_note
from facenet_client.errors import CallError, ItemError
from facenet_client.stats import Admission, LoopLag, ServerStats, StageStats, WorkerStats
from facenet_client.types import (
    Calibration,
    Comparison,
    Detection,
    Embedding,
    Face,
    ModelInfo,
    OperatingPoint,
    ServerInfo,
)


def parsed_info(target: str, data: bytes) -> pb.GetServerInfoResponse:
    """Parse the bytes. Raises ServerFault if they are no such message."""
    try:
        return pb.GetServerInfoResponse.FromString(data)
    except DecodeError:
        raise errors.ServerFault(f"{target}: what the server says of itself cannot be read") from None


def models(info: pb.GetServerInfoResponse) -> tuple[str, list[tuple[str, str]]]:
    """What several servers must have in common, so that a client can use them as one."""
    return info.default_embedder, sorted((model.name, model.onnx_sha256) for model in info.models)


def together(infos: Sequence[pb.GetServerInfoResponse]) -> pb.GetServerInfoResponse:
    """Several servers as one: the first server's answer, with the smallest value of each limit. A limit that a server
    does not tell, as an older one may, is 0 in its answer."""
    one = pb.GetServerInfoResponse()
    one.CopyFrom(infos[0])
    for name in (field.name for field in pb.Limits.DESCRIPTOR.fields):
        told = [value for info in infos if (value := getattr(info.limits, name))]
        setattr(one.limits, name, min(told, default=0))
    return one


def server_info(message: pb.GetServerInfoResponse) -> ServerInfo:
    """What the server says of itself."""
    return ServerInfo(
        version=message.version,
        models=tuple(map(_model_info, message.models)),
        default_embedder=message.default_embedder,
        providers=tuple(message.providers),
        image_formats=tuple(message.image_formats),
        limits={f.name: getattr(message.limits, f.name) for f in pb.Limits.DESCRIPTOR.fields},
        workers=message.workers,
        worker_bytes=message.worker_bytes,
    )


def server_stats(message: pb.GetServerStatsResponse) -> ServerStats:
    """What the server has done."""
    lag = message.loop_lag
    return ServerStats(
        uptime_s=message.uptime_s,
        stages=tuple(StageStats(s.name, s.runs, s.rows, s.queue_ns, s.compute_ns) for s in message.stages),
        resident_bytes=message.resident_bytes,
        loop_lag=LoopLag(lag.p50_s, lag.p99_s, lag.max_s),
        admission=Admission(**{each.name: getattr(message.admission, each.name) for each in fields(Admission)}),
        workers=WorkerStats(**{each.name: getattr(message.workers, each.name) for each in fields(WorkerStats)}),
    )


def _model_info(message: pb.ModelInfo) -> ModelInfo:
    values = {field.name: getattr(message, field.name) for field in pb.ModelInfo.DESCRIPTOR.fields}
    values["calibration"] = _calibration(message.calibration) if message.HasField("calibration") else None
    values["interchangeable_with"] = tuple(message.interchangeable_with)
    return ModelInfo(**values)


def _calibration(message: pb.Calibration) -> Calibration:
    fields = [field.name for field in pb.OperatingPoint.DESCRIPTOR.fields]
    points = (OperatingPoint(**{name: getattr(p, name) for name in fields}) for p in message.operating_points)
    return Calibration(message.data, tuple(points), message.probability_map)


def detection(message: pb.Detection) -> Detection:
    return Detection(
        faces=tuple(map(_face, message.faces)),
        width=message.width,
        height=message.height,
        exif_orientation=message.exif_orientation,
        damaged=message.damaged,
    )


def failed_detection(error: ItemError) -> Detection:
    return Detection((), 0, 0, error=error)


def _face(message: pb.Face) -> Face:
    box, size = message.box, message.crop.size_px
    crop = np.frombuffer(message.crop.rgb, np.uint8).reshape(size, size, 3)
    return Face(
        box=(box.x1, box.y1, box.x2, box.y2),
        score=message.score,
        landmarks=tuple((point.x, point.y) for point in message.landmarks),
        embedding=embedding(message.embedding) if message.HasField("embedding") else None,
        crop=crop if message.HasField("crop") else None,
    )


def embedding(message: pb.Embedding, *, damaged: bool = False) -> Embedding:
    return Embedding(np.frombuffer(message.vector, "<f4"), message.model, damaged=damaged)


def comparison(message: pb.Comparison) -> Comparison:
    return Comparison(
        distance=message.distance,
        threshold=message.threshold if message.HasField("threshold") else None,
        same=message.same if message.HasField("same") else None,
        probability=message.probability if message.HasField("probability") else None,
        operating_point=message.operating_point,
        model=message.model,
        face_a=_face(message.face_a) if message.HasField("face_a") else None,
        face_b=_face(message.face_b) if message.HasField("face_b") else None,
        damaged_a=message.damaged_a,
        damaged_b=message.damaged_b,
    )


ITEM_ERRORS: dict[str, type[ItemError]] = {
    "OPTION_OUT_OF_RANGE": errors.OptionError,
    "TOO_MUCH_WORK": errors.OptionError,
    "UNKNOWN_MODEL": errors.OptionError,
    "UNKNOWN_OPERATING_POINT": errors.OptionError,
    "RESPONSE_TOO_LARGE": errors.OptionError,
    "MODEL_MISMATCH": errors.EmbeddingError,
    "BAD_EMBEDDING": errors.EmbeddingError,
    "NO_FACE": errors.NoFaceError,
    "INTERNAL": errors.ServerItemError,
    "OVERLOADED": errors.ServerItemError,
    "DEVICE_LOST": errors.ServerItemError,
    "TIMED_OUT": errors.ItemTimeout,
    "EMPTY": errors.ImageError,
    "UNSUPPORTED_FORMAT": errors.ImageError,
    "TRUNCATED": errors.ImageError,
    "CORRUPT": errors.ImageError,
    "DAMAGED": errors.ImageError,
    "TOO_COMPLEX": errors.ImageError,
    "IMAGE_TOO_LARGE": errors.ImageError,
    "WRONG_SIZE": errors.ImageError,
}

_CALL_ERRORS: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.ServerUnavailable,
    grpc.StatusCode.CANCELLED: errors.ServerUnavailable,  # a server that stops at once cancels its calls
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.AnswerTimeout,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ServerOverloaded,
    grpc.StatusCode.INVALID_ARGUMENT: errors.RequestRefused,
    grpc.StatusCode.NOT_FOUND: errors.RequestRefused,
    grpc.StatusCode.FAILED_PRECONDITION: errors.RequestRefused,
    grpc.StatusCode.PERMISSION_DENIED: errors.RequestRefused,
    grpc.StatusCode.UNAUTHENTICATED: errors.AuthenticationError,
    grpc.StatusCode.UNIMPLEMENTED: errors.RequestRefused,
}


_PUSHBACK = "grpc-retry-pushback-ms"
_BAD_TOKEN = "Illegal metadata"
"""gRPC's text, with status UNAVAILABLE, for a token that cannot be a header's value."""
BROKEN_CALL = "Internal error from Core"
"""grpc.aio's text when the connection is lost during a write. It comes before the call's own status."""


def item_error(message: pb.ItemError) -> ItemError:
    kind = ITEM_ERRORS.get(message.reason, ItemError)
    return kind(message.message, code=message.code, reason=message.reason)


def call_error(
    target: str, code: grpc.StatusCode, details: str | None, trailers: Iterable[tuple[str, str | bytes]] = ()
) -> CallError:
    """The error of the SDK for a gRPC status. Only this function makes one."""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (pushback := dict(trailers).get(_PUSHBACK)) is not None:
        may_try_again = str(pushback).isdigit()  # gRFC A6: other values mean: do not try again
        retry_after_s = int(pushback) / 1000 if may_try_again else None
        return errors.ServerOverloaded(f"{target}: {details}", retry_after_s=retry_after_s)
    if code is grpc.StatusCode.UNAVAILABLE and details == _BAD_TOKEN:
        return errors.AuthenticationError(
            "the token cannot be sent, it has a line break or another character that no header may have: token.strip()?"
        )
    kind = _CALL_ERRORS.get(code, errors.ServerFault)
    if code is grpc.StatusCode.INTERNAL and details == BROKEN_CALL:
        kind = errors.ServerUnavailable
    proxy = proxy_note(target) if issubclass(kind, errors.ServerUnavailable | errors.AnswerTimeout) else ""
    return kind(f"{target}: {details or 'no details'} ({code.name}){proxy}")
