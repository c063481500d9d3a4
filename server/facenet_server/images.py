"""From bytes to upright RGB pixels. Pure: no waiting, no networks.

Decoding is strict: a file that is damaged in any way its decoder notices is refused, and nothing is decoded
before its header has passed the limits.
"""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from facenet_server.errors import InvalidInput

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB

Image.init()  # now, not when the first file of a rarer format comes
Image.MAX_IMAGE_PIXELS = None  # the limit below, checked on the header, stands in for Pillow's global one

_JPEG = b"\xff\xd8\xff"
_ODD_JPEG = (ValueError, KeyError)  # what simplejpeg raises: KeyError of a subsampling that it has no name for
_GLANCE_BYTES = 1024
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # by EXIF orientation: swap the axes, then turn the rows round, then the columns
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_INVERSE = {6: 8, 8: 6}  # of the other orientations each is its own


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image file as it came."""

    data: bytes
    ignore_exif_orientation: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """Pixels as they came: height × width × 3 bytes."""

    rgb: bytes
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What an image may be: formats by Pillow's names, bytes when encoded, height × width."""

    formats: tuple[str, ...]
    max_bytes: int
    max_pixels: int


class Decoded(NamedTuple):
    """Upright pixels (H, W, 3) uint8 RGB of an upright image of height × width, which is ``reduction`` times as large
    on each side (1, 2, 4 or 8); and the EXIF orientation (1…8) that was applied."""

    pixels: Pixels
    height: int
    width: int
    exif_orientation: int = 1
    reduction: int = 1


def decode(source: Encoded | Raw, limits: DecodeLimits, max_reduction: int = 1) -> Decoded:
    """The image's pixels. Grey becomes three equal channels, alpha is dropped, 16 bits become 8.

    A JPEG may be decoded at up to 1/``max_reduction`` of its size (1, 2, 4 or 8): sides are rounded up.
    Raises InvalidInput: EMPTY, UNSUPPORTED_FORMAT, TRUNCATED, CORRUPT, IMAGE_TOO_LARGE, WRONG_SIZE.
    """
    if isinstance(source, Raw):
        return Decoded(_view_raw(source, limits), source.height, source.width)
    if not source.data:
        raise InvalidInput("EMPTY", "the image has no bytes")
    if len(source.data) > limits.max_bytes:
        raise InvalidInput(
            "IMAGE_TOO_LARGE",
            f"the image has {len(source.data):,} bytes; the limit is {limits.max_bytes:,} (--max-image-mib)",
        )
    try:
        return _decode(source, limits, max_reduction)
    except InvalidInput:
        raise
    except UnidentifiedImageError:
        raise InvalidInput(
            "UNSUPPORTED_FORMAT", f"not an image in an accepted format ({', '.join(limits.formats)})"
        ) from None
    except Exception as error:  # decoders fail in any way on damaged files
        reason = "TRUNCATED" if "truncated" in str(error).lower() else "CORRUPT"
        raise InvalidInput(reason, f"the image cannot be decoded: its data is {reason.lower()}") from None


def claimed_pixels(source: Encoded | Raw, limits: DecodeLimits) -> int:
    """height × width by the image's header: what decoding it will take. 0 where it will be refused before that."""
    if isinstance(source, Raw):
        pixels = source.height * source.width
    elif len(source.data) > limits.max_bytes:
        return 0
    else:
        try:
            with Image.open(io.BytesIO(source.data), formats=limits.formats) as file:
                pixels = file.height * file.width
        except Exception:  # as above
            return 0
    return pixels if pixels <= limits.max_pixels else 0


def claimed_pixels_at_a_glance(source: Encoded | Raw, limits: DecodeLimits) -> int | None:
    """The same where that takes microseconds: of raw pixels, and of JPEG files whose header ends within a KiB. None of
    others, whose headers may be long or have to be unpacked."""
    if isinstance(source, Raw):
        return claimed_pixels(source, limits)
    if len(source.data) > limits.max_bytes or not source.data.startswith(_JPEG) or "JPEG" not in limits.formats:
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(source.data[:_GLANCE_BYTES])
    except _ODD_JPEG:  # or there is more of it
        return None
    return height * width if height * width <= limits.max_pixels else None


def _decode(source: Encoded, limits: DecodeLimits, max_reduction: int) -> Decoded:
    with Image.open(io.BytesIO(source.data), formats=limits.formats) as file:
        _check_size(file.height, file.width, limits)
        stored = _orientation(file)
        size = file.size
        turned = stored if file.format == "TIFF" else 1  # Pillow turns TIFFs, and only them, as it loads
        reduction, pixels = max_reduction, _decode_jpeg(source.data, file, max_reduction)
        if pixels is None:
            reduction, pixels = 1, np.asarray(_to_rgb(file))
    orientation = 1 if source.ignore_exif_orientation else stored
    if turned != orientation:
        pixels = _turn(pixels, orientation if turned == 1 else _INVERSE.get(turned, turned))
    width, height = reversed(size) if _UPRIGHT[orientation][0] else size
    return Decoded(pixels, height, width, orientation, reduction)


def _decode_jpeg(data: bytes, file: Image.Image, reduction: int) -> Pixels | None:
    """By libjpeg-turbo at once: the very pixels that Pillow makes of it piece by piece. None where the file is none
    of the usual, or where anything about it is odd: then Pillow has the say."""
    if file.format not in ("JPEG", "MPO") or file.mode not in ("L", "RGB"):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != file.size:
            return None
        smaller = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", **smaller)
    except _ODD_JPEG:
        return None
    return pixels


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    swap, rows, columns = _UPRIGHT[orientation]
    if swap:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def _view_raw(source: Raw, limits: DecodeLimits) -> Pixels:
    if not source.height or not source.width:
        raise InvalidInput("EMPTY", f"a raw image of {source.height}×{source.width} pixels has none")
    _check_size(source.height, source.width, limits)
    expected = source.height * source.width * 3
    if len(source.rgb) != expected:
        raise InvalidInput(
            "WRONG_SIZE",
            f"a raw image of {source.height}×{source.width} has {expected:,} bytes, not {len(source.rgb):,}",
        )
    return np.frombuffer(source.rgb, np.uint8).reshape(source.height, source.width, 3)


def _check_size(height: int, width: int, limits: DecodeLimits) -> None:
    if height * width > limits.max_pixels:
        raise InvalidInput(
            "IMAGE_TOO_LARGE",
            f"the image is {width} pixels wide and {height} high, {height * width:,} in all; the limit is "
            f"{limits.max_pixels:,} (--max-image-megapixels)",
        )


def _orientation(file: Image.Image) -> int:
    try:
        orientation = file.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF data says nothing about the pixels: the image counts as stored
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _to_rgb(file: Image.Image) -> Image.Image:
    if file.mode.startswith("I"):  # 16-bit grey, which Pillow would clip, not scale
        grey = np.asarray(file).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    return file.convert("RGB")
