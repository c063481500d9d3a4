"""From bytes to upright RGB pixels, by the contract of docs/images.md. Pure: no waiting, no networks.

libjpeg-turbo decodes JPEGs of usual colours and subsampling, Pillow all else. Nothing is decoded before its header has
passed the limits, and metadata never is.
"""

import io
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from facenet_server.errors import InvalidInput, Overloaded
from facenet_server.vision import file_parts, stripped
from facenet_server.vision.headers import Header
from facenet_server.vision.sources import DecodeLimits, Encoded, Pixels, Raw, checked_header, view_raw

with suppress(ImportError):  # an extra
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
Image.init()  # now, not when the first file of a rarer format comes
Image.MAX_IMAGE_PIXELS = None  # the limit below, checked on the header, stands in for Pillow's global one

_EXIF_ORIENTATION = 0x0112
_ODD_JPEG = (ValueError, KeyError)  # what simplejpeg raises: KeyError of a subsampling that it has no name for
_MOST_BYTES_A_PIXEL = 16  # while a WebP is decoded
_ROWS_AT_ONCE = 256
_TIFF_WHITE = 281  # its tag MaxSampleValue
_TWELVE_BITS = 4096
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


class Decoded(NamedTuple):
    """Upright pixels (H, W, 3) uint8 RGB of an upright image of height × width, which is ``reduction`` times as large
    on each side (1, 2, 4 or 8); the EXIF orientation (1…8) that was applied; and whether pixels may be damaged."""

    pixels: Pixels
    height: int
    width: int
    exif_orientation: int = 1
    reduction: int = 1
    damaged: bool = False


def decode(source: Encoded | Raw, limits: DecodeLimits, max_reduction: int = 1) -> Decoded:
    """The image's pixels. Grey becomes three equal channels, alpha is dropped, 16 bits become 8.

    A JPEG may be decoded at up to 1/``max_reduction`` of its size (1, 2, 4 or 8): sides are rounded up.
    Raises InvalidInput: EMPTY, UNSUPPORTED_FORMAT, TRUNCATED, CORRUPT, IMAGE_TOO_LARGE, TOO_COMPLEX, WRONG_SIZE;
    DAMAGED where that is to be refused. Raises Overloaded where memory is short.
    """
    if isinstance(source, Raw):
        return Decoded(view_raw(source, limits), source.height, source.width)
    try:
        header = checked_header(source.data, limits)
        decoded = _decode(source, header, limits, max_reduction)
    except InvalidInput:
        raise
    except MemoryError:
        raise Overloaded("the server has no memory for this image now") from None
    except Exception as error:  # noqa: BLE001 (decoders fail in any way on damaged files)
        _check_memory(header)
        reason = "TRUNCATED" if "truncated" in str(error).lower() else "CORRUPT"
        raise InvalidInput(reason, f"the image cannot be decoded: its data is {reason.lower()}") from None
    if decoded.damaged and source.refuse_damaged:
        raise InvalidInput("DAMAGED", "pixels of the image may be damaged")
    return decoded


def _check_claim(file: Image.Image, header: Header) -> None:
    """Raises InvalidInput where a decoder finds more pixels than the header's, which memory and turns are given for."""
    if file.width * file.height > header.width * header.height:
        raise InvalidInput("CORRUPT", "the image cannot be decoded: it has another size than its header says")


def _check_memory(header: Header) -> None:
    """Raises Overloaded where a decoder may have failed for want of memory, which few of them say."""
    try:
        np.empty(header.height * header.width * _MOST_BYTES_A_PIXEL, np.uint8)
    except MemoryError:
        raise Overloaded("the server has no memory for this image now") from None


def _decode(source: Encoded, header: Header, limits: DecodeLimits, max_reduction: int) -> Decoded:
    height, width, stored, turned, damaged = header.height, header.width, header.orientation, 1, False
    reduction, pixels = 1, None
    data = source.data
    if header.format == "JPEG":
        pixels, damaged = _decode_jpeg(data, max_reduction)
        reduction = max_reduction if pixels is not None else 1
    elif header.format == "PNG":
        data, damaged = stripped.png(data)
    elif header.format == "WEBP":
        data = stripped.webp(data)
    if pixels is None:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as file:
            _check_claim(file, header)
            file.load()  # which may change its size
            _check_claim(file, header)
            width, height = file.size
            if header.format == "TIFF":
                turned = stored  # Pillow turns TIFFs, and only them, as it loads
            elif header.format == "AVIF":
                stored = _orientation(file)
            pixels = _to_rgb(file)
    orientation = 1 if source.ignore_exif_orientation else stored
    if turned != orientation:
        pixels = _turn(pixels, orientation if turned == 1 else _INVERSE.get(turned, turned))
    if _UPRIGHT[orientation][0]:
        height, width = width, height
    return Decoded(pixels, height, width, orientation, reduction, damaged)


# ---- JPEG ----


def _decode_jpeg(data: bytes, reduction: int) -> tuple[Pixels | None, bool]:
    """By libjpeg-turbo, and whether it found anything wrong within the image's data. None in place of the pixels where
    it does not know the colours or their subsampling: then Pillow decodes.

    Raises InvalidInput, reason TRUNCATED, where pixels are missing.
    """
    try:
        return _by_turbo(data, reduction), False
    except _ODD_JPEG:
        pass  # perhaps only metadata, or the end marker
    alone = stripped.jpeg(data)
    try:
        pixels = _by_turbo(alone, reduction)
        if not file_parts.has_all_scans(alone):
            raise InvalidInput("TRUNCATED", "the image cannot be decoded: some of its scans are missing")
        return pixels, False
    except KeyError:
        return None, False
    except ValueError as error:
        warning = str(error)
    if "premature end of data segment" in warning:
        raise InvalidInput("TRUNCATED", "the image cannot be decoded: its data is truncated")
    try:
        pixels = _by_turbo(alone, reduction, strict=False)
    except _ODD_JPEG:
        return None, False
    return pixels, True


def _by_turbo(data: bytes, reduction: int, *, strict: bool = True) -> Pixels:
    smaller = {}
    if reduction > 1:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=strict)
        smaller = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)}
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", strict=strict, **smaller)
    return pixels


# ---- pixels ----


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    swap, rows, columns = _UPRIGHT[orientation]
    if swap:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def _orientation(file: Image.Image) -> int:
    try:
        orientation = file.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (damaged EXIF data says nothing about the pixels: the image counts as stored)
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _to_rgb(file: Image.Image) -> Pixels:
    """The pixels of a file, (H, W, 3). Raises InvalidInput for those whose range cannot be told."""
    if file.mode.startswith("I"):
        grey = np.asarray(file)
        most = _most(file, grey)
        if most == 65_535:
            return _three_channels((grey >> 8).astype(np.uint8))
        return _three_channels((grey.clip(0, most) * (255 / most)).astype(np.uint8))
    if file.mode == "F":
        grey = np.asarray(file)
        if not (grey.min() >= 0 and grey.max() <= 1):  # not: NaN
            raise InvalidInput("UNSUPPORTED_FORMAT", "floats beyond 0…1 have no certain range: convert them to 8 bits")
        return _three_channels((grey * 255).round().astype(np.uint8))
    file.load()
    pixels = np.empty((file.height, file.width, 3), np.uint8)
    for top in range(0, file.height, _ROWS_AT_ONCE):  # at once it would take three times the memory
        rows = file.crop((0, top, file.width, min(top + _ROWS_AT_ONCE, file.height)))
        pixels[top : top + _ROWS_AT_ONCE] = np.asarray(rows.convert("RGB"))
    return pixels


def _most(file: Image.Image, grey: NDArray[np.integer[Any]]) -> int:
    """What white is in grey of more than 8 bits. A PNG has all of 16 bits, a TIFF may have 12 of them, or say so."""
    told = getattr(file, "tag_v2", {}).get(_TIFF_WHITE)
    if isinstance(told, tuple) and len(told) == 1:
        told = told[0]
    if isinstance(told, int) and 255 <= told <= 65_535:
        return told
    if grey.min() < 0 or grey.max() > 65_535 or (file.format == "TIFF" and grey.max() < _TWELVE_BITS):
        raise InvalidInput(
            "UNSUPPORTED_FORMAT",
            "what white is cannot be told of this grey of over 8 bits: scale it, or convert it to 8",
        )
    return 65_535


def _three_channels(grey: NDArray[np.uint8]) -> Pixels:
    return np.repeat(grey[..., np.newaxis], 3, axis=2)
