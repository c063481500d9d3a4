"""Between the contract's messages and the server's values. Pure; the only module that builds answers."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from facenet_proto.v1 import face_pb2 as pb
from numpy.typing import NDArray

from facenet_server.admission.limits import Counts
from facenet_server.config import MIB, Config
from facenet_server.errors import (
    DeviceLost,
    InternalError,
    InvalidInput,
    ItemError,
    NoFace,
    Overloaded,
    TimedOut,
    UnknownModel,
    UnknownOperatingPoint,
)
from facenet_server.models.contract import ModelInfo
from facenet_server.serving.pipeline import Comparison, Detection, Embedded
from facenet_server.telemetry.counters import Stage, Stats, WorkerCounts, resident_bytes
from facenet_server.vision.boxes import Faces
from facenet_server.vision.calibration import BEST_ACCURACY, Calibration
from facenet_server.vision.options import CompareOptions, DetectOptions, EmbedOptions, FaceSelection
from facenet_server.vision.sources import Encoded, Raw

# google.rpc.Code
INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 3, 4, 5, 8, 13, 14

CODES: dict[type[ItemError], int] = {
    InvalidInput: INVALID_ARGUMENT,
    UnknownModel: NOT_FOUND,
    UnknownOperatingPoint: NOT_FOUND,
    NoFace: NOT_FOUND,
    Overloaded: RESOURCE_EXHAUSTED,
    TimedOut: DEADLINE_EXCEEDED,
    DeviceLost: UNAVAILABLE,
    InternalError: INTERNAL,
}

_SELECTIONS: dict[int, FaceSelection] = {
    pb.FACE_SELECTION_ALL: FaceSelection.ALL,
    pb.FACE_SELECTION_LARGEST: FaceSelection.LARGEST,
    pb.FACE_SELECTION_BEST_SCORE: FaceSelection.BEST_SCORE,
    pb.FACE_SELECTION_MOST_CENTRAL: FaceSelection.MOST_CENTRAL,
}

_DEFAULTS = DetectOptions()

# ---- requests ----


def read_image(message: pb.Image) -> Encoded | Raw:
    """Raises InvalidInput where neither form is set."""
    match message.WhichOneof("data"):
        case "encoded":
            return Encoded(message.encoded, message.ignore_exif_orientation, message.refuse_damaged)
        case "raw":
            raw = message.raw
            return Raw(raw.rgb, raw.height, raw.width)
    raise InvalidInput("EMPTY", "the item holds no image")


def size_of(message: pb.Image) -> Encoded | Raw | None:
    """An image of which only the size matters: raw pixels are left where they are, to read them is to copy them. None
    where neither form is set."""
    if message.HasField("raw"):
        return Raw(b"", message.raw.height, message.raw.width)
    return read_image(message) if message.WhichOneof("data") else None


def read_side(message: pb.Side) -> Encoded | Raw | Embedded:
    """Raises InvalidInput where neither form is set, or the embedding is none."""
    match message.WhichOneof("input"):
        case "image":
            return read_image(message.image)
        case "embedding":
            return Embedded(_read_vector(message.embedding), message.embedding.model)
    raise InvalidInput("EMPTY", "a side holds neither an image nor an embedding")


def read_detect_options(message: pb.DetectOptions) -> DetectOptions:
    """Raises InvalidInput for a value outside its range."""
    stages = message.thresholds
    return DetectOptions(
        min_face_px=message.min_face_px if message.HasField("min_face_px") else _DEFAULTS.min_face_px,
        thresholds=(
            stages.proposal if stages.HasField("proposal") else _DEFAULTS.thresholds[0],
            stages.refinement if stages.HasField("refinement") else _DEFAULTS.thresholds[1],
            stages.output if stages.HasField("output") else _DEFAULTS.thresholds[2],
        ),
        scale_factor=message.scale_factor if message.HasField("scale_factor") else _DEFAULTS.scale_factor,
        max_faces=message.max_faces if message.HasField("max_faces") else None,
        return_crops=message.return_crops,
        margin_px=message.margin_px if message.HasField("margin_px") else _DEFAULTS.margin_px,
        crop_size_px=message.crop_size_px if message.HasField("crop_size_px") else _DEFAULTS.crop_size_px,
        allow_scaled_decoding=message.allow_scaled_decoding,
    )


def read_embed_options(message: pb.EmbedOptions) -> EmbedOptions:
    """Raises InvalidInput for a value outside its range."""
    faces = _read_selection(message.faces, FaceSelection.ALL)
    return EmbedOptions(_read_detect(message), faces, message.model)


def read_compare_options(message: pb.CompareOptions) -> CompareOptions:
    """Raises InvalidInput for a value outside its range."""
    return CompareOptions(
        _read_detect(message),
        _read_selection(message.faces, FaceSelection.BEST_SCORE),
        message.model,
        message.threshold if message.HasField("threshold") else None,
        message.operating_point,
    )


# ---- answers ----


def detection(value: Detection) -> pb.Detection:
    """Faces with what was asked for beside them."""
    faces = _faces(value.faces)
    for index, face in enumerate(faces):
        crop = value.crops[index] if value.crops is not None else None
        if crop is not None:
            face.crop.rgb = crop.tobytes()
            face.crop.size_px = len(crop)
        if value.embeddings is not None:
            face.embedding.CopyFrom(embedding(Embedded(value.embeddings[index], value.model)))
    return pb.Detection(
        faces=faces,
        height=value.height,
        width=value.width,
        exif_orientation=value.exif_orientation,
        damaged=value.damaged,
    )


def embedding(value: Embedded) -> pb.Embedding:
    """A vector as little-endian float32 bytes."""
    vector = value.vector.astype("<f4", copy=False)
    return pb.Embedding(vector=vector.tobytes(), dimension=len(vector), model=value.model)


def comparison(value: Comparison) -> pb.Comparison:
    """A distance, its verdict, and the faces it was measured between."""
    faces = [_faces(side.faces)[0] if side else None for side in value.found]
    orientations = [side.exif_orientation if side else 0 for side in value.found]
    damaged = [side is not None and side.damaged for side in value.found]
    message = pb.Comparison(
        distance=value.distance,
        threshold=value.threshold,
        face_a=faces[0],
        face_b=faces[1],
        model=value.model,
        operating_point=value.operating_point,
        probability=value.probability,
        exif_orientation_a=orientations[0],
        exif_orientation_b=orientations[1],
        damaged_a=damaged[0],
        damaged_b=damaged[1],
    )
    if value.threshold is not None:
        message.same = value.distance < value.threshold
    return message


def item_error(error: ItemError) -> pb.ItemError:
    """The one place where our errors become the wire's."""
    return pb.ItemError(code=CODES[type(error)], reason=error.reason, message=str(error))


def refusal(response: type[Any], number: int, n_items: int, error: ItemError) -> Any:
    """The answer to a message of that id and so many items that was not begun."""
    told = item_error(error)
    answer = response(id=number)
    for _ in range(n_items):
        answer.results.add().error.CopyFrom(told)
    return answer


class About(NamedTuple):
    """What a server runs: the package's version, its models, ONNX Runtime's providers, the embedder of requests that
    name none, and its worker processes with the memory that one has for itself."""

    version: str
    models: Sequence[ModelInfo]
    providers: Sequence[str]
    default_embedder: str
    workers: int = 0
    worker_bytes: int = 0


def server_info(about: About, config: Config) -> pb.GetServerInfoResponse:
    """What the server runs and refuses."""
    return pb.GetServerInfoResponse(
        version=about.version,
        models=[_model_info(model) for model in about.models],
        default_embedder=about.default_embedder,
        workers=about.workers,
        worker_bytes=about.worker_bytes,
        providers=about.providers,
        image_formats=config.formats,
        detect_defaults=_detect_defaults(),
        limits=pb.Limits(
            max_message_bytes=config.max_message_mib * MIB,
            max_items_per_message=config.max_items_per_message,
            images_per_group=config.images_per_group,
            max_images_per_stream=config.images_per_stream,
            max_images_in_flight=config.max_images_in_flight,
            max_pixels_in_flight=config.max_megapixels_in_flight * 1_000_000,
            max_batch_rows=config.max_batch_rows,
            max_window_rows=config.max_window_rows,
            max_queued_rows=config.max_queued_rows,
            max_messages_in_flight=config.max_messages_in_flight,
            max_items_per_stream=config.items_per_stream,
            max_items_per_caller=config.items_per_caller,
            max_items_in_flight=config.max_items_in_flight,
            max_bytes_in_flight=config.max_mib_in_flight * MIB,
            max_streams=config.max_streams,
            max_connections=config.max_connections,
            max_streams_per_connection=config.max_streams_per_connection,
            max_image_bytes=config.image_mib * MIB,
            max_image_pixels=config.max_image_megapixels * 1_000_000,
            max_image_side_px=config.max_image_side_px,
            max_image_aspect=config.max_image_aspect,
            max_image_scans=config.max_image_scans,
            max_header_parts=config.max_header_parts,
            max_pyramid_pixels=config.max_pyramid_megapixels * 1_000_000,
            max_candidates=config.candidates,
            max_crop_bytes=config.max_crop_mib * MIB,
        ),
    )


def server_stats(stats: Stats, counts: Counts) -> pb.GetServerStatsResponse:
    """What the server has done so far."""
    lag = stats.loop_lag.now()
    return pb.GetServerStatsResponse(
        uptime_s=time.monotonic() - stats.started,
        stages=[_stage(stage) for stage in stats],
        resident_bytes=resident_bytes() + sum(resident_bytes(pid) for pid in stats.worker_pids()),
        workers=_workers(stats.workers()),
        loop_lag=pb.LoopLag(p50_s=lag.p50_s, p99_s=lag.p99_s, max_s=lag.max_s),
        admission=pb.AdmissionStats(**asdict(counts)),
    )


def _workers(counts: WorkerCounts | None) -> pb.WorkerStats | None:
    return None if counts is None else pb.WorkerStats(**asdict(counts))


def _stage(stage: Stage) -> pb.StageStats:
    return pb.StageStats(
        name=stage.name, runs=stage.runs, rows=stage.rows, queue_ns=stage.queue_ns, compute_ns=stage.compute_ns
    )


def _read_detect(message: pb.EmbedOptions | pb.CompareOptions) -> DetectOptions:
    return read_detect_options(message.detect) if message.HasField("detect") else _DEFAULTS


def _read_selection(value: int, default: FaceSelection) -> FaceSelection:
    if value == pb.FACE_SELECTION_UNSPECIFIED:
        return default
    if value not in _SELECTIONS:
        raise InvalidInput("OPTION_OUT_OF_RANGE", f"faces is {value}, which the contract does not name")
    return _SELECTIONS[value]


def _read_vector(message: pb.Embedding) -> NDArray[np.float32]:
    if not message.vector or len(message.vector) != 4 * message.dimension:
        raise InvalidInput(
            "BAD_EMBEDDING",
            f"the embedding's vector has {len(message.vector)} bytes, its dimension is {message.dimension}",
        )
    return np.frombuffer(message.vector, "<f4")


def _faces(faces: Faces) -> list[pb.Face]:
    rows = zip(faces.boxes.tolist(), faces.scores.tolist(), faces.landmarks.tolist(), strict=True)
    return [
        pb.Face(
            box=pb.Box(x1=box[0], y1=box[1], x2=box[2], y2=box[3]),
            score=score,
            landmarks=[pb.Point(x=x, y=y) for x, y in points],
        )
        for box, score, points in rows
    ]


def _model_info(model: ModelInfo) -> pb.ModelInfo:
    return pb.ModelInfo(
        name=model.name,
        kind="embedder" if model.kind == "embedder" else "detector",
        source=model.source,
        source_sha256=model.source_sha256,
        onnx_sha256=model.onnx_sha256,
        preprocessing=model.preprocessing,
        input_size_px=model.input_size_px,
        dimension=model.dimension,
        threshold=model.calibration.operating_points[BEST_ACCURACY].threshold if model.calibration else 0,
        calibration=_calibration(model.calibration) if model.calibration else None,
        parity_max_abs_diff=model.parity_max_abs_diff,
        precision=model.precision,
        interchangeable_with=model.interchangeable_with,
    )


def _calibration(calibration: Calibration) -> pb.Calibration:
    points = [pb.OperatingPoint(**asdict(point)) for point in calibration.operating_points.values()]
    kind = calibration.probability_map["kind"]
    return pb.Calibration(data=calibration.data, operating_points=points, probability_map=kind)


def _detect_defaults() -> pb.DetectOptions:
    proposal, refinement, output = _DEFAULTS.thresholds
    return pb.DetectOptions(
        min_face_px=int(_DEFAULTS.min_face_px),
        thresholds=pb.StageThresholds(proposal=proposal, refinement=refinement, output=output),
        scale_factor=_DEFAULTS.scale_factor,
        return_crops=_DEFAULTS.return_crops,
        margin_px=int(_DEFAULTS.margin_px),
        crop_size_px=_DEFAULTS.crop_size_px,
    )
