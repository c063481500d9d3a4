from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FaceSelection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FACE_SELECTION_UNSPECIFIED: _ClassVar[FaceSelection]
    FACE_SELECTION_ALL: _ClassVar[FaceSelection]
    FACE_SELECTION_LARGEST: _ClassVar[FaceSelection]
    FACE_SELECTION_BEST_SCORE: _ClassVar[FaceSelection]
    FACE_SELECTION_MOST_CENTRAL: _ClassVar[FaceSelection]
FACE_SELECTION_UNSPECIFIED: FaceSelection
FACE_SELECTION_ALL: FaceSelection
FACE_SELECTION_LARGEST: FaceSelection
FACE_SELECTION_BEST_SCORE: FaceSelection
FACE_SELECTION_MOST_CENTRAL: FaceSelection

class Image(_message.Message):
    __slots__ = ("encoded", "raw", "ignore_exif_orientation", "refuse_damaged")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EXIF_ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    REFUSE_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: RawImage
    ignore_exif_orientation: bool
    refuse_damaged: bool
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[_Union[RawImage, _Mapping]] = ..., ignore_exif_orientation: bool = ..., refuse_damaged: bool = ...) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("rgb", "height", "width")
    RGB_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    rgb: bytes
    height: int
    width: int
    def __init__(self, rgb: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class StageThresholds(_message.Message):
    __slots__ = ("proposal", "refinement", "output")
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    REFINEMENT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    proposal: float
    refinement: float
    output: float
    def __init__(self, proposal: _Optional[float] = ..., refinement: _Optional[float] = ..., output: _Optional[float] = ...) -> None: ...

class DetectOptions(_message.Message):
    __slots__ = ("min_face_px", "thresholds", "scale_factor", "max_faces", "return_crops", "margin_px", "crop_size_px", "allow_scaled_decoding")
    MIN_FACE_PX_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    MAX_FACES_FIELD_NUMBER: _ClassVar[int]
    RETURN_CROPS_FIELD_NUMBER: _ClassVar[int]
    MARGIN_PX_FIELD_NUMBER: _ClassVar[int]
    CROP_SIZE_PX_FIELD_NUMBER: _ClassVar[int]
    ALLOW_SCALED_DECODING_FIELD_NUMBER: _ClassVar[int]
    min_face_px: int
    thresholds: StageThresholds
    scale_factor: float
    max_faces: int
    return_crops: bool
    margin_px: int
    crop_size_px: int
    allow_scaled_decoding: bool
    def __init__(self, min_face_px: _Optional[int] = ..., thresholds: _Optional[_Union[StageThresholds, _Mapping]] = ..., scale_factor: _Optional[float] = ..., max_faces: _Optional[int] = ..., return_crops: bool = ..., margin_px: _Optional[int] = ..., crop_size_px: _Optional[int] = ..., allow_scaled_decoding: bool = ...) -> None: ...

class DetectRequest(_message.Message):
    __slots__ = ("id", "images", "options", "timeout_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    images: _containers.RepeatedCompositeFieldContainer[Image]
    options: DetectOptions
    timeout_ms: int
    def __init__(self, id: _Optional[int] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., options: _Optional[_Union[DetectOptions, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class DetectResponse(_message.Message):
    __slots__ = ("id", "results", "draining", "retry_after_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    results: _containers.RepeatedCompositeFieldContainer[DetectResult]
    draining: bool
    retry_after_ms: int
    def __init__(self, id: _Optional[int] = ..., results: _Optional[_Iterable[_Union[DetectResult, _Mapping]]] = ..., draining: bool = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class DetectResult(_message.Message):
    __slots__ = ("detection", "error")
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    detection: Detection
    error: ItemError
    def __init__(self, detection: _Optional[_Union[Detection, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class Detection(_message.Message):
    __slots__ = ("faces", "height", "width", "exif_orientation", "damaged")
    FACES_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    EXIF_ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    faces: _containers.RepeatedCompositeFieldContainer[Face]
    height: int
    width: int
    exif_orientation: int
    damaged: bool
    def __init__(self, faces: _Optional[_Iterable[_Union[Face, _Mapping]]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., exif_orientation: _Optional[int] = ..., damaged: bool = ...) -> None: ...

class Face(_message.Message):
    __slots__ = ("box", "score", "landmarks", "crop", "embedding")
    BOX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    LANDMARKS_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    box: Box
    score: float
    landmarks: _containers.RepeatedCompositeFieldContainer[Point]
    crop: Crop
    embedding: Embedding
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ..., score: _Optional[float] = ..., landmarks: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., crop: _Optional[_Union[Crop, _Mapping]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x1", "y1", "x2", "y2")
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    X2_FIELD_NUMBER: _ClassVar[int]
    Y2_FIELD_NUMBER: _ClassVar[int]
    x1: float
    y1: float
    x2: float
    y2: float
    def __init__(self, x1: _Optional[float] = ..., y1: _Optional[float] = ..., x2: _Optional[float] = ..., y2: _Optional[float] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("rgb", "size_px")
    RGB_FIELD_NUMBER: _ClassVar[int]
    SIZE_PX_FIELD_NUMBER: _ClassVar[int]
    rgb: bytes
    size_px: int
    def __init__(self, rgb: _Optional[bytes] = ..., size_px: _Optional[int] = ...) -> None: ...

class EmbedOptions(_message.Message):
    __slots__ = ("detect", "faces", "model")
    DETECT_FIELD_NUMBER: _ClassVar[int]
    FACES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    detect: DetectOptions
    faces: FaceSelection
    model: str
    def __init__(self, detect: _Optional[_Union[DetectOptions, _Mapping]] = ..., faces: _Optional[_Union[FaceSelection, str]] = ..., model: _Optional[str] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("id", "items", "options", "timeout_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    items: _containers.RepeatedCompositeFieldContainer[EmbedItem]
    options: EmbedOptions
    timeout_ms: int
    def __init__(self, id: _Optional[int] = ..., items: _Optional[_Iterable[_Union[EmbedItem, _Mapping]]] = ..., options: _Optional[_Union[EmbedOptions, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class EmbedItem(_message.Message):
    __slots__ = ("image", "crop")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    image: Image
    crop: Image
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., crop: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("id", "results", "draining", "retry_after_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    results: _containers.RepeatedCompositeFieldContainer[EmbedResult]
    draining: bool
    retry_after_ms: int
    def __init__(self, id: _Optional[int] = ..., results: _Optional[_Iterable[_Union[EmbedResult, _Mapping]]] = ..., draining: bool = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class EmbedResult(_message.Message):
    __slots__ = ("detection", "embedding", "error", "exif_orientation", "damaged")
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EXIF_ORIENTATION_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    detection: Detection
    embedding: Embedding
    error: ItemError
    exif_orientation: int
    damaged: bool
    def __init__(self, detection: _Optional[_Union[Detection, _Mapping]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ..., exif_orientation: _Optional[int] = ..., damaged: bool = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("vector", "dimension", "model")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    vector: bytes
    dimension: int
    model: str
    def __init__(self, vector: _Optional[bytes] = ..., dimension: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class CompareOptions(_message.Message):
    __slots__ = ("detect", "faces", "model", "threshold", "operating_point")
    DETECT_FIELD_NUMBER: _ClassVar[int]
    FACES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    OPERATING_POINT_FIELD_NUMBER: _ClassVar[int]
    detect: DetectOptions
    faces: FaceSelection
    model: str
    threshold: float
    operating_point: str
    def __init__(self, detect: _Optional[_Union[DetectOptions, _Mapping]] = ..., faces: _Optional[_Union[FaceSelection, str]] = ..., model: _Optional[str] = ..., threshold: _Optional[float] = ..., operating_point: _Optional[str] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("id", "pairs", "options", "timeout_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    options: CompareOptions
    timeout_ms: int
    def __init__(self, id: _Optional[int] = ..., pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ..., options: _Optional[_Union[CompareOptions, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class Pair(_message.Message):
    __slots__ = ("a", "b")
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    a: Side
    b: Side
    def __init__(self, a: _Optional[_Union[Side, _Mapping]] = ..., b: _Optional[_Union[Side, _Mapping]] = ...) -> None: ...

class Side(_message.Message):
    __slots__ = ("image", "embedding")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    image: Image
    embedding: Embedding
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ...) -> None: ...

class CompareResponse(_message.Message):
    __slots__ = ("id", "results", "draining", "retry_after_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    results: _containers.RepeatedCompositeFieldContainer[CompareResult]
    draining: bool
    retry_after_ms: int
    def __init__(self, id: _Optional[int] = ..., results: _Optional[_Iterable[_Union[CompareResult, _Mapping]]] = ..., draining: bool = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class CompareResult(_message.Message):
    __slots__ = ("comparison", "error")
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    comparison: Comparison
    error: ItemError
    def __init__(self, comparison: _Optional[_Union[Comparison, _Mapping]] = ..., error: _Optional[_Union[ItemError, _Mapping]] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("distance", "threshold", "same", "face_a", "face_b", "model", "operating_point", "probability", "exif_orientation_a", "exif_orientation_b", "damaged_a", "damaged_b")
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    FACE_A_FIELD_NUMBER: _ClassVar[int]
    FACE_B_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPERATING_POINT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    EXIF_ORIENTATION_A_FIELD_NUMBER: _ClassVar[int]
    EXIF_ORIENTATION_B_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_A_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_B_FIELD_NUMBER: _ClassVar[int]
    distance: float
    threshold: float
    same: bool
    face_a: Face
    face_b: Face
    model: str
    operating_point: str
    probability: float
    exif_orientation_a: int
    exif_orientation_b: int
    damaged_a: bool
    damaged_b: bool
    def __init__(self, distance: _Optional[float] = ..., threshold: _Optional[float] = ..., same: bool = ..., face_a: _Optional[_Union[Face, _Mapping]] = ..., face_b: _Optional[_Union[Face, _Mapping]] = ..., model: _Optional[str] = ..., operating_point: _Optional[str] = ..., probability: _Optional[float] = ..., exif_orientation_a: _Optional[int] = ..., exif_orientation_b: _Optional[int] = ..., damaged_a: bool = ..., damaged_b: bool = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "reason", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "models", "default_embedder", "providers", "image_formats", "detect_defaults", "limits", "workers", "worker_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_EMBEDDER_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    DETECT_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKER_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: str
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    default_embedder: str
    providers: _containers.RepeatedScalarFieldContainer[str]
    image_formats: _containers.RepeatedScalarFieldContainer[str]
    detect_defaults: DetectOptions
    limits: Limits
    workers: int
    worker_bytes: int
    def __init__(self, version: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., default_embedder: _Optional[str] = ..., providers: _Optional[_Iterable[str]] = ..., image_formats: _Optional[_Iterable[str]] = ..., detect_defaults: _Optional[_Union[DetectOptions, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., workers: _Optional[int] = ..., worker_bytes: _Optional[int] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "kind", "source", "source_sha256", "onnx_sha256", "preprocessing", "input_size_px", "dimension", "threshold", "calibration", "parity_max_abs_diff", "precision", "interchangeable_with")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ONNX_SHA256_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_PX_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    PARITY_MAX_ABS_DIFF_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    INTERCHANGEABLE_WITH_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    source: str
    source_sha256: str
    onnx_sha256: str
    preprocessing: str
    input_size_px: int
    dimension: int
    threshold: float
    calibration: Calibration
    parity_max_abs_diff: float
    precision: str
    interchangeable_with: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., source: _Optional[str] = ..., source_sha256: _Optional[str] = ..., onnx_sha256: _Optional[str] = ..., preprocessing: _Optional[str] = ..., input_size_px: _Optional[int] = ..., dimension: _Optional[int] = ..., threshold: _Optional[float] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., parity_max_abs_diff: _Optional[float] = ..., precision: _Optional[str] = ..., interchangeable_with: _Optional[_Iterable[str]] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("data", "operating_points", "probability_map")
    DATA_FIELD_NUMBER: _ClassVar[int]
    OPERATING_POINTS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_MAP_FIELD_NUMBER: _ClassVar[int]
    data: str
    operating_points: _containers.RepeatedCompositeFieldContainer[OperatingPoint]
    probability_map: str
    def __init__(self, data: _Optional[str] = ..., operating_points: _Optional[_Iterable[_Union[OperatingPoint, _Mapping]]] = ..., probability_map: _Optional[str] = ...) -> None: ...

class OperatingPoint(_message.Message):
    __slots__ = ("name", "threshold", "false_accept_rate", "different_pairs", "true_accept_rate", "same_pairs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    FALSE_ACCEPT_RATE_FIELD_NUMBER: _ClassVar[int]
    DIFFERENT_PAIRS_FIELD_NUMBER: _ClassVar[int]
    TRUE_ACCEPT_RATE_FIELD_NUMBER: _ClassVar[int]
    SAME_PAIRS_FIELD_NUMBER: _ClassVar[int]
    name: str
    threshold: float
    false_accept_rate: float
    different_pairs: int
    true_accept_rate: float
    same_pairs: int
    def __init__(self, name: _Optional[str] = ..., threshold: _Optional[float] = ..., false_accept_rate: _Optional[float] = ..., different_pairs: _Optional[int] = ..., true_accept_rate: _Optional[float] = ..., same_pairs: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_items_per_message", "max_messages_in_flight", "max_items_per_stream", "max_items_per_caller", "max_items_in_flight", "max_bytes_in_flight", "max_streams", "max_connections", "images_per_group", "max_images_per_stream", "max_images_in_flight", "max_pixels_in_flight", "max_batch_rows", "max_window_rows", "max_queued_rows", "max_streams_per_connection", "max_image_bytes", "max_image_pixels", "max_image_side_px", "max_image_aspect", "max_image_scans", "max_header_parts", "max_pyramid_pixels", "max_candidates", "max_crop_bytes")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_PER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_PER_STREAM_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_PER_CALLER_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_PER_GROUP_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_PER_STREAM_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_WINDOW_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_PER_CONNECTION_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_SIDE_PX_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_ASPECT_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_SCANS_FIELD_NUMBER: _ClassVar[int]
    MAX_HEADER_PARTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PYRAMID_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_CROP_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_items_per_message: int
    max_messages_in_flight: int
    max_items_per_stream: int
    max_items_per_caller: int
    max_items_in_flight: int
    max_bytes_in_flight: int
    max_streams: int
    max_connections: int
    images_per_group: int
    max_images_per_stream: int
    max_images_in_flight: int
    max_pixels_in_flight: int
    max_batch_rows: int
    max_window_rows: int
    max_queued_rows: int
    max_streams_per_connection: int
    max_image_bytes: int
    max_image_pixels: int
    max_image_side_px: int
    max_image_aspect: int
    max_image_scans: int
    max_header_parts: int
    max_pyramid_pixels: int
    max_candidates: int
    max_crop_bytes: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_items_per_message: _Optional[int] = ..., max_messages_in_flight: _Optional[int] = ..., max_items_per_stream: _Optional[int] = ..., max_items_per_caller: _Optional[int] = ..., max_items_in_flight: _Optional[int] = ..., max_bytes_in_flight: _Optional[int] = ..., max_streams: _Optional[int] = ..., max_connections: _Optional[int] = ..., images_per_group: _Optional[int] = ..., max_images_per_stream: _Optional[int] = ..., max_images_in_flight: _Optional[int] = ..., max_pixels_in_flight: _Optional[int] = ..., max_batch_rows: _Optional[int] = ..., max_window_rows: _Optional[int] = ..., max_queued_rows: _Optional[int] = ..., max_streams_per_connection: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_image_side_px: _Optional[int] = ..., max_image_aspect: _Optional[int] = ..., max_image_scans: _Optional[int] = ..., max_header_parts: _Optional[int] = ..., max_pyramid_pixels: _Optional[int] = ..., max_candidates: _Optional[int] = ..., max_crop_bytes: _Optional[int] = ...) -> None: ...

class GetServerStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerStatsResponse(_message.Message):
    __slots__ = ("uptime_s", "stages", "resident_bytes", "loop_lag", "admission", "workers")
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOOP_LAG_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    uptime_s: float
    stages: _containers.RepeatedCompositeFieldContainer[StageStats]
    resident_bytes: int
    loop_lag: LoopLag
    admission: AdmissionStats
    workers: WorkerStats
    def __init__(self, uptime_s: _Optional[float] = ..., stages: _Optional[_Iterable[_Union[StageStats, _Mapping]]] = ..., resident_bytes: _Optional[int] = ..., loop_lag: _Optional[_Union[LoopLag, _Mapping]] = ..., admission: _Optional[_Union[AdmissionStats, _Mapping]] = ..., workers: _Optional[_Union[WorkerStats, _Mapping]] = ...) -> None: ...

class WorkerStats(_message.Message):
    __slots__ = ("working", "standing_by", "ended", "jobs_run_again", "jobs_given_up")
    WORKING_FIELD_NUMBER: _ClassVar[int]
    STANDING_BY_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    JOBS_RUN_AGAIN_FIELD_NUMBER: _ClassVar[int]
    JOBS_GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    working: int
    standing_by: int
    ended: int
    jobs_run_again: int
    jobs_given_up: int
    def __init__(self, working: _Optional[int] = ..., standing_by: _Optional[int] = ..., ended: _Optional[int] = ..., jobs_run_again: _Optional[int] = ..., jobs_given_up: _Optional[int] = ...) -> None: ...

class AdmissionStats(_message.Message):
    __slots__ = ("streams", "items_in_flight", "bytes_in_flight", "accepted_items", "answered_items", "abandoned_items", "refused_items", "refused_streams", "stalled_streams")
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_STREAMS_FIELD_NUMBER: _ClassVar[int]
    STALLED_STREAMS_FIELD_NUMBER: _ClassVar[int]
    streams: int
    items_in_flight: int
    bytes_in_flight: int
    accepted_items: int
    answered_items: int
    abandoned_items: int
    refused_items: int
    refused_streams: int
    stalled_streams: int
    def __init__(self, streams: _Optional[int] = ..., items_in_flight: _Optional[int] = ..., bytes_in_flight: _Optional[int] = ..., accepted_items: _Optional[int] = ..., answered_items: _Optional[int] = ..., abandoned_items: _Optional[int] = ..., refused_items: _Optional[int] = ..., refused_streams: _Optional[int] = ..., stalled_streams: _Optional[int] = ...) -> None: ...

class StageStats(_message.Message):
    __slots__ = ("name", "runs", "rows", "queue_ns", "compute_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    runs: int
    rows: int
    queue_ns: int
    compute_ns: int
    def __init__(self, name: _Optional[str] = ..., runs: _Optional[int] = ..., rows: _Optional[int] = ..., queue_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ...) -> None: ...

class LoopLag(_message.Message):
    __slots__ = ("p50_s", "p99_s", "max_s")
    P50_S_FIELD_NUMBER: _ClassVar[int]
    P99_S_FIELD_NUMBER: _ClassVar[int]
    MAX_S_FIELD_NUMBER: _ClassVar[int]
    p50_s: float
    p99_s: float
    max_s: float
    def __init__(self, p50_s: _Optional[float] = ..., p99_s: _Optional[float] = ..., max_s: _Optional[float] = ...) -> None: ...
