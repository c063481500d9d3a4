"""The SDK's values as the contract's messages. No waiting, no connection."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from facenet_proto.v1 import face_pb2 as pb

from facenet_client import errors, types
from facenet_client.errors import ItemError
from facenet_client.types import Embedding, Face


def known(options: Mapping[str, Any], allowed: Any) -> None:
    names = set().union(*(base.__annotations__ for base in (allowed, types.DetectOptions)))
    for name in options:
        if name not in names:
            raise TypeError(f"unknown option {name!r}; there is {', '.join(sorted(names))}")


def detect_options(options: Mapping[str, Any]) -> pb.DetectOptions:
    message = pb.DetectOptions(
        **{
            name: options[name]
            for name in ("min_face_px", "scale_factor", "max_faces", "margin_px", "crop_size_px")
            if options.get(name) is not None
        },
        return_crops=options.get("return_crops", False),
        allow_scaled_decoding=options.get("allow_scaled_decoding", False),
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
        raise ValueError(f"faces is {faces!r}; there is 'all', 'largest', 'best_score' and 'most_central'")
    return name


def image(image: types.ImageLike, options: Mapping[str, Any]) -> pb.Image:
    match image:
        case bytes():
            message = pb.Image(encoded=image)
        case str() | os.PathLike():
            message = pb.Image(encoded=_read(Path(image)))
        case np.ndarray():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise _unusable(f"an array of {image.dtype} {image.shape} is no RGB image: (height, width, 3) uint8")
            message = pb.Image(raw=pb.RawImage(rgb=image.tobytes(), height=image.shape[0], width=image.shape[1]))
        case _:
            raise _unusable(f"a {type(image).__name__} is no image: give a path, bytes or an RGB uint8 array")
    message.ignore_exif_orientation = options.get("apply_exif_orientation") is False
    return message


def side(side: types.Side, options: Mapping[str, Any]) -> pb.Side:
    if isinstance(side, Face):
        if side.embedding is None:
            raise _unusable("the face carries no embedding: get it from embed, not detect")
        side = side.embedding
    if not isinstance(side, Embedding):
        return pb.Side(image=image(side, options))
    vector = np.asarray(side).astype("<f4", copy=False)
    return pb.Side(embedding=pb.Embedding(vector=vector.tobytes(), dimension=len(vector), model=side.model))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file system has such a name
        raise _unusable(f"cannot read {path!s}: {getattr(error, 'strerror', error)}") from error


def _unusable(message: str) -> ItemError:
    code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    return errors.ImageError(message, code=code, reason="UNUSABLE_INPUT")
