"""The contract of docs/images.md, a test a row: each file, and what comes of it."""

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from facenet_server.errors import ItemError
from facenet_server.vision.decode import Decoded, decode
from facenet_server.vision.sources import DecodeLimits, Encoded
from PIL import Image, TiffImagePlugin

LIMITS = DecodeLimits(("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "TIFF", "GIF"), 25 << 20, 51_000_000)
DEFAULT = replace(LIMITS, formats=("JPEG", "PNG", "WEBP"))

# A picture with much in it, so that its files are long.
PICTURE = np.clip(
    np.add.outer(np.arange(200), np.arange(300))[..., np.newaxis] / 2
    + np.random.default_rng(0).normal(0, 20, (200, 300, 3)),
    0,
    255,
).astype(np.uint8)


def file(kind: str = "JPEG", picture: Any = PICTURE, **how: Any) -> bytes:
    made = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(made, kind, **how)
    return made.getvalue()


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """Of a PNG."""
    right = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", right if checksum is None else checksum)


def png(
    *,
    header_checksum: int | None = None,
    pixels: bytes | None = None,
    checksum: int | None = None,
    before: bytes = b"",
    end: bool = True,
) -> bytes:
    """A PNG of the picture, part by part."""
    rows = b"".join(b"\0" + row.tobytes() for row in PICTURE)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 300, 200, 8, 2, 0, 0, 0), header_checksum)
    body = chunk(b"IDAT", zlib.compress(rows) if pixels is None else pixels, checksum)
    return b"\x89PNG\r\n\x1a\n" + header + before + body + (chunk(b"IEND", b"") if end else b"")


def segment(marker: int, content: bytes) -> bytes:
    """Of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


JPEG, WEBP = file(quality=90), file("WEBP", lossless=True)
PROGRESSIVE = file(quality=90, progressive=True)
SIZE_AT = JPEG.index(b"\xff\xc0")
SCAN_AT = JPEG.index(b"\xff\xda")
SIZE = JPEG[SIZE_AT : SIZE_AT + 19]
LOST = JPEG[: SCAN_AT + 5000] + JPEG[SCAN_AT + 5400 :]
BLOCK = b"\0\0\x01\x0a" + struct.pack("<I", 14) + b"Image_UTC_Data" + JPEG[:3000]
DIRECTORY = b"SEFH" + struct.pack("<II", 107, 1) + struct.pack("<HHII", 0, 0x0A01, len(BLOCK), len(BLOCK))
SAMSUNG_TRAILER = BLOCK + DIRECTORY + struct.pack("<I", len(DIRECTORY)) + b"SEFT"
DEEP = (PICTURE[..., 0].astype(np.uint16) << 8) + 7


def tiff_of_12_bits(**tags: Any) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    if tags:
        info[281] = 4095
        info.tagtype[281] = 3
    return file("TIFF", DEEP >> 4, tiffinfo=info)


def tiff_of_tiles() -> bytes:
    """16×16 pixels in one tile that claims 28,000×28,000."""
    tags = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 8), (262, 3, 1), (322, 4, 28_000), (323, 4, 28_000)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


def webp_with_metadata() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "x" * 4000
    return file("WEBP", quality=80, exif=exif)


def animation(kind: str) -> bytes:
    return file(
        kind,
        save_all=True,
        append_images=[Image.fromarray(255 - PICTURE)],
        **({} if kind == "GIF" else {"lossless": True} if kind == "WEBP" else {}),
    )


def rows_of(name: str, made: bytes | Callable[[], bytes], answer: str, limits: DecodeLimits = LIMITS) -> Any:
    return pytest.param(made, answer, limits, id=name)


ROWS = [
    rows_of("any: no bytes", b"", "EMPTY"),
    rows_of("any: no image", b"hello, world", "UNSUPPORTED_FORMAT"),
    rows_of("any: a format that is not switched on", lambda: file("GIF"), "UNSUPPORTED_FORMAT", DEFAULT),
    rows_of("any: too many bytes", JPEG, "IMAGE_TOO_LARGE", replace(LIMITS, max_bytes=len(JPEG) - 1)),
    rows_of("any: too many pixels", JPEG, "IMAGE_TOO_LARGE", replace(LIMITS, max_pixels=59_999)),
    rows_of("any: a side that is too long", JPEG, "IMAGE_TOO_LARGE", replace(LIMITS, max_side_px=299)),
    rows_of("any: one side many times the other", lambda: file("PNG", PICTURE[:1]), "IMAGE_TOO_LARGE"),
    rows_of("JPEG: cut off within its header", JPEG[: SIZE_AT + 5], "TRUNCATED"),
    rows_of("JPEG: cut off within its pixels", JPEG[:-4000], "TRUNCATED"),
    rows_of("JPEG: the same, with an end marker appended", JPEG[:-4000] + b"\xff\xd9", "TRUNCATED"),
    rows_of("JPEG: no end marker, all pixels there", JPEG[:-2], "same"),
    rows_of("JPEG: bytes behind the image", JPEG + JPEG[:5000], "same"),
    rows_of("JPEG: damaged EXIF data", JPEG[:2] + segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff") + JPEG[2:], "same"),
    rows_of(
        "JPEG: text and profiles of any length",
        JPEG[:2] + 40 * segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000)) + 10 * segment(0xFE, bytes(65_000)) + JPEG[2:],
        "same",
    ),
    rows_of("JPEG: bytes between the segments of its header", JPEG[:SIZE_AT] + b"junk" + JPEG[SIZE_AT:], "same"),
    rows_of("JPEG: a panorama's trailer in place of an end marker", JPEG[:-2] + SAMSUNG_TRAILER, "same"),
    rows_of("JPEG: bytes lost within a scan", LOST, "damaged or TRUNCATED"),
    rows_of("JPEG: CMYK", lambda: file(picture=Image.fromarray(PICTURE).convert("CMYK"), quality=95), "answered"),
    rows_of("JPEG: scans missing of a progressive one", PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")], "TRUNCATED"),
    rows_of("JPEG: a progressive one without its end marker", PROGRESSIVE[:-2], "same"),
    rows_of("JPEG: no size before its first scan", JPEG[:SIZE_AT] + JPEG[SIZE_AT + 19 :], "CORRUPT"),
    rows_of("JPEG: two sizes", JPEG[:SIZE_AT] + SIZE + JPEG[SIZE_AT:], "CORRUPT"),
    rows_of("JPEG: too many scans", lambda: file(progressive=True), "TOO_COMPLEX", replace(LIMITS, max_scans=5)),
    rows_of("JPEG: too many segments", JPEG[:2] + 20_000 * segment(0xE5, b"") + JPEG[2:], "TOO_COMPLEX"),
    rows_of("JPEG: too many fill bytes", JPEG[:2] + b"\xff" * 1_000_000 + JPEG[2:], "TOO_COMPLEX"),
    rows_of("PNG: cut off within its pixels", png()[:-4000], "TRUNCATED"),
    rows_of("PNG: no pixels", png(pixels=b""), "TRUNCATED"),
    rows_of("PNG: no end chunk", png(end=False), "same"),
    rows_of("PNG: bytes behind the image", png() + bytes(1_000_000), "same"),
    rows_of("PNG: two headers", png(before=chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))), "CORRUPT"),
    rows_of("PNG: a wrong checksum of its pixels", png(checksum=1), "damaged"),
    rows_of("PNG: a wrong checksum of its header", png(header_checksum=1), "CORRUPT"),
    rows_of("PNG: a wrong checksum of its text", png(before=chunk(b"tEXt", b"a\0b", 1)), "same"),
    rows_of(
        "PNG: text and profiles of any length",
        png(
            before=chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(9 << 20)))
            + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9 << 20)))
        ),
        "same",
    ),
    rows_of("PNG: pixels that cannot be unpacked", png(pixels=bytes(9000)), "CORRUPT"),
    rows_of("PNG: too many chunks", png(before=20_000 * chunk(b"tEXt", b"")), "TOO_COMPLEX"),
    rows_of("PNG: grey of 16 bits", lambda: file("PNG", DEEP), "grey"),
    rows_of("PNG: an animation", lambda: animation("PNG"), "same"),
    rows_of("PNG: transparent", lambda: file("PNG", np.dstack([PICTURE, PICTURE[..., 0]])), "same"),
    rows_of("WebP: cut off within its picture", WEBP[:-4000], "TRUNCATED"),
    rows_of("WebP: cut off behind its picture", lambda: webp_with_metadata()[:-1000], "answered"),
    rows_of("WebP: bytes behind the image", WEBP + bytes(1_000_000), "same"),
    rows_of("WebP: an animation", lambda: animation("WEBP"), "same"),
    rows_of("AVIF: switched on", lambda: file("AVIF", quality=90), "answered"),
    rows_of("HEIF: switched on", lambda: file("HEIF", quality=90), "answered"),
    rows_of("TIFF: grey of 16 bits", lambda: file("TIFF", DEEP), "grey"),
    rows_of("TIFF: grey of 12 bits that says so", lambda: tiff_of_12_bits(white=4095), "grey"),
    rows_of("TIFF: grey of 12 bits that does not say so", lambda: tiff_of_12_bits(), "UNSUPPORTED_FORMAT"),
    rows_of("TIFF: a tile larger than the image", lambda: tiff_of_tiles(), "IMAGE_TOO_LARGE"),
    rows_of("TIFF: floats in 0…1", lambda: file("TIFF", PICTURE[..., 0].astype(np.float32) / 255), "grey"),
    rows_of("TIFF: other floats", lambda: file("TIFF", PICTURE[..., 0].astype(np.float32)), "UNSUPPORTED_FORMAT"),
    rows_of(
        "GIF: no frame where one must begin", lambda: file("GIF").replace(b"\x2c\0\0\0\0", b"x\x2c\0\0\0\0"), "CORRUPT"
    ),
    rows_of("GIF: an animation", lambda: animation("GIF"), "answered"),
    rows_of("BMP: switched on", lambda: file("BMP"), "same"),
]


def decoded_or_reason(data: bytes, limits: DecodeLimits) -> Decoded | str:
    try:
        return decode(Encoded(data), limits)
    except ItemError as error:
        return error.reason


@pytest.mark.parametrize(("made", "answer", "limits"), ROWS)
def test_a_row(made: bytes | Callable[[], bytes], answer: str, limits: DecodeLimits) -> None:
    data = made if isinstance(made, bytes) else made()
    decoded = decoded_or_reason(data, limits)
    if isinstance(decoded, str):
        assert decoded in answer
        return
    assert decoded.damaged == ("damaged" in answer)
    assert decoded.pixels.shape == PICTURE.shape
    whole = decode(Encoded(JPEG), LIMITS).pixels if data.startswith(b"\xff\xd8") else PICTURE
    expected = {"same": whole, "grey": np.repeat(PICTURE[..., :1], 3, axis=2)}.get(answer)
    if expected is not None:
        assert np.abs(decoded.pixels.astype(int) - expected).max() <= (1 if answer == "grey" else 0)
    else:
        assert "damaged" in answer or np.abs(decoded.pixels.astype(int) - PICTURE).mean() < 20


def test_memory_that_is_short_is_no_fault_of_the_image() -> None:
    """any: memory is short."""

    class NoMemory(bytes):
        def startswith(self, *_: Any) -> bool:
            raise MemoryError

    with pytest.raises(ItemError) as refused:
        decode(Encoded(NoMemory(JPEG)), LIMITS)
    assert refused.value.reason == "OVERLOADED"


SHORT = """
import resource, sys
from facenet_server.errors import ItemError
from facenet_server.vision.decode import decode
from facenet_server.vision.sources import DecodeLimits, Encoded
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (30 << 20), resource.RLIM_INFINITY))
try:
    decode(Encoded(sys.stdin.buffer.read()), DecodeLimits(("JPEG", "PNG", "WEBP"), 25 << 20, 51_000_000))
    print("decoded")
except ItemError as error:
    print(error.reason)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_whole_file_is_not_said_to_be_damaged_where_memory_is_short(kind: str) -> None:
    data = file(kind, Image.new("RGB", (6000, 6000), (200, 30, 40)))
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "server"))
    ended = subprocess.run(
        [sys.executable, "-c", SHORT],
        input=data,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert ended.stdout.decode().strip() == "OVERLOADED", ended.stderr.decode()


def test_each_row_of_the_document_has_its_test() -> None:
    table = (ROOT / "docs" / "images.md").read_text().partition("## By format")[2].partition("##")[0]
    documented = dict(re.findall(r"^\| (\w+: [^|]+) \| ([^|]+) \|$", table, re.MULTILINE))
    tested = {str(row.id): str(row.values[1]) for row in ROWS} | {"any: memory is short": "OVERLOADED"}
    assert list(documented) == list(tested) or sorted(documented) == sorted(tested)
    for name, answer in tested.items():
        said = "answered" if answer in ("same", "grey") else answer
        assert said in documented[name], name


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_an_orientation_of_newer_formats_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(PICTURE)
    picture.info["exif"] = exif.tobytes()
    data = file(kind, picture, quality=95, **({"exif": exif} if kind == "AVIF" else {}))
    decoded = decode(Encoded(data), LIMITS)
    assert (decoded.width, decoded.height) == (200, 300)
    assert np.abs(decoded.pixels.astype(int) - np.rot90(PICTURE, -1)).mean() < 20


def test_a_damaged_image_can_be_refused() -> None:
    with pytest.raises(ItemError) as refused:
        decode(Encoded(png(checksum=1), refuse_damaged=True), LIMITS)
    assert refused.value.reason == "DAMAGED"
    assert not decode(Encoded(png(), refuse_damaged=True), LIMITS).damaged
