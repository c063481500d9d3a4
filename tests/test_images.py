import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from facenet_server.errors import InvalidInput
from facenet_server.vision.decode import decode
from facenet_server.vision.sources import DecodeLimits, Encoded, Raw, claimed_pixels, claimed_pixels_at_a_glance
from PIL import Image, ImageOps

LIMITS = DecodeLimits(("JPEG", "PNG", "WEBP"), 1 << 20, 1_000_000)
ALL_FORMATS = DecodeLimits(("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"), 10 << 20, 25_000_000)

# Two by three pixels whose corners differ, so that every orientation shows.
PATTERN = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[9, 9, 9], [99, 99, 99], [199, 199, 199]]], np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def with_orientation(pixels: np.ndarray, orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, PATTERN),
        (2, PATTERN[:, ::-1]),
        (3, PATTERN[::-1, ::-1]),
        (4, PATTERN[::-1]),
        (5, PATTERN.transpose(1, 0, 2)),
        (6, np.rot90(PATTERN, -1)),
        (7, PATTERN[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(PATTERN)),
    ],
)
def test_the_exif_orientation_is_applied_and_told(orientation: int, upright: np.ndarray, kind: str) -> None:
    decoded = decode(Encoded(with_orientation(PATTERN, orientation, kind)), ALL_FORMATS)
    np.testing.assert_array_equal(decoded.pixels, upright)
    assert decoded.exif_orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_gives_the_pixels_that_pillow_gives(orientation: int, astronaut: np.ndarray) -> None:
    data = with_orientation(astronaut[:201, :150], orientation, "JPEG")
    with Image.open(io.BytesIO(data)) as file:
        theirs = np.asarray(ImageOps.exif_transpose(file))
    decoded = decode(Encoded(data), LIMITS)
    np.testing.assert_array_equal(decoded.pixels, theirs)
    assert (decoded.height, decoded.width) == theirs.shape[:2]


def test_a_jpeg_with_odd_bytes_is_read_as_pillow_reads_it(astronaut: np.ndarray) -> None:
    data = encoded(astronaut, "JPEG")
    start = data.index(b"\xff\xda")
    odd = data[:start] + b"\0\0" + data[start:]  # libjpeg skips them, with a warning
    np.testing.assert_array_equal(decode(Encoded(odd), LIMITS).pixels, decode(Encoded(data), LIMITS).pixels)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_smaller_where_that_is_allowed(
    reduction: int, orientation: int, astronaut: np.ndarray
) -> None:
    data = with_orientation(astronaut[:400, :301], orientation, "JPEG")
    whole, small = decode(Encoded(data), LIMITS), decode(Encoded(data), LIMITS, reduction)
    assert small.reduction == reduction
    assert (small.height, small.width) == (whole.height, whole.width)
    assert small.pixels.shape == (-(-whole.height // reduction), -(-whole.width // reduction), 3)
    average = cv2.resize(whole.pixels, small.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.pixels.astype(int) - average).mean() < 10


def test_other_formats_are_decoded_whole(astronaut: np.ndarray) -> None:
    decoded = decode(Encoded(encoded(astronaut)), LIMITS, 8)
    assert decoded.reduction == 1
    np.testing.assert_array_equal(decoded.pixels, astronaut)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_can_be_ignored(orientation: int, kind: str) -> None:
    data = with_orientation(PATTERN, orientation, kind)
    decoded = decode(Encoded(data, ignore_exif_orientation=True), ALL_FORMATS)
    np.testing.assert_array_equal(decoded.pixels, PATTERN)
    assert decoded.exif_orientation == 1


def test_an_orientation_that_exif_does_not_know_counts_as_none() -> None:
    assert decode(Encoded(with_orientation(PATTERN, 9)), LIMITS).exif_orientation == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_default_formats_decode_as_pillow_does(kind: str, astronaut: np.ndarray) -> None:
    data = encoded(astronaut, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(Encoded(data), LIMITS).pixels, expected)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF"])
def test_other_formats_are_refused_unless_allowed(kind: str) -> None:
    data = encoded(PATTERN, kind)
    with pytest.raises(InvalidInput) as refused:
        decode(Encoded(data), LIMITS)
    assert refused.value.reason == "UNSUPPORTED_FORMAT"
    assert decode(Encoded(data), ALL_FORMATS).pixels.shape == PATTERN.shape


def test_grey_is_copied_to_three_channels_and_alpha_is_dropped() -> None:
    grey = np.array([[7, 200]], np.uint8)
    np.testing.assert_array_equal(decode(Encoded(encoded(grey)), LIMITS).pixels, np.dstack([grey] * 3))
    transparent = np.dstack([PATTERN, np.zeros((2, 3), np.uint8)])
    np.testing.assert_array_equal(decode(Encoded(encoded(transparent)), LIMITS).pixels, PATTERN)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.array([[0, 0x0FFF, 0x8000, 0xFFFF]], np.uint16)
    np.testing.assert_array_equal(decode(Encoded(encoded(deep)), LIMITS).pixels[0, :, 0], [0, 0x0F, 0x80, 0xFF])


def test_the_first_frame_of_an_animation_counts() -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(PATTERN), Image.fromarray(255 - PATTERN)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode(Encoded(file.getvalue()), LIMITS).pixels, PATTERN)


PHOTO = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param(Encoded(b""), "EMPTY", id="no bytes"),
        pytest.param(Encoded(b"hello, world"), "UNSUPPORTED_FORMAT", id="text"),
        pytest.param(Encoded(PHOTO[:-200]), "TRUNCATED", id="half a JPEG"),
        pytest.param(Encoded(PHOTO[:20]), "TRUNCATED", id="less than a header"),
        pytest.param(Encoded(encoded(PATTERN)[:-30]), "TRUNCATED", id="half a PNG"),
        pytest.param(Encoded(b"\xff" * (1 << 20) + b"\xff"), "IMAGE_TOO_LARGE", id="too many bytes"),
        pytest.param(Encoded(encoded(np.zeros((1001, 1000), np.uint8))), "IMAGE_TOO_LARGE", id="too many pixels"),
        pytest.param(Raw(b"123", 1001, 1000), "IMAGE_TOO_LARGE", id="too many raw pixels"),
        pytest.param(Raw(b"", 0, 3), "EMPTY", id="no raw pixels"),
        pytest.param(Raw(b"12345", 1, 2), "WRONG_SIZE", id="raw bytes missing"),
    ],
)
def test_an_unusable_image_is_refused_with_its_reason(source: Encoded | Raw, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode(source, LIMITS)
    assert refused.value.reason == reason


def test_a_bomb_is_refused_on_its_header() -> None:
    bomb = encoded(np.zeros((6000, 6000), np.uint8))  # 36 million pixels in some 40 kB
    with pytest.raises(InvalidInput, match="6000 pixels wide and 6000 high"):
        decode(Encoded(bomb), ALL_FORMATS)


@pytest.mark.timeout(120)
def test_what_an_image_will_take_is_known_from_its_header(astronaut: np.ndarray) -> None:
    assert claimed_pixels(Encoded(encoded(astronaut, "JPEG")), LIMITS) == 512 * 512
    assert claimed_pixels(Encoded(encoded(astronaut, "PNG")[:100]), LIMITS) == 512 * 512
    assert claimed_pixels(Raw(b"", 30, 40), LIMITS) == 1200
    assert claimed_pixels(Encoded(b"text"), LIMITS) == 0
    assert claimed_pixels(Raw(b"", 30_000, 40_000), LIMITS) == 0  # it is refused before it takes anything


def test_every_odd_file_is_decoded_or_refused(odd_files: Sequence[Path]) -> None:
    decoded, refusals = 0, set()
    for file in odd_files:
        try:
            pixels, *_, orientation, _ = decode(Encoded(file.read_bytes()), ALL_FORMATS)
        except InvalidInput as error:
            refusals.add(error.reason)
            continue
        assert pixels.dtype == np.uint8, file
        assert pixels.ndim == 3, file
        assert pixels.shape[2] == 3, file
        assert 1 <= orientation <= 8, file
        decoded += 1
    assert decoded > len(odd_files) / 2
    assert refusals <= {"EMPTY", "UNSUPPORTED_FORMAT", "TRUNCATED", "CORRUPT", "IMAGE_TOO_LARGE"}


def test_a_glance_tells_the_size_of_raw_pixels_and_of_a_plain_jpeg(astronaut: np.ndarray) -> None:
    assert claimed_pixels_at_a_glance(Raw(b"", 30, 40), LIMITS) == 1200
    photo = Encoded(encoded(astronaut[:100, :90], "JPEG"))
    assert claimed_pixels_at_a_glance(photo, LIMITS) == claimed_pixels(photo, LIMITS) == 9000


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_glance_tells_what_the_header_says_or_nothing_where_any_byte_is_damaged(
    astronaut: np.ndarray, mode: str, options: dict[str, Any]
) -> None:
    file = io.BytesIO()
    Image.fromarray(astronaut[:40, :56]).convert(mode).save(file, "JPEG", **options)
    rng, whole = np.random.default_rng(0), file.getvalue()
    header = whole.index(b"\xff\xda")
    for at in range(3, header):
        damaged = Encoded(whole[:at] + rng.bytes(1) + whole[at + 1 :])
        told = claimed_pixels_at_a_glance(damaged, LIMITS)
        assert told is None or claimed_pixels(damaged, LIMITS) in (told, 0)  # 0: it will be refused


def test_a_glance_says_nothing_of_images_that_will_be_refused(astronaut: np.ndarray) -> None:
    photo = Encoded(encoded(astronaut[:100, :90], "JPEG"))
    assert claimed_pixels_at_a_glance(photo, replace(LIMITS, max_pixels=8999)) == 0
    assert claimed_pixels_at_a_glance(photo, replace(LIMITS, formats=("PNG", "WEBP"))) == 0


def test_a_rare_subsampling_is_decoded_by_pillow(astronaut: np.ndarray) -> None:
    wide = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411]
    file = cv2.imencode(".jpg", astronaut[:32, :32], wide)[1].tobytes()
    tall = file.replace(b"\x01\x41\x00", b"\x01\x14\x00", 1)  # chroma four times as coarse in height, not in width
    assert tall != file
    expected = np.asarray(Image.open(io.BytesIO(tall)))
    np.testing.assert_array_equal(decode(Encoded(tall), LIMITS).pixels, expected)
    assert claimed_pixels(Encoded(tall), LIMITS) == 32 * 32


def test_a_glance_says_nothing_of_files_whose_headers_take_longer(astronaut: np.ndarray) -> None:
    jpeg = encoded(astronaut[:20, :20], "JPEG")
    segments = b"\xff\xe1\x00\x02" * 10_000
    files = [jpeg[:2] + segments + jpeg[2:], jpeg[:2] + b"\xff" * 10_000 + jpeg[2:], jpeg + bytes(1 << 20)]
    assert [claimed_pixels_at_a_glance(Encoded(file), ALL_FORMATS) for file in files] == [None] * len(files)
    assert [claimed_pixels(Encoded(file), ALL_FORMATS) for file in files] == [400] * len(files)
