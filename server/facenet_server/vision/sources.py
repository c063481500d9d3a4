"""What a request brings of an image, and what that is by its header: checked before anything is decoded.

The server's front process runs this, and no decoder.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from facenet_server.config import MIB, Config
from facenet_server.errors import InvalidInput
from facenet_server.vision import file_parts, headers
from facenet_server.vision.headers import Header

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB

_GLANCE_STEPS = 64
_GLANCE_BYTES = 1 << 20
_MOST_SCANNED_PIXELS = 1_000_000_000  # scans × pixels: some seconds


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image file as it came."""

    data: bytes
    ignore_exif_orientation: bool = False
    refuse_damaged: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """Pixels as they came: height × width × 3 bytes."""

    rgb: bytes
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What an image may be: formats by Pillow's names, bytes when encoded, height × width, the longer side, px, how
    often as long as the shorter one, scans of a JPEG, parts of a header."""

    formats: tuple[str, ...]
    max_bytes: int
    max_pixels: int
    max_side_px: int = 32_768
    max_aspect: int = 200
    max_scans: int = 100
    max_header_parts: int = file_parts.MAX_STEPS

    @classmethod
    def of(cls, config: Config) -> Self:
        """What the configuration lets an image be."""
        return cls(
            formats=config.formats,
            max_bytes=config.image_mib * MIB,
            max_pixels=config.max_image_megapixels * 1_000_000,
            max_side_px=config.max_image_side_px,
            max_aspect=config.max_image_aspect,
            max_scans=config.max_image_scans,
            max_header_parts=config.max_header_parts,
        )


Image = Encoded | Raw


def claimed_pixels(source: Encoded | Raw, limits: DecodeLimits) -> int:
    """height × width by the image's header: what decoding it will take. 0 where it will be refused before that."""
    if isinstance(source, Raw):
        pixels = source.height * source.width
        return pixels if pixels <= limits.max_pixels else 0
    try:
        header = checked_header(source.data, limits)
    except InvalidInput:
        return 0
    return header.height * header.width


def claimed_pixels_at_a_glance(source: Encoded | Raw, limits: DecodeLimits) -> int | None:
    """The same where that takes microseconds: of raw pixels, and of small files with short headers. None of others."""
    if isinstance(source, Raw):
        return claimed_pixels(source, limits)
    if len(source.data) > _GLANCE_BYTES:
        return None
    try:
        header = checked_header(source.data, limits, _GLANCE_STEPS)
    except InvalidInput as error:
        return None if error.reason == "TOO_COMPLEX" else 0
    return header.height * header.width


def checked_header(data: bytes, limits: DecodeLimits, max_parts: int | None = None) -> Header:
    """What the bytes say of the image. Raises InvalidInput where it is none, or beyond a limit."""
    if not data:
        raise InvalidInput("EMPTY", "the image has no bytes")
    if len(data) > limits.max_bytes:
        raise InvalidInput(
            "IMAGE_TOO_LARGE",
            f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,} (--max-message-mib)",
        )
    kind = headers.format_of(data)
    if kind not in limits.formats:
        known = f": it is {kind}, which facenet-server --image-formats may add" if kind else ""
        raise InvalidInput(
            "UNSUPPORTED_FORMAT", f"not an image in an accepted format ({', '.join(limits.formats)}){known}"
        )
    header = headers.parse(data, max_parts or limits.max_header_parts, limits.max_scans)
    _check_size(header.height, header.width, limits)
    if header.scans > limits.max_scans:
        raise InvalidInput("TOO_COMPLEX", f"the JPEG file has over {limits.max_scans} scans")
    if header.scans * header.height * header.width > _MOST_SCANNED_PIXELS:
        raise InvalidInput("TOO_COMPLEX", f"the JPEG file is large and has {header.scans} scans: save it as baseline")
    return header


def view_raw(source: Raw, limits: DecodeLimits) -> Pixels:
    """Raw pixels as they lie, not copied. Raises InvalidInput where there are none, too many, or not as it says."""
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
    size = f"the image is {width} pixels wide and {height} high"
    if height * width > limits.max_pixels:
        raise InvalidInput(
            "IMAGE_TOO_LARGE",
            f"{size}, {height * width:,} in all; the limit is {limits.max_pixels:,} (--max-image-megapixels)",
        )
    if max(height, width) > limits.max_side_px:
        raise InvalidInput("IMAGE_TOO_LARGE", f"{size}; the limit of a side is {limits.max_side_px:,}")
    if max(height, width) > limits.max_aspect * min(height, width):
        raise InvalidInput("IMAGE_TOO_LARGE", f"{size}; one side may be {limits.max_aspect} times the other")
