from typing import Any, cast

import pytest
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.rpc import prescan
from facenet_server.rpc.stream import Method
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

IMAGES: prescan.Messages = {2: {2: {}}, 3: {2: {}}}  # Image.raw, DetectOptions.thresholds
ITEMS: prescan.Messages = {2: {1: {2: {}}, 2: {2: {}}}, 3: {1: {2: {}}}}
PAIRS: prescan.Messages = {2: {1: {1: {2: {}}, 2: {}}, 2: {1: {2: {}}, 2: {}}}}
FIELDS = prescan.Fields(id=1, items=2, timeout_ms=4, to_images={}, messages=IMAGES)
SIDES: prescan.Paths = {1: {1: {}}, 2: {1: {}}}


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.binary(max_size=200), max_size=20),
    st.none() | st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_the_outline_is_the_message_s(
    number: int, images: list[bytes], timeout_ms: int | None, with_options: bool
) -> None:
    request = pb.DetectRequest(id=number, images=[pb.Image(encoded=data) for data in images], timeout_ms=timeout_ms)
    if with_options:
        request.options.min_face_px = 40
    assert prescan.scan(request.SerializeToString(), FIELDS, 64) == (number, len(images), len(images), timeout_ms)


def n_images(to_images: prescan.Paths, messages: prescan.Messages, request: Message) -> int:
    fields = FIELDS._replace(to_images=to_images, messages=messages)
    return prescan.scan(request.SerializeToString(), fields, 64).n_images


def test_images_and_files_among_crops_are_counted_wherever_they_stand() -> None:
    crop, photo = pb.EmbedItem(crop=pb.Image(raw=pb.RawImage(rgb=b"abc"))), pb.EmbedItem(image=pb.Image(encoded=b"a"))
    file = pb.EmbedItem(crop=pb.Image(encoded=b"a"))
    for items, expected in (
        ([crop, photo], 1),
        ([photo, crop, photo], 2),
        ([pb.EmbedItem(), photo], 1),
        ([crop, file, file], 2),
        ([crop, crop], 0),
        ([pb.EmbedItem()], 0),
        ([], 0),
    ):
        assert n_images({1: {}, 2: {1: {}}}, ITEMS, pb.EmbedRequest(items=items)) == expected


def test_an_image_on_either_side_of_a_pair_is_seen() -> None:
    photo = pb.Side(image=pb.Image(encoded=b"a"))
    known = pb.Side(embedding=pb.Embedding(vector=b"\x0a" * 2048, model="m"))
    for a, b, expected in ((photo, known, 1), (known, photo, 1), (known, known, 0), (None, photo, 1)):
        assert n_images(SIDES, PAIRS, pb.CompareRequest(pairs=[pb.Pair(a=a, b=b)])) == expected


@pytest.mark.parametrize("before", [b"\x78\x01", b"\x7d0000", b"\x7900000000", b"\x7a\x01a", 9 * b"\x78\x01"])
def test_a_photo_behind_fields_that_nobody_knows_is_a_photo_all_the_same(before: bytes) -> None:
    item = before + pb.EmbedItem(image=pb.Image(encoded=b"a")).SerializeToString()
    fields = FIELDS._replace(to_images={1: {}, 2: {1: {}}}, messages=ITEMS)
    scanned = prescan.scan(b"\x12" + bytes([len(item)]) + item, fields, 64)
    assert (scanned.n_items, scanned.n_images) == (1, 1)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_items_of_any_bytes_are_looked_at_or_no_message(items: list[bytes]) -> None:
    data = b"".join(b"\x12" + bytes([len(item)]) + item for item in items)
    try:
        assert prescan.scan(data, FIELDS._replace(to_images=SIDES, messages=PAIRS), 64).n_items == len(items)
    except DecodeError:
        with pytest.raises(DecodeError):
            pb.CompareRequest.FromString(data)


def nested(*fields: int, content: bytes) -> bytes:
    """A message within a message, by the numbers of the fields that hold it."""
    for field in reversed(fields):
        content = bytes([field << 3 | 2]) + varint(len(content)) + content
    return content


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


@pytest.mark.parametrize(
    ("path", "again"),
    [
        pytest.param((2,), b"\x0a\x00", id="an item's image, a million times"),
        pytest.param((2,), b"\x0a\x02\x12\x00\x12\x00", id="an item's oneof, set and set again"),
        pytest.param((2, 1), b"\x12\x00", id="a field within"),
        pytest.param((3, 1), b"\x12\x00", id="options within options"),
    ],
)
def test_fields_that_are_set_again_and_again_are_not_walked_over(path: tuple[int, ...], again: bytes) -> None:
    seen = Seen(nested(*path, content=again * 1_000_000))
    with pytest.raises(DecodeError, match="too many fields"):
        prescan.scan(cast(bytes, seen), FIELDS._replace(to_images={1: {}}, messages=ITEMS), 64)
    assert seen.n_reads < 500


@pytest.mark.parametrize("method", ["Detect", "Embed", "Compare"])
def test_whatever_the_sdk_sends_has_fewer_fields(method: str) -> None:
    raw = pb.Image(raw=pb.RawImage(rgb=b"abc", height=1, width=1), ignore_exif_orientation=True, refuse_damaged=True)
    known = pb.Embedding(vector=b"abcd", dimension=1, model="m")
    every: dict[str, dict[str, Any]] = {
        "Detect": {"images": [raw] * 64},
        "Embed": {"items": [pb.EmbedItem(image=raw), pb.EmbedItem(crop=raw)] * 32},
        "Compare": {"pairs": [pb.Pair(a=pb.Side(image=raw), b=pb.Side(embedding=known))] * 64},
    }
    items = every[method]
    request = getattr(pb, f"{method}Request")(id=1, timeout_ms=9, **items)
    described = Method(type(request), Any, next(iter(items)), cast(Any, None), {}).fields()
    assert prescan.scan(request.SerializeToString(), described, 64).n_items == 64


class Seen:
    """Bytes that count how often they are read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.n_reads = 0

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, at: int) -> int:
        self.n_reads += 1
        return self._data[at]


def test_counting_stops_at_one_more_than_is_allowed() -> None:
    bomb = pb.DetectRequest(images=[pb.Image()]).SerializeToString() * 5_000_000
    assert prescan.scan(bomb, FIELDS, 64).n_items == 65


@given(st.binary(max_size=60))
def test_any_bytes_have_an_outline_or_are_no_message(data: bytes) -> None:
    try:
        found = prescan.scan(data, FIELDS, 64)
    except DecodeError:
        return
    assert 0 <= found.n_items <= 65


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x12\x05ab", id="a field cut off"),
        pytest.param(b"\x08\xff", id="a number cut off"),
        pytest.param(b"\x08" + b"\xff" * 20, id="a number too long"),
        pytest.param(b"\x0b", id="a group"),
        pytest.param(b"\x08\x01" * 200, id="far more fields than a request has"),
    ],
)
def test_what_is_no_message_is_told(data: bytes) -> None:
    with pytest.raises(DecodeError):
        prescan.scan(data, FIELDS, 64)
