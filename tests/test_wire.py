import pytest
from facenet_proto.v1 import face_pb2 as pb
from facenet_server import wire
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

FIELDS = wire.Fields(id=1, items=2, timeout_ms=4)


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
    kind = 1 if images else 0
    assert wire.outline(request.SerializeToString(), FIELDS, 64) == (number, len(images), kind, timeout_ms)


def test_the_kind_is_the_first_item_s() -> None:
    crop, photo = pb.EmbedItem(crop=pb.Image(encoded=b"a")), pb.EmbedItem(image=pb.Image(encoded=b"a"))
    for items, kind in (([crop, photo], 2), ([photo, crop], 1), ([pb.EmbedItem(), photo], 0)):
        assert wire.outline(pb.EmbedRequest(items=items).SerializeToString(), FIELDS, 64).kind == kind


def test_counting_stops_at_one_more_than_is_allowed() -> None:
    bomb = pb.DetectRequest(images=[pb.Image()]).SerializeToString() * 5_000_000
    assert wire.outline(bomb, FIELDS, 64).n_items == 65


@given(st.binary(max_size=60))
def test_any_bytes_have_an_outline_or_are_no_message(data: bytes) -> None:
    try:
        found = wire.outline(data, FIELDS, 64)
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
        wire.outline(data, FIELDS, 64)
