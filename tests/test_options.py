import math
from typing import Any

import pytest
from facenet_server.errors import InvalidInput
from facenet_server.vision.options import CompareOptions, DetectOptions, FaceSelection


@pytest.mark.parametrize(
    "options",
    [
        {"min_face_px": 11},
        {"min_face_px": 1001},
        {"thresholds": (0.29, 0.7, 0.7)},
        {"thresholds": (0.6, 1.0, 0.7)},
        {"thresholds": (0.6, 0.7, math.nan)},
        {"scale_factor": 0.49},
        {"scale_factor": 0.91},
        {"scale_factor": math.inf},
        {"max_faces": 0},
        {"margin_px": 1001},
        {"crop_size_px": 15},
        {"crop_size_px": 513},
    ],
    ids=str,
)
def test_a_detect_option_outside_its_range_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))) as refused:
        DetectOptions(**options)
    assert refused.value.reason == "OPTION_OUT_OF_RANGE"


@pytest.mark.parametrize("options", [{"min_face_px": 12}, {"scale_factor": 0.5}, {"thresholds": (0.3, 0.999, 0.5)}])
def test_the_ends_of_the_ranges_are_accepted(options: dict[str, Any]) -> None:
    DetectOptions(**options)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 2.01, math.nan])
def test_a_comparison_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(InvalidInput, match="threshold"):
        CompareOptions(threshold=threshold)


def test_a_comparison_takes_one_face_a_side() -> None:
    with pytest.raises(InvalidInput, match="ALL"):
        CompareOptions(faces=FaceSelection.ALL)


@pytest.mark.parametrize(
    ("min_face_px", "allowed", "reduction"),
    [(39, True, 1), (40, True, 2), (79, True, 2), (80, True, 4), (160, True, 8), (1000, True, 8), (160, False, 1)],
)
def test_an_image_is_reduced_as_far_as_its_smallest_face_stays_twenty_pixels(
    min_face_px: int, allowed: bool, reduction: int
) -> None:
    options = DetectOptions(min_face_px=min_face_px, allow_scaled_decoding=allowed)
    assert options.max_reduction == reduction
    assert options.reduced(reduction).min_face_px == min_face_px / reduction
