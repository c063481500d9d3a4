from typing import cast

import pytest
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.rpc import prescan
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

FIELDS = prescan.Fields(id=1, items=2, timeout_ms=4, to_work={})
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


def n_work(to_work: prescan.Paths, request: Message) -> int:
    return prescan.scan(request.SerializeToString(), FIELDS._replace(to_work=to_work), 64).n_work


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
        assert n_work({1: {}, 2: {1: {}}}, pb.EmbedRequest(items=items)) == expected


def test_an_image_on_either_side_of_a_pair_is_seen() -> None:
    photo = pb.Side(image=pb.Image(encoded=b"a"))
    known = pb.Side(embedding=pb.Embedding(vector=b"\x0a" * 2048, model="m"))
    for a, b, expected in ((photo, known, 1), (known, photo, 1), (known, known, 0), (None, photo, 1)):
        assert n_work(SIDES, pb.CompareRequest(pairs=[pb.Pair(a=a, b=b)])) == expected


@pytest.mark.parametrize("before", [b"\x78\x01", b"\x7d0000", b"\x7900000000", b"\x7a\x01a", 9 * b"\x78\x01"])
def test_a_photo_behind_fields_that_nobody_knows_is_a_photo_all_the_same(before: bytes) -> None:
    item = before + pb.EmbedItem(image=pb.Image(encoded=b"a")).SerializeToString()
    scanned = prescan.scan(b"\x12" + bytes([len(item)]) + item, FIELDS._replace(to_work={1: {}, 2: {1: {}}}), 64)
    assert (scanned.n_items, scanned.n_work) == (1, 1)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_items_of_any_bytes_are_looked_at_or_no_message(items: list[bytes]) -> None:
    data = b"".join(b"\x12" + bytes([len(item)]) + item for item in items)
    try:
        assert prescan.scan(data, FIELDS._replace(to_work=SIDES), 64).n_items == len(items)
    except DecodeError:
        with pytest.raises(DecodeError):
            pb.CompareRequest.FromString(data)


def test_an_item_of_a_million_fields_is_not_walked_over() -> None:
    item = b"\x0a\x00" * 1_000_000
    data = b"\x12" + bytes([len(item) & 0x7F | 0x80, len(item) >> 7 & 0x7F | 0x80, len(item) >> 14]) + item
    seen = Seen(data)
    assert prescan.scan(cast(bytes, seen), FIELDS._replace(to_work={3: {}}), 64).n_items == 1
    assert seen.n_reads < 100


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
