"""What the SDK makes of servers that say nothing, or the wrong thing, and of long outages."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from facenet_client import AnswerTimeout, AsyncClient
from facenet_client._connections import Connections
from facenet_client.errors import ServerUnavailable
from facenet_proto.v1 import face_pb2 as pb
from test_client_faults import Scripted, answer, assert_answers, images


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(10)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_silent_address_fails_no_stream_that_another_can_serve(silent: str) -> None:
    sent = images(60)
    async with Scripted(answer).serve() as target, AsyncClient([target, silent], timeout_s=3) as client:
        assert_answers(await client.embed_crops(sent), sent)


async def test_an_outage_may_last_however_long() -> None:
    connections = Connections("127.0.0.1:1", 1, None)
    for times in range(1200):
        connections.lost("127.0.0.1:1", ServerUnavailable("away"))
        rest = connections._rests["127.0.0.1:1"]
        assert rest.times == times + 1
        connections._rests["127.0.0.1:1"] = rest._replace(until=0)


async def test_calls_that_end_as_too_late_are_not_sent_again_without_a_pause() -> None:
    async def too_late(context: Any) -> None:
        await context.read()
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "a proxy's patience")

    server = Scripted(too_late)
    async with server.serve() as target, AsyncClient(target, timeout_s=1) as client:
        with pytest.raises(AnswerTimeout):
            await client.embed_crops(images(1))
    assert server.calls < 20


async def test_a_message_that_is_sent_again_tells_the_time_that_is_left() -> None:
    told: list[int] = []

    async def lose(context: Any) -> None:
        told.append(pb.EmbedRequest.FromString(await context.read()).timeout_ms)
        await asyncio.sleep(0.05)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with Scripted(lose).serve() as target, AsyncClient(target, timeout_s=1) as client:
        with pytest.raises((AnswerTimeout, ServerUnavailable)):
            await client.embed_crops(images(1))
    assert told[0] == 1000
    assert told == sorted(told, reverse=True)
    assert told[-1] < 950
