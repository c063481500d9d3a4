"""Requests put together from bytes are what protobuf would have written."""

from typing import Any

import numpy as np
import pytest
from facenet_client import Embedding, _wire
from facenet_client._encoding import Encoded, field, joined, raw
from facenet_proto.v1 import face_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from nets import crop

RAW = pb.Image(raw=pb.RawImage(rgb=crop(7).tobytes(), height=160, width=160))
VECTOR = np.eye(1, 4, dtype=np.float32)[0]


def request(exchange: _wire.Exchange[Any, Any], number: int, *values: object) -> bytes:
    items = [exchange.prepare(value) for value in values]
    assert all(isinstance(item, Encoded) for item in items), items
    return exchange.request(number, [item for item in items if isinstance(item, Encoded)], None)


def test_a_detect_request_holds_its_images_and_options() -> None:
    exchange = _wire.detect({"min_face_px": 30, "apply_exif_orientation": False})
    encoded = pb.Image(encoded=b"a file", ignore_exif_orientation=True)
    pixels = pb.Image(raw=RAW.raw, ignore_exif_orientation=True)
    expected = pb.DetectRequest(id=300, images=[encoded, pixels], options=pb.DetectOptions(min_face_px=30))
    assert pb.DetectRequest.FromString(request(exchange, 300, b"a file", crop(7))) == expected


@pytest.mark.parametrize("field_name", ["image", "crop"])
def test_an_embed_request_says_whether_its_items_are_crops(field_name: str) -> None:
    exchange = _wire.embed({"model": "m"}) if field_name == "image" else _wire.embed_crops({"model": "m"})
    item = pb.EmbedItem(**{field_name: RAW})
    found = pb.EmbedRequest.FromString(request(exchange, 0, crop(7), crop(7)))
    assert list(found.items) == [item, item]
    assert found.options.model == "m"


def test_a_compare_request_holds_images_and_embeddings() -> None:
    message = request(_wire.compare({"threshold": 1.0}), 1, (crop(7), Embedding(VECTOR, "m")))
    embedding = pb.Embedding(vector=VECTOR.tobytes(), dimension=4, model="m")
    pair = pb.Pair(a=pb.Side(image=RAW), b=pb.Side(embedding=embedding))
    options = pb.CompareOptions(threshold=1.0, detect=pb.DetectOptions())
    assert pb.CompareRequest.FromString(message) == pb.CompareRequest(id=1, pairs=[pair], options=options)


@given(st.integers(0, 70_000), st.integers(1, 40_000))
def test_an_encoded_message_knows_its_size(length: int, number: int) -> None:
    encoded = field(number, raw(bytes(length)))
    assert encoded.size == len(joined([encoded]))
