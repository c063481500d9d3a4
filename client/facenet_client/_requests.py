"""Converts the SDK's values to the contract's messages. No waiting, no connection."""

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from facenet_proto.v1 import face_pb2 as pb
from numpy.typing import NDArray

from facenet_client import _images, types
from facenet_client._encoding import Encoded, field, leaf, raw
from facenet_client._images import shown
from facenet_client.errors import ItemError
from facenet_client.types import Embedding, Face

_MOST = (1 << 32) - 1  # the largest value of the contract's fields
_COUNTS = {  # the contract's ranges
    "min_face_px": ("12…1000", 12, 1000),
    "max_faces": ("1 or more", 1, _MOST),
    "margin_px": ("0…1000", 0, 1000),
    "crop_size_px": ("16…512", 16, 512),
}
_REALS = {"scale_factor": ("0.5…0.9", 0.5, 0.9), "threshold": ("over 0, at most 2", math.ulp(0), 2)}
_FLAGS = ("return_crops", "allow_scaled_decoding", "apply_exif_orientation", "refuse_damaged")
_MOST_S = 1e8  # three years; gRPC's clock cannot hold much more


def known(options: Mapping[str, Any], allowed: Any) -> None:
    """Raises TypeError or ValueError for an option that no server could accept. The message lists the possible
    values."""
    names = allowed.__optional_keys__
    for name, value in options.items():
        if name not in names:
            raise TypeError(f"unknown option {shown(repr(name))}; there is {', '.join(sorted(names))}")
        if value is not None:
            _check(name, value)


def _check(name: str, value: Any) -> None:
    if name in _COUNTS:
        text, least, most = _COUNTS[name]
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} is a whole number, {text}, not {shown(repr(value))}")
        if not least <= int(value) <= most:
            raise ValueError(f"{name} is {shown(value)}; it is a whole number, {text}")
    elif name == "timeout_s":
        check_timeout(value)
    elif name in _REALS:
        text, low, high = _REALS[name]
        if not _is_real(value):
            raise TypeError(f"{name} is a number, {text}, not {shown(repr(value))}")
        if not low <= value <= high:
            raise ValueError(f"{name} is {value:g}; it is a number, {text}")
    elif name == "thresholds":
        told = f"thresholds are three numbers, each from 0.3 and under 1, as (0.6, 0.7, 0.7), not {shown(repr(value))}"
        if not (_is_row(value) and len(value) == 3 and all(map(_is_real, value))):
            raise TypeError(told)
        if not all(0.3 <= each < 1 for each in value):
            raise ValueError(told)
    elif name in _FLAGS and not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is True or False, not {shown(repr(value))}")
    elif name in ("model", "operating_point") and not isinstance(value, str):
        raise TypeError(f"{name} is a name, not {shown(repr(value))}")
    elif name == "colour" and value not in _images.COLOURS:
        raise ValueError(f"colour is {shown(repr(value))}; there is {', '.join(_images.COLOURS)}")


def _is_row(value: Any) -> bool:
    return isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1)


def check_timeout(timeout_s: Any) -> None:
    """Raises ValueError if ``timeout_s`` is no valid time limit."""
    if timeout_s is not None and not (_is_real(timeout_s) and 0 < timeout_s <= _MOST_S):
        told = f"it is seconds, a number over 0, at most {_MOST_S:g}, or None for no limit"
        raise ValueError(f"timeout_s is {shown(repr(timeout_s))}; {told}")


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def detect_options(options: Mapping[str, Any]) -> pb.DetectOptions:
    """The DetectOptions of the contract, from options that ``known`` has checked."""
    counts: dict[str, Any] = {name: int(options[name]) for name in _COUNTS if options.get(name) is not None}
    message = pb.DetectOptions(
        **counts,
        scale_factor=options.get("scale_factor"),
        return_crops=options.get("return_crops") or False,
        allow_scaled_decoding=options.get("allow_scaled_decoding") or False,
    )
    if options.get("thresholds") is not None:
        proposal, refinement, output = options["thresholds"]
        message.thresholds.CopyFrom(pb.StageThresholds(proposal=proposal, refinement=refinement, output=output))
    return message


def selection(options: Mapping[str, Any]) -> str | None:
    faces = options.get("faces")
    if faces is None:
        return None
    name = f"FACE_SELECTION_{str(faces).upper()}"
    if name not in pb.FaceSelection.keys():  # noqa: SIM118 (an enum wrapper, not a dict)
        raise ValueError(f"faces is {shown(repr(faces))}; there is 'all', 'largest', 'best_score' and 'most_central'")
    return name


def image(image: types.ImageLike, options: Mapping[str, Any]) -> Encoded:
    """An Image of the contract. Raises ImageError."""
    upright = options.get("apply_exif_orientation") is not False
    content = _images.content_of(image, options.get("colour"), upright=upright)
    if isinstance(content, bytes):
        data = field(pb.Image.ENCODED_FIELD_NUMBER, raw(content))
    else:
        data = field(pb.Image.RAW_FIELD_NUMBER, _pixels(content))
    refuse_damaged = bool(options.get("refuse_damaged"))
    if upright and not refuse_damaged:
        return data
    return data + leaf(pb.Image(ignore_exif_orientation=not upright, refuse_damaged=refuse_damaged))


def _pixels(image: NDArray[np.uint8]) -> Encoded:
    """A RawImage with a copy of the pixels: the caller may change the array afterwards."""
    size = pb.RawImage(height=image.shape[0], width=image.shape[1])
    return leaf(size) + field(pb.RawImage.RGB_FIELD_NUMBER, raw(image.tobytes()))


def pair(sides: tuple[types.Side, types.Side], options: Mapping[str, Any]) -> Encoded:
    """A Pair of the contract. Raises ItemError, which says which side is to blame."""
    encoded = []
    for name, each in zip("ab", sides, strict=True):
        try:
            encoded.append(side(each, options))
        except ItemError as error:
            raise type(error)(f"side {name}: {error.args[0]}", code=error.code, reason=error.reason) from error
    return field(pb.Pair.A_FIELD_NUMBER, encoded[0]) + field(pb.Pair.B_FIELD_NUMBER, encoded[1])


def side(side: types.Side, options: Mapping[str, Any]) -> Encoded:
    """A Side of the contract. Raises ItemError."""
    if isinstance(side, Face):
        if side.embedding is None:
            raise _images.unusable("the face carries no embedding: get it from embed, not detect")
        side = side.embedding
    if isinstance(side, types.Detection):
        raise _images.unusable("a Detection is no side: give one of its faces, as detection.faces[0]")
    if _is_vector(side):
        raise _images.unusable(
            "a vector is no side by itself: give Embedding(vector, model), the model being its maker's"
        )
    if not isinstance(side, Embedding):
        return field(pb.Side.IMAGE_FIELD_NUMBER, image(side, options))
    vector = np.asarray(side).astype("<f4", copy=False)
    message = pb.Embedding(vector=vector.tobytes(), dimension=len(vector), model=side.model)
    return leaf(pb.Side(embedding=message))


def _is_vector(side: Any) -> bool:
    return (isinstance(side, np.ndarray) and side.ndim == 1) or (
        isinstance(side, list | tuple) and len(side) > 0 and isinstance(side[0], Real)
    )


def needs_time(value: Any) -> bool:
    """Whether the preparation of this image, or of a side of this pair, may read or decode a file."""
    if isinstance(value, tuple | list):
        return any(map(needs_time, value))
    return isinstance(value, str | os.PathLike) or _images.is_file(value) or _images.is_pillow(value)
