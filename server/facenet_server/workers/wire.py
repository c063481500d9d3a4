"""Tasks, answers and errors as headers and arrays: between this project's own processes, of one version."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facenet_server.config import Config
from facenet_server.errors import DeviceLost, InternalError, InvalidInput, ItemError, Overloaded, TimedOut
from facenet_server.serving.image_task import FoundFaces, ImageTask, ReadyCrop
from facenet_server.vision.boxes import Faces
from facenet_server.vision.options import DetectOptions, FaceSelection
from facenet_server.vision.sources import DecodeLimits, Encoded, Image, Pixels, Raw
from facenet_server.workers.channel import Header, arrays_of, told

EXIT_LOST = 76  # of a worker whose device is lost

_ERRORS: Mapping[str, type[ItemError]] = {
    error.__name__: error for error in (InvalidInput, Overloaded, TimedOut, DeviceLost, InternalError)
}

Arrays = Sequence[NDArray[Any]]


def config_header(config: Config) -> Header:
    """The whole configuration, by value."""
    return {**asdict(config), "models": str(config.models)}


def config_of(header: Header) -> Config:
    """What ``config_header`` told."""
    return Config(**{**header, "models": Path(header["models"])})


# ---- images ----


def image_header(image: Image) -> Header:
    """An image without its bytes, which are its payload."""
    if isinstance(image, Raw):
        return {"height": image.height, "width": image.width}
    return {"ignore_exif_orientation": image.ignore_exif_orientation, "refuse_damaged": image.refuse_damaged}


def bytes_of(image: Image) -> bytes:
    """The bytes of an image, as they came."""
    return image.rgb if isinstance(image, Raw) else image.data


def image_of(header: Header, payload: Any) -> Image:
    """What ``image_header`` told. Raw pixels stay where they lie; a file, which parsers want as bytes, is copied."""
    return Raw(payload, **header) if "height" in header else Encoded(payload[:], **header)


def limits_header(limits: DecodeLimits) -> Header:
    """What a ready crop may be."""
    return asdict(limits)


def limits_of(header: Header) -> DecodeLimits:
    """What ``limits_header`` told."""
    return DecodeLimits(**{**header, "formats": tuple(header["formats"])})


def task_header(task: ImageTask) -> Header:
    """A task without its image's bytes."""
    options = {each.name: getattr(task.options, each.name) for each in fields(task.options)}
    return {
        "image": image_header(task.image),
        "options": options,
        "selection": task.selection and task.selection.value,
        "input_px": task.input_px,
        "max_crop_bytes": task.max_crop_bytes,
    }


def task_of(header: Header, payload: Any) -> ImageTask:
    """What ``task_header`` told."""
    options = DetectOptions(**{**header["options"], "thresholds": tuple(header["options"]["thresholds"])})
    selection = None if header["selection"] is None else FaceSelection(header["selection"])
    image = image_of(header["image"], payload)
    return ImageTask(image, options, selection, header["input_px"], header["max_crop_bytes"])


# ---- answers ----


def found_header(found: FoundFaces) -> tuple[Header, list[NDArray[Any]]]:
    """What was found, and its arrays."""
    arrays: list[NDArray[Any]] = list(found.faces)
    header: Header = {
        "size": (found.height, found.width),
        "exif_orientation": found.exif_orientation,
        "damaged": found.damaged,
        "has_aligned": found.aligned is not None,
        "has_crop": None if found.crops is None else [crop is not None for crop in found.crops],
    }
    if found.aligned is not None:
        arrays.append(found.aligned)
    arrays += [crop for crop in found.crops or () if crop is not None]
    return {**header, "arrays": told(arrays)}, arrays


def found_of(header: Header, payload: Any) -> FoundFaces:
    """What ``found_header`` told; the pixels stay where they lie."""
    boxes, scores, landmarks, *rest = arrays_of(payload, header["arrays"])
    aligned = rest.pop(0) if header["has_aligned"] else None
    crops: Sequence[Pixels | None] | None = None
    if header["has_crop"] is not None:
        left = iter(rest)
        crops = [next(left) if there else None for there in header["has_crop"]]
    height, width = header["size"]
    faces = Faces(boxes, scores, landmarks)
    return FoundFaces(faces, height, width, header["exif_orientation"], header["damaged"], aligned, crops)


def crop_header(crop: ReadyCrop) -> tuple[Header, Arrays]:
    """A ready crop, and its pixels."""
    header = {"exif_orientation": crop.exif_orientation, "damaged": crop.damaged, "arrays": told([crop.pixels])}
    return header, [np.ascontiguousarray(crop.pixels)]


def crop_of(header: Header, payload: Any) -> ReadyCrop:
    """What ``crop_header`` told."""
    return ReadyCrop(arrays_of(payload, header["arrays"])[0], header["exif_orientation"], header["damaged"])


# ---- errors ----


def error_header(error: ItemError) -> Header:
    """An error as it is told."""
    return {"kind": type(error).__name__, "reason": error.reason, "message": str(error)}


def error_of(header: Header) -> ItemError:
    """What ``error_header`` told: of its class, whose message is not made anew."""
    kind = _ERRORS[header["kind"]]
    error = kind.__new__(kind)
    ItemError.__init__(error, header["reason"], header["message"])
    return error
