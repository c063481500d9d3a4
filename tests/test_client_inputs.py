"""What callers give as images, pairs and options: what is taken, and what an error says of the rest."""

import base64
import io
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from facenet_client import Embedding, Face, ImageError
from nets import crop, fake_server, square
from PIL import Image

PNG = io.BytesIO()
Image.fromarray(square()).save(PNG, "PNG")
PIXELS = square().astype(np.uint8)


def encoded_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG")
    return file.getvalue()


JPEG = encoded_jpeg()
FOREIGN = Embedding(np.eye(1, 4, dtype=np.float32)[0], "foreign")
FACE = Face((0, 0, 1, 1), 1.0, ((0, 0),) * 5)


def opened(tmp_path: Path) -> Any:
    (tmp_path / "square.png").write_bytes(PNG.getvalue())
    return (tmp_path / "square.png").open("rb")


# ---- what is an image ----


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(lambda _: bytearray(PNG.getvalue()), id="bytearray"),
        pytest.param(lambda _: memoryview(PNG.getvalue()), id="memoryview"),
        pytest.param(lambda _: io.BytesIO(PNG.getvalue()), id="BytesIO"),
        pytest.param(opened, id="an open file"),
        pytest.param(lambda _: Image.fromarray(PIXELS), id="PIL"),
        pytest.param(lambda _: Image.fromarray(PIXELS).convert("L"), id="grey PIL"),
        pytest.param(lambda _: Image.fromarray(PIXELS).convert("RGBA"), id="PIL with alpha"),
        pytest.param(lambda _: Image.open(io.BytesIO(PNG.getvalue())), id="an unread PIL file"),
    ],
)
async def test_what_holds_an_image_is_one(image: Any, call: Call, tmp_path: Path) -> None:
    given = image(tmp_path)
    with given if hasattr(given, "close") else nullcontext():
        async with fake_server() as target:
            plain, other = await call(target, "detect", [PIXELS, given])
    assert other.error is None
    assert other.faces[0].box == plain.faces[0].box


@pytest.mark.parametrize("ignored", [False, True], ids=["turned", "as it is"])
async def test_a_pil_image_is_turned_upright_like_its_file(ignored: bool, call: Call) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(PIXELS).save(file, "JPEG", quality=95, exif=exif)
    options = {"apply_exif_orientation": False} if ignored else {}
    async with fake_server() as target:
        encoded, pillow = await call(target, "detect", [file.getvalue(), Image.open(file)], **options)
    assert (pillow.width, pillow.height) == (encoded.width, encoded.height)
    assert (pillow.width, pillow.height) == ((160, 120) if ignored else (120, 160))


@pytest.mark.parametrize(
    ("colour", "array"),
    [
        pytest.param("rgb", PIXELS / 255, id="floats in 0…1"),
        pytest.param("grey", PIXELS[..., 0], id="grey"),
        pytest.param("grey", PIXELS[..., :1], id="grey of one channel"),
        pytest.param("bgr", PIXELS[..., ::-1], id="BGR, not contiguous"),
        pytest.param("rgba", np.dstack([PIXELS, PIXELS[..., :1]]), id="RGBA"),
        pytest.param("bgra", np.dstack([PIXELS[..., ::-1], PIXELS[..., :1]]), id="BGRA"),
    ],
)
async def test_arrays_of_other_colours_are_images_where_it_is_said(colour: str, array: np.ndarray, call: Call) -> None:
    async with fake_server() as target:
        (plain,) = await call(target, "detect", [PIXELS])
        (other,) = await call(target, "detect", [array], colour=colour)
    assert other.error is None
    assert other.faces[0].box == plain.faces[0].box


async def test_the_channels_of_a_crop_arrive_in_their_order(call: Call) -> None:
    async with fake_server() as target:
        (rgb,) = await call(target, "embed_crops", [crop(200, 100, 10)])
        (bgr,) = await call(target, "embed_crops", [crop(10, 100, 200)], colour="bgr")
    np.testing.assert_array_equal(np.asarray(rgb), np.asarray(bgr))


class Upload:
    """As Starlette's UploadFile."""

    async def read(self) -> bytes:
        return PNG.getvalue()


LONG = base64.b64encode(bytes(100_000)).decode()


@pytest.mark.parametrize(
    ("image", "told"),
    [
        pytest.param(PIXELS[..., 0], "colour='grey'", id="grey"),
        pytest.param(np.dstack([PIXELS, PIXELS[..., :1]]), "colour='rgba' or 'bgra'", id="four channels"),
        pytest.param(PIXELS / 255, "(255 * image).round().astype(numpy.uint8)", id="floats"),
        pytest.param(PIXELS.astype(np.uint16) << 8, "(image >> 8).astype(numpy.uint8)", id="uint16"),
        pytest.param(PIXELS.transpose(2, 0, 1), "image.transpose(1, 2, 0)", id="channels first"),
        pytest.param(LONG, "base64.b64decode(text)", id="base64"),
        pytest.param(f"data:image/png;base64,{LONG}", "data: URL", id="a data URL"),
        pytest.param("https://example.org/photo.jpg?" + 300 * "x", "nothing is fetched", id="a URL"),
        pytest.param("photos/" + 500 * "x" + ".jpg", "cannot read", id="a long path"),
        pytest.param(io.StringIO(LONG), "open(path, 'rb')", id="a file of text"),
        pytest.param(3.5, "a float is no image", id="a number"),
        pytest.param(Upload(), "`await file.read()`", id="an upload of an asynchronous web framework"),
    ],
)
async def test_what_is_no_image_is_told_what_to_do_in_a_few_words(image: Any, told: str, call: Call) -> None:
    async with fake_server() as target:
        good, bad = await call(target, "detect", [PIXELS, image])
    assert good.error is None
    assert isinstance(bad.error, ImageError)
    assert told in str(bad.error)
    assert len(str(bad.error)) < 300


def half_a_pil_image(_: Path) -> Any:
    return Image.open(io.BytesIO(JPEG[:-200]))


def a_closed_pil_image(_: Path) -> Any:
    image = Image.open(io.BytesIO(JPEG))
    image.close()
    return image


def at_its_end(_: Path) -> Any:
    file = io.BytesIO(JPEG)
    file.read()
    return file


def open_as_text(tmp_path: Path) -> Any:
    (tmp_path / "photo.jpg").write_bytes(JPEG)
    return (tmp_path / "photo.jpg").open(encoding="utf-8")


class Broken:
    """As a file of a library with errors of its own."""

    def read(self) -> bytes:
        raise RuntimeError("the bucket is gone")


@pytest.mark.parametrize(
    ("image", "told"),
    [
        pytest.param(
            half_a_pil_image, "the PIL image cannot be read: image file is truncated", id="a damaged PIL file"
        ),
        pytest.param(a_closed_pil_image, "the PIL image cannot be read", id="a closed PIL file"),
        pytest.param(
            lambda _: Image.fromarray(np.full((9, 9), 4000, np.uint16)), "more than 8 bits", id="16 bits by PIL"
        ),
        pytest.param(lambda _: Image.new("F", (9, 9)), "more than 8 bits", id="floats by PIL"),
        pytest.param(at_its_end, "file.seek(0)", id="a file at its end"),
        pytest.param(open_as_text, "open(path, 'rb')", id="a photo that is open as text"),
        pytest.param(
            lambda _: Broken(), "cannot read the file: the bucket is gone", id="a file with errors of its own"
        ),
    ],
)
async def test_what_cannot_be_read_is_an_error_of_its_own_item(
    image: Any, told: str, call: Call, tmp_path: Path
) -> None:
    given = image(tmp_path)
    async with fake_server() as target:
        bad, good = await call(target, "detect", [given, PIXELS])
    if hasattr(given, "close"):
        given.close()
    assert told in str(bad.error)
    assert isinstance(bad.error, ImageError)
    assert good.error is None


@pytest.mark.parametrize("image", [LONG, f"data:image/png;base64,{LONG}", f"{LONG}.jpg"], ids=lambda text: text[:10])
async def test_not_even_an_errors_traceback_repeats_an_image(image: str, call: Call) -> None:
    async with fake_server() as target:
        (bad,) = await call(target, "detect", [image])
    assert len("".join(traceback.format_exception(bad.error))) < 3000


async def test_arrays_of_names_of_grey_images_and_of_thresholds_are_taken(call: Call, tmp_path: Path) -> None:
    (tmp_path / "square.png").write_bytes(PNG.getvalue())
    async with fake_server() as target:
        names = np.array([str(tmp_path / "square.png")] * 2)
        assert [len(each.faces) for each in await call(target, "detect", names)] == [1, 1]
        grey = np.stack([PIXELS[..., 0]] * 2)
        assert [each.error for each in await call(target, "detect", grey, colour="grey")] == [None, None]
        assert (await call(target, "detect", [PIXELS], thresholds=np.array([0.6, 0.7, 0.7])))[0].error is None


async def test_a_closed_file_is_an_error_of_its_own_item(call: Call, tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.close()
    async with fake_server() as target:
        closed, good = await call(target, "detect", [file, PIXELS])
    assert "cannot read the file" in str(closed.error)
    assert good.error is None


# ---- one where many belong ----


@pytest.mark.parametrize("method", ["detect", "embed", "embed_crops"])
@pytest.mark.parametrize(
    "image",
    [
        "photo.jpg", Path("photo.jpg"), b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), io.BytesIO(b"bytes"),
        io.StringIO("text"), PIXELS, PIXELS[..., 0], Image.fromarray(PIXELS), {"a": PIXELS}, FACE, 42,
    ],
    ids=lambda image: type(image).__name__,
)  # fmt: skip
async def test_one_image_instead_of_many_is_a_mistake_that_shows_the_right_call(
    method: str, image: Any, call: Call
) -> None:
    async with fake_server() as target:
        with pytest.raises(TypeError, match=rf"{method} takes an iterable"):
            await call(target, method, image)


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param((PIXELS, PIXELS), id="a pair of arrays"),
        pytest.param(("a.jpg", "b.jpg"), id="a pair of paths"),
        pytest.param(["a.jpg", "b.jpg"], id="a list of paths"),
        pytest.param([(PIXELS, PIXELS, PIXELS)], id="three"),
        pytest.param(["ab"], id="two letters"),
        pytest.param([PIXELS[:2]], id="an array of two rows"),
        pytest.param(map(str, ["a.jpg"] * 9), id="an iterator of paths"),
        pytest.param(b"ab", id="bytes"),
    ],
)
async def test_what_is_no_list_of_pairs_is_a_mistake_that_shows_the_right_call(pairs: Any, call: Call) -> None:
    async with fake_server() as target:
        with pytest.raises(TypeError, match=r"compare\(\[\(a, b\)\]\)") as raised:
            await call(target, "compare", pairs)
    assert len(str(raised.value)) < 300


async def test_pairs_may_be_lists_and_in_a_tuple(call: Call) -> None:
    async with fake_server() as target:
        results = await call(target, "compare", ([PIXELS, PIXELS], (PIXELS, PIXELS)))
    assert [result.error for result in results] == [None, None]


# ---- sides ----


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        pytest.param((PIXELS, b"damaged"), "side b", id="damaged, found by the server"),
        pytest.param((b"damaged", PIXELS), "side a", id="damaged, the first"),
        pytest.param((PIXELS, "no/such/file.jpg"), "side b", id="not there"),
        pytest.param(([0.1] * 4, PIXELS), "side a: a vector is no side by itself: give Embedding", id="floats"),
        pytest.param((PIXELS, np.zeros(4, np.float32)), "side b: a vector is no side", id="a bare vector"),
        pytest.param(
            (PIXELS, Embedding(np.eye(1, 4, dtype=np.float32)[0], "foreign")), "side b", id="of another model"
        ),
        pytest.param((FACE, PIXELS), "side a: the face carries no embedding", id="a face of detect"),
    ],
)
async def test_an_error_of_a_pair_says_which_side_is_to_blame(pair: Any, told: str, call: Call) -> None:
    async with fake_server() as target:
        bad, good = await call(target, "compare", [pair, (PIXELS, PIXELS)])
    assert told in str(bad.error)
    assert good.error is None


async def test_a_whole_photo_among_ready_crops_is_told_where_it_belongs(call: Call) -> None:
    async with fake_server() as target:
        (result,) = await call(target, "embed_crops", [PIXELS])
    assert "embed" in str(result.error)
    assert "120×160" in str(result.error)


# ---- options ----


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"min_face_px": 20.0}, TypeError, r"min_face_px is a whole number, 12…1000, not 20\.0"),
        ({"min_face_px": "20"}, TypeError, "min_face_px is a whole number"),
        ({"max_faces": -1}, ValueError, "max_faces is -1; it is a whole number, 1 or more"),
        ({"margin_px": 1 << 40}, ValueError, "margin_px is 1099511627776"),
        ({"crop_size_px": True}, TypeError, "crop_size_px is a whole number"),
        ({"thresholds": 0.7}, TypeError, r"thresholds are three numbers.*not 0\.7"),
        ({"thresholds": (0.6, 0.7)}, TypeError, "thresholds are three numbers"),
        ({"thresholds": "abc"}, TypeError, "thresholds are three numbers"),
        ({"scale_factor": "0.7"}, TypeError, "scale_factor is a number"),
        ({"scale_factor": float("nan")}, TypeError, "scale_factor is a number"),
        ({"return_crops": "yes"}, TypeError, "return_crops is True or False"),
        ({"colour": "hsv"}, ValueError, "colour is 'hsv'; there is rgb, bgr"),
        ({"min_face": 20}, TypeError, "unknown option 'min_face'"),
    ],
    ids=str,
)
async def test_an_option_that_makes_no_sense_is_named_with_its_range(
    options: dict[str, Any], error: type[Exception], told: str, call: Call
) -> None:
    async with fake_server() as target:
        with pytest.raises(error, match=told):
            await call(target, "detect", [PIXELS], **options)


@pytest.mark.parametrize("options", [{"threshold": "1"}, {"threshold": float("inf")}, {"operating_point": 3}], ids=str)
async def test_an_option_of_compare_that_makes_no_sense_is_named(options: dict[str, Any], call: Call) -> None:
    async with fake_server() as target:
        with pytest.raises(TypeError, match=next(iter(options))):
            await call(target, "compare", [(PIXELS, PIXELS)], **options)


async def test_numpys_numbers_are_numbers(call: Call) -> None:
    options = {"min_face_px": np.int64(20), "scale_factor": np.float32(0.709), "return_crops": np.bool_(True)}
    async with fake_server() as target:
        (result,) = await call(target, "detect", [PIXELS], **options)
    assert result.faces[0].crop is not None
