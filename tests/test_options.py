import math
import re
from dataclasses import asdict, fields
from typing import Any

import pytest
from conftest import ROOT
from facenet_client import _requests, types
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.errors import InvalidInput
from facenet_server.rpc import converters
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


def test_every_detect_option_of_the_contract_is_read_by_the_server_and_sent_by_the_sdk() -> None:
    given: dict[str, Any] = {
        "min_face_px": 41,
        "thresholds": (0.5, 0.55, 0.45),
        "scale_factor": 0.6,
        "max_faces": 3,
        "return_crops": True,
        "margin_px": 17,
        "crop_size_px": 99,
        "allow_scaled_decoding": True,
    }
    contract = {field.name for field in pb.DetectOptions.DESCRIPTOR.fields}
    assert set(given) == contract == {field.name for field in fields(DetectOptions)}
    assert contract <= set(types.DetectOptions.__optional_keys__)
    read = asdict(converters.read_detect_options(_requests.detect_options(given)))
    assert {name: pytest.approx(value) for name, value in given.items()} == read


def test_every_option_in_pixels_of_the_image_shrinks_with_it() -> None:
    """A crop's side is none of the image's pixels."""
    options = DetectOptions(min_face_px=80, margin_px=40)
    reduced = options.reduced(4)
    names = [field.name for field in fields(DetectOptions) if field.name.endswith("_px")]
    same = [name for name in names if getattr(reduced, name) != getattr(options, name) / 4]
    assert same == ["crop_size_px"]


def test_the_table_of_options_has_every_option_of_the_sdk() -> None:
    page = (ROOT / "docs" / "services.md").read_text("utf-8").partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    options = (types.CropOptions, types.DetectOptions, types.EmbedOptions, types.CompareOptions)
    assert told == set[str]().union(*(each.__optional_keys__ for each in options))
