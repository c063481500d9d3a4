"""Converts what callers give as an image to an encoded file's bytes or to RGB pixels. No connection."""

import inspect
import os
import re
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from facenet_client.errors import ImageError

COLOURS = ("rgb", "bgr", "grey", "rgba", "bgra")
"""The possible orders of an array's channels. All other kinds of images name their order themselves."""

_CHANNELS = {"rgb": [0, 1, 2], "bgr": [2, 1, 0], "rgba": [0, 1, 2], "bgra": [2, 1, 0], "grey": [0, 0, 0]}
_MOST_SHOWN = 80  # characters of an input in a message
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{64,}={0,2}\s*")


def content_of(image: Any, colour: str | None, *, upright: bool) -> bytes | NDArray[np.uint8]:
    """An encoded file's bytes, or (height, width, 3) uint8 RGB.

    ``image`` is a path, bytes, an open binary file, a PIL image, or an array with the channel order ``colour`` (None:
    RGB). With ``upright``, a PIL image is turned by its EXIF orientation.

    Raises ImageError if it is no image, with a message that says what to do.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _of_path(image)
    if isinstance(image, np.ndarray):
        return _of_array(image, colour)
    if is_file(image):
        return _of_file(image)
    if is_pillow(image):
        return _of_pillow(image, upright)
    raise unusable(
        f"a {type(image).__name__} is no image: give a path, an encoded file's bytes, an open binary file, a PIL "
        "image or an RGB uint8 array"
    )


def is_file(value: Any) -> bool:
    """Whether the value is read like an open file."""
    return callable(getattr(value, "read", None)) and not is_pillow(value)


def is_pillow(value: Any) -> bool:
    """Whether the value is a PIL image; PIL itself need not be installed."""
    return type(value).__module__.partition(".")[0] == "PIL" and hasattr(value, "convert")


def shown(text: object) -> str:
    """The beginning and the end of an input, for an error message: an input may be a whole photo."""
    whole, half = str(text), _MOST_SHOWN // 2
    return whole if len(whole) <= _MOST_SHOWN else f"{whole[:half]}…{whole[-half:]} ({len(whole):,} characters)"


def unusable(message: str) -> ImageError:
    """The SDK cannot send the input: it cannot be read, or it is no image of a type and shape that the SDK accepts."""
    return ImageError(message, code=grpc.StatusCode.INVALID_ARGUMENT.value[0], reason="UNUSABLE_INPUT")


def _of_path(path: "str | os.PathLike[str]") -> bytes:
    text = os.fspath(path)
    try:
        return Path(text).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file system has such a name
        reason = _no_path(text) if isinstance(text, str) else None
        # From None: the error's own text is the whole path, which may be a photo.
        raise unusable(reason or f"cannot read {shown(text)}: {getattr(error, 'strerror', None) or error}") from None


def _no_path(text: str) -> str | None:
    """What a text is instead of a path: a URL, a data: URL or base64; None if it looks like none of these."""
    if text.startswith("data:"):
        return f"{shown(text)} is a data: URL, not a path: give base64.b64decode(text.partition(',')[2])"
    if re.match(r"[A-Za-z][A-Za-z0-9+.\-]+://", text):
        return f"{shown(text)} is a URL, not a path: nothing is fetched, give the file's bytes"
    if _BASE64.fullmatch(text):
        return f"{shown(text)} looks like base64, not like a path: give base64.b64decode(text)"
    return None


def _of_file(file: Any) -> bytes:
    try:
        data = file.read()
    except UnicodeDecodeError:
        raise unusable("the file is open as text: open it as open(path, 'rb')") from None
    except Exception as error:  # noqa: BLE001 (any error, for example of a file within an archive)
        raise unusable(f"cannot read the file: {shown(error)}") from None
    if inspect.iscoroutine(data):
        data.close()
        raise unusable(f"the read of a {type(file).__name__} is asynchronous: give `await file.read()`")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise unusable(f"the file gives {type(data).__name__}, not bytes: open it as open(path, 'rb')")
    if not data and _position(file):
        raise unusable("the file is at its end: file.seek(0) goes back to its beginning")
    return bytes(data)


def _position(file: Any) -> int:
    try:
        return int(file.tell())
    except Exception:  # noqa: BLE001 (it cannot tell)
        return 0


def _of_pillow(image: Any, upright: bool) -> NDArray[np.uint8]:
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):  # Pillow would clip it
        raise unusable(f'a PIL image of mode {image.mode} has more than 8 bits: convert it to "L" or "RGB" first')
    try:
        turned = ImageOps.exif_transpose(image) if upright else image
        return np.asarray(turned.convert("RGB"))
    except Exception as error:  # noqa: BLE001 (PIL reads the file only now; it may be damaged or closed)
        raise unusable(f"the PIL image cannot be read: {shown(error)}") from None


def _of_array(image: NDArray[Any], colour: str | None) -> NDArray[np.uint8]:
    channels = image.shape[2] if image.ndim == 3 else 0
    wanted = {"grey": (0, 1), "rgba": (4,), "bgra": (4,)}.get(colour or "rgb", (3,))
    if image.ndim not in (2, 3) or channels not in wanted:
        raise unusable(f"an array of shape {image.shape} is no {(colour or 'rgb').upper()} image{_advice(image)}")
    pixels = image[..., np.newaxis] if image.ndim == 2 else image
    pixels = _eight_bits(pixels, colour)
    return pixels if colour in (None, "rgb") else np.ascontiguousarray(pixels[..., _CHANNELS[colour]])


def _eight_bits(pixels: NDArray[Any], colour: str | None) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    is_unit_float = pixels.dtype.kind == "f" and pixels.size > 0 and pixels.min() >= 0 and pixels.max() <= 1
    if colour is None or not is_unit_float:
        raise unusable(
            f"an array of {pixels.dtype} is no image of uint8 in 0…255. Convert floats in 0…1 by colour='rgb', or by "
            "(255 * image).round().astype(numpy.uint8). Convert floats in 0…255 by image.round().astype(numpy.uint8), "
            "and uint16 by (image >> 8).astype(numpy.uint8)"
        )
    return (pixels * 255).round().astype(np.uint8)


def _advice(image: NDArray[Any]) -> str:
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        return ": for grey pixels give colour='grey'"
    if image.ndim == 3 and image.shape[2] == 4:
        return ": for four channels give colour='rgba' or 'bgra'"
    if image.ndim == 3 and image.shape[0] in (1, 3, 4):
        return ": it is (height, width, channels), as image.transpose(1, 2, 0)"
    return ": it is (height, width, 3) uint8, or with colour= (height, width) grey or (height, width, 4)"
