"""The SDK's values: what goes in, what comes out.

Coordinates are pixels of the upright image (EXIF orientation applied), x to the right, y down, with exactly the numbers
of the reference implementation, davidsandberg/facenet, whose boxes count pixels from 1.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from facenet_client.errors import ItemError


class PillowImage(Protocol):
    """The part of PIL.Image.Image that the SDK needs."""

    def convert(self, mode: str) -> Any:
        """The image in another mode."""


ImageLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | NDArray[Any] | PillowImage
"""A path; an encoded file's bytes, or a file opened in binary mode; a PIL image; or pixels, (height, width, 3) uint8
RGB. For pixels in another order or shape, give ``colour``."""

Colour: TypeAlias = Literal["rgb", "bgr", "grey", "rgba", "bgra"]
"""The channel order of an array. "grey" is (height, width) or (height, width, 1). Of four channels, the last is
dropped."""

FaceSelection: TypeAlias = Literal["all", "largest", "best_score", "most_central"]


class CallOptions(TypedDict, total=False):
    """How a call waits. An option that is not given takes the client's value."""

    timeout_s: float | None
    """Seconds for each message's answer; None: for ever."""


class CropOptions(CallOptions, total=False):
    """How ready crops are embedded."""

    model: str
    """The embedder's name (the server's default)."""
    colour: Colour
    """What the channels of arrays are, as in DetectOptions ("rgb")."""
    refuse_damaged: bool
    """As in DetectOptions (False)."""


class DetectOptions(CallOptions, total=False):
    """How faces are found. An option that is not given takes the server's default."""

    min_face_px: int
    """Side of the smallest face looked for, 12…1000 px (20)."""
    thresholds: tuple[float, float, float]
    """Probabilities that a window needs at P-Net, R-Net and O-Net, each in [0.3, 1) (0.6, 0.7, 0.7)."""
    scale_factor: float
    """Ratio between levels of the image pyramid, 0.5…0.9 (0.709)."""
    max_faces: int
    """At most this many faces, by score (all)."""
    apply_exif_orientation: bool
    """Turn the image upright before anything else (True)."""
    refuse_damaged: bool
    """Give an ImageError for a file whose pixels may be damaged, in place of an answer that says so (False)."""
    return_crops: bool
    """Fill ``Face.crop`` (False)."""
    margin_px: int
    """Margin around the box in a crop, half of it on each side, 0…1000 px of the image (32)."""
    crop_size_px: int
    """Side of a returned crop, 16…512 px (160)."""
    allow_scaled_decoding: bool
    """Decode large JPEGs at a fraction of their size where min_face_px is 40 or more: faster, not exact (False)."""
    colour: Colour
    """What the channels of arrays are ("rgb"). Where it is given, arrays of floats in 0…1 are taken, too."""


class EmbedOptions(DetectOptions, total=False):
    """How an image becomes embeddings."""

    faces: FaceSelection
    """Which faces are embedded ("all")."""
    model: str
    """The embedder's name (the server's default)."""


class CompareOptions(DetectOptions, total=False):
    """How two sides are compared."""

    faces: FaceSelection
    """Which face of an image is compared ("best_score"); not "all"."""
    model: str
    """The embedder's name (the server's default)."""
    threshold: float
    """Same person when the distance is under this, in (0, 2] (that of the operating point)."""
    operating_point: str
    """One of the model's calibrated operating points, as "far_1e-3" ("best_accuracy")."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A point on the unit sphere, and the model that made it. ``numpy.asarray`` gives the vector.

    ``vector`` is (dimension,) float32 of L2 norm 1. It is empty if ``error`` is set, which says why there is no
    embedding.
    """

    vector: NDArray[np.float32] = field(repr=False)  # biometric, and long: keep it out of logs
    model: str
    error: ItemError | None = None
    damaged: bool = False
    """Whether pixels of the ready crop may be damaged."""

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON, with the vector as a list."""
        vector = self.vector.tolist()
        return {"vector": vector, "model": self.model, "damaged": self.damaged, "error": _error(self.error)}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if self.error is not None:
            raise self.error
        return np.array(self.vector, dtype=dtype, copy=copy)


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face. ``box`` is (x1, y1, x2, y2) and ``landmarks`` are five (x, y), all in px: left and right eye, nose,
    left and right corner of the mouth; left as the viewer sees it. ``crop`` is (size, size, 3) uint8 RGB."""

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...]
    embedding: Embedding | None = None
    crop: NDArray[np.uint8] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON: the embedding as a list, with its model, and no crop."""
        record: dict[str, Any] = {"box": self.box, "score": self.score, "landmarks": self.landmarks}
        if self.embedding is not None:
            record |= {"embedding": self.embedding.vector.tolist(), "model": self.embedding.model}
        return record


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """The faces of one image, by descending score. ``width`` and ``height`` are the upright image's, px;
    ``exif_orientation`` (1…8) is the orientation that was applied. ``damaged``: pixels may be damaged. ``error`` says
    why there is no answer."""

    faces: tuple[Face, ...]
    width: int
    height: int
    exif_orientation: int = 1
    error: ItemError | None = None
    damaged: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON: embeddings as lists, no crops. ``error`` is None or a dictionary of code, reason
        and message."""
        return {
            "width": self.width,
            "height": self.height,
            "exif_orientation": self.exif_orientation,
            "damaged": self.damaged,
            "faces": [face.to_dict() for face in self.faces],
            "error": _error(self.error),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The L2 ``distance`` (0…2) of two faces, ``same`` (whether the distance is under ``threshold``), and the
    ``probability`` that the faces are of one person, if same and different pairs are equally frequent.

    ``operating_point`` says where the threshold comes from: a point of the model's calibration, "given", or
    "uncalibrated". If it is "uncalibrated", ``threshold``, ``same`` and ``probability`` are None. ``face_a`` and
    ``face_b`` are the compared faces of sides that are images; ``damaged_a`` and ``damaged_b`` say whether pixels of
    these may be damaged. If ``error`` is set, the distance is NaN.
    """

    distance: float
    threshold: float | None = None
    same: bool | None = None
    probability: float | None = None
    operating_point: str = ""
    model: str = ""
    face_a: Face | None = None
    face_b: Face | None = None
    error: ItemError | None = None
    damaged_a: bool = False
    damaged_b: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON, without the faces. Its figures are None if there is an error or the model is
        uncalibrated."""
        return {
            "distance": None if self.error is not None else self.distance,
            "threshold": self.threshold,
            "operating_point": self.operating_point,
            "same": self.same,
            "probability": self.probability,
            "model": self.model,
            "damaged_a": self.damaged_a,
            "damaged_b": self.damaged_b,
            "error": _error(self.error),
        }


def _error(error: ItemError | None) -> dict[str, Any] | None:
    return None if error is None else error.to_dict()


Side: TypeAlias = ImageLike | Embedding | Face
"""A side of a comparison: an image, an embedding, or a face that has an embedding."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A calibrated threshold on the L2 distance; see OperatingPoint in face.proto for each field."""

    name: str
    threshold: float
    false_accept_rate: float
    different_pairs: int
    true_accept_rate: float
    same_pairs: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a model's distances mean, and the data that the calibration was fitted on."""

    data: str
    operating_points: tuple[OperatingPoint, ...]
    probability_map: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the server runs; see ModelInfo in face.proto for each field. If the model is uncalibrated or no
    embedder, ``threshold`` is 0 and ``calibration`` is None."""

    name: str
    kind: str
    source: str
    source_sha256: str
    onnx_sha256: str
    preprocessing: str
    input_size_px: int
    dimension: int
    threshold: float
    parity_max_abs_diff: float
    calibration: Calibration | None
    precision: str
    interchangeable_with: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What the server runs, and its limits. ``limits`` has the names of Limits in face.proto. ``workers`` is the number
    of worker processes (0: the server's own process does the work). ``worker_bytes`` is the memory that a ready worker
    does not share."""

    version: str
    models: tuple[ModelInfo, ...]
    default_embedder: str
    providers: tuple[str, ...]
    image_formats: tuple[str, ...]
    limits: dict[str, int] = field(default_factory=dict)
    workers: int = 0
    worker_bytes: int = 0


class _Result(Protocol):
    @property
    def error(self) -> ItemError | None: ...


ResultT = TypeVar("ResultT", bound=_Result)


def raise_for_errors(results: Iterable[ResultT]) -> list[ResultT]:
    """The results, if all of them are answers; otherwise the first ItemError is raised, with a note that
    gives its place and how many items failed."""
    answered = list(results)
    failed = [(index, result.error) for index, result in enumerate(answered) if result.error is not None]
    if failed:
        index, error = failed[0]
        error.add_note(f"item {index}; {len(failed)} of {len(answered)} items failed")
        raise error
    return answered
