"""Image files that mean ill, and files damaged at random: made here, of generated pictures."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

REASONS = {
    "EMPTY", "UNSUPPORTED_FORMAT", "TRUNCATED", "CORRUPT", "IMAGE_TOO_LARGE", "TOO_COMPLEX", "TOO_MUCH_WORK",
}  # fmt: skip
"""What may be wrong with an image, by docs/images.md and the options' limits."""


_Kinds = dict[str, tuple[Callable[[Any], bytes], tuple[Any, ...]]]


class Bomb(NamedTuple):
    """A small file that would cost much, and the reason that it is to be refused for."""

    name: str
    data: bytes
    reason: str


def encoded(picture: Any, kind: str, **how: Any) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **how)
    return file.getvalue()


def large_webp(side_px: int) -> bytes:
    """A legal picture of one colour: a kilobyte, however many pixels."""
    return encoded(Image.new("RGB", (side_px, side_px), (200, 30, 40)), "WEBP", lossless=True)


@cache
def bombs() -> tuple[Bomb, ...]:
    """Thirty, of ten kinds."""
    jpeg, many = _plain_jpeg(), (20_000, 200_000, 2_000_000)
    sides = ((1_250_000, 20), (20, 1_250_000), (40_000, 1_000))
    complex_ones: _Kinds = {
        "JPEG of {} scans": (_jpeg_of_many_scans, (150, 2_647, 20_000)),
        "JPEG of {} fill bytes": (lambda n: jpeg[:2] + b"\xff" * n + jpeg[2:], (300_000, 2_000_000, 9_000_000)),
        "JPEG of {} empty APP5": (lambda n: jpeg[:2] + b"\xff\xe5\0\2" * n + jpeg[2:], many),
        "JPEG of {} empty COM": (lambda n: jpeg[:2] + b"\xff\xfe\0\2" * n + jpeg[2:], many),
        "PNG of {} chunks": (lambda n: _png(20, 20, n), (20_000, 200_000, 600_000)),
        "WebP of {} chunks": (_webp_of_many_chunks, (20_000, 200_000, 1_000_000)),
    }
    large_ones: _Kinds = {
        "PNG of {}": (lambda size: _png(*size), sides),
        "PNG of {} squared": (lambda side: _png(side, side), (8_000, 60_000, 2**31 - 1)),
        "JPEG of {} squared": (_sized_jpeg, (7_500, 30_000, 65_500)),
        "WebP of {} squared": (_sized_webp, (7_500, 16_000, 16_384)),
    }
    return tuple(
        Bomb(name.format(size), make(size), reason)
        for kinds, reason in ((complex_ones, "TOO_COMPLEX"), (large_ones, "IMAGE_TOO_LARGE"))
        for name, (make, sizes) in kinds.items()
        for size in sizes
    )


def damaged(count: int, seed: int = 0) -> Iterator[bytes]:
    """Files with bytes changed, cut off, left out, doubled or put in."""
    rng = np.random.default_rng(seed)
    picture = np.clip(
        np.add.outer(np.arange(60), np.arange(80))[..., np.newaxis] + rng.normal(0, 30, (60, 80, 3)), 0, 255
    )
    pixels = picture.astype(np.uint8)
    whole = [
        encoded(pixels, "JPEG"),
        encoded(pixels, "JPEG", progressive=True, quality=90),
        encoded(pixels[..., 0], "JPEG", quality=30),
        encoded(pixels, "PNG"),
        encoded(pixels[..., 0], "PNG"),
        encoded(pixels, "WEBP"),
        encoded(pixels, "WEBP", lossless=True),
    ]
    for number in range(count):
        data = bytearray(whole[number % len(whole)])
        at, length = int(rng.integers(2, len(data))), int(rng.integers(1, 200))
        match number // len(whole) % 5:
            case 0:
                for _ in range(int(rng.integers(1, 20))):
                    data[int(rng.integers(2, len(data)))] = int(rng.integers(256))
            case 1:
                del data[at:]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case _:
                data[at:at] = rng.bytes(length)
        yield bytes(data)


def _plain_jpeg() -> bytes:
    return encoded(np.full((20, 20, 3), 128, np.uint8), "JPEG")


def _jpeg_of_many_scans(count: int) -> bytes:
    """A large progressive one, whose last scan comes again and again."""
    data = encoded(np.full((2000, 2000), 100, np.uint8), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - 1) + data[-2:]


def _sized_jpeg(side: int) -> bytes:
    data = bytearray(_plain_jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def _png(width: int, height: int, chunks: int = 0) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = zlib.compress(bytes(min(30_000_000, (width + 1) * height)), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tEXt", b"") * chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _sized_webp(side: int) -> bytes:
    """Of 34 bytes or so, without any pixels behind the size."""
    body = b"WEBPVP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(5)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_of_many_chunks(count: int) -> bytes:
    body = b"WEBP" + b"XXXX\0\0\0\0" * count + large_webp(20)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body
