"""An image's answer does not depend on its company: its batch, its message, its stream, or other callers."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from calls import raw
from conftest import server_process
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.rpc.service import SERVICE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="session")
def pool(astronaut: np.ndarray, hopper: np.ndarray) -> list[pb.EmbedItem]:
    """Photos of several sizes with none, one and two faces."""
    face, other = Image.fromarray(astronaut[20:240, 120:340]), Image.fromarray(hopper[60:400, 120:420])
    two = Image.new("RGB", (330, 170))
    two.paste(face.resize((150, 150)), (5, 10))
    two.paste(other.resize((150, 165)), (170, 0))
    images = [face, other.resize((150, 170)), two, face.resize((97, 101)), face.crop((0, 100, 220, 220)), two.rotate(8)]
    return [pb.EmbedItem(image=raw(np.asarray(image))) for image in images]


async def ask(target: str, streams: Sequence[Sequence[Sequence[Any]]]) -> list[list[pb.EmbedResult]]:
    """Send every stream's messages at once; each stream's results in order."""
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/Embed",
            request_serializer=pb.EmbedRequest.SerializeToString,
            response_deserializer=pb.EmbedResponse.FromString,
        )

        async def one(messages: Sequence[Sequence[Any]]) -> list[pb.EmbedResult]:
            answers: Any = call(iter([pb.EmbedRequest(items=items) for items in messages]))
            return [result async for answer in answers for result in answer.results]

        return await asyncio.gather(*map(one, streams))


def numbers(result: pb.EmbedResult) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates (N, 14), scores (N,), embeddings (N, D)."""
    faces = result.detection.faces
    points = [[f.box.x1, f.box.y1, f.box.x2, f.box.y2, *(v for p in f.landmarks for v in (p.x, p.y))] for f in faces]
    vectors = [np.frombuffer(face.embedding.vector, "<f4") for face in faces]
    return np.array(points), np.array([face.score for face in faces]), np.array(vectors)


@pytest.fixture(scope="session")
def alone(server: str, pool: list[pb.EmbedItem]) -> list[pb.EmbedResult]:
    """Each image's answer when nothing else is on the server."""
    return [asyncio.run(ask(server, [[[item]]]))[0][0] for item in pool]


@pytest.fixture(scope="session", params=["images by themselves", "images that share batches"])
def either(request: pytest.FixtureRequest, server: str, models: Path) -> Iterator[str]:
    """The address of a server that works the one way or the other."""
    if request.param == "images by themselves":
        yield server
        return
    with server_process("--models", str(models), "--share-levels", "on") as (target, _):
        yield target


def messages_of(indices: st.SearchStrategy[int]) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(indices, min_size=1, max_size=8), min_size=1, max_size=3)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(streams=st.lists(messages_of(st.integers(0, 5)), min_size=1, max_size=4))
def test_an_answer_does_not_depend_on_its_company(
    streams: list[list[list[int]]], either: str, pool: list[pb.EmbedItem], alone: list[pb.EmbedResult]
) -> None:
    asked = [[[pool[index] for index in message] for message in messages] for messages in streams]
    for messages, results in zip(streams, asyncio.run(ask(either, asked)), strict=True):
        indices = [index for message in messages for index in message]
        for index, result in zip(indices, results, strict=True):
            points, scores, vectors = numbers(result)
            expected_points, expected_scores, expected_vectors = numbers(alone[index])
            np.testing.assert_allclose(points, expected_points, atol=0.01)
            np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
            np.testing.assert_allclose(vectors, expected_vectors, atol=1e-5)


def test_the_pool_has_images_with_none_one_and_two_faces(alone: list[pb.EmbedResult]) -> None:
    assert {len(result.detection.faces) for result in alone} == {0, 1, 2}
