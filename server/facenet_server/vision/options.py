"""What a request asks for, as checked values. Bounds are the contract's (``face.proto``)."""

import math
from dataclasses import dataclass, field, replace
from enum import Enum

from facenet_server.errors import InvalidInput


class FaceSelection(Enum):
    """Which of an image's faces count."""

    ALL = "all"
    LARGEST = "largest"
    BEST_SCORE = "best_score"
    MOST_CENTRAL = "most_central"


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """How faces are found and cut; the defaults are the reference implementation's.

    Raises InvalidInput, reason OPTION_OUT_OF_RANGE, for a value outside its range.
    """

    min_face_px: float = 20
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    scale_factor: float = 0.709
    max_faces: int | None = None
    return_crops: bool = False
    margin_px: float = 32
    crop_size_px: int = 160
    allow_scaled_decoding: bool = False

    def __post_init__(self) -> None:
        _check("min_face_px", self.min_face_px, 12, 1000)
        for name, threshold in zip(("proposal", "refinement", "output"), self.thresholds, strict=True):
            _check(f"thresholds.{name}", threshold, 0.3, 1.0, open_end=True)
        _check("scale_factor", self.scale_factor, 0.5, 0.9)
        if self.max_faces is not None:
            _check("max_faces", self.max_faces, 1, math.inf)
        _check("margin_px", self.margin_px, 0, 1000)
        _check("crop_size_px", self.crop_size_px, 16, 512)

    @property
    def max_reduction(self) -> int:
        """How many times smaller an image may be decoded: 1, or where allowed 2, 4 or 8, the smallest face staying
        at least 20 pixels."""
        if not self.allow_scaled_decoding:
            return 1
        return max(reduction for reduction in (1, 2, 4, 8) if reduction == 1 or self.min_face_px / reduction >= 20)

    def reduced(self, reduction: int) -> "DetectOptions":
        """The same for an image that is so many times smaller."""
        return replace(self, min_face_px=self.min_face_px / reduction, margin_px=self.margin_px / reduction)


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How an image becomes embeddings; ``model`` empty means the server's default."""

    detect: DetectOptions = field(default_factory=DetectOptions)
    faces: FaceSelection = FaceSelection.ALL
    model: str = ""


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """How two sides are compared; ``threshold`` None means that of the operating point, whose empty name means
    the best accuracy. Raises InvalidInput."""

    detect: DetectOptions = field(default_factory=DetectOptions)
    faces: FaceSelection = FaceSelection.BEST_SCORE
    model: str = ""
    threshold: float | None = None
    operating_point: str = ""

    def __post_init__(self) -> None:
        if self.faces is FaceSelection.ALL:
            raise InvalidInput("OPTION_OUT_OF_RANGE", "Compare takes one face a side: faces cannot be ALL")
        if self.threshold is not None and not 0 < self.threshold <= 2:
            raise InvalidInput("OPTION_OUT_OF_RANGE", f"threshold is {self.threshold:g}; its range is (0, 2]")


def _check(name: str, value: float, low: float, high: float, *, open_end: bool = False) -> None:
    inside = low <= value < high if open_end else low <= value <= high  # False for NaN
    if not inside:
        end = ")" if open_end or math.isinf(high) else "]"
        raise InvalidInput("OPTION_OUT_OF_RANGE", f"{name} is {value:g}; its range is [{low:g}, {high:g}{end}")
