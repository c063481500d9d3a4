"""What the SDK makes of servers that have no room: who waits how long for whom, and what is tried again."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from facenet_client import AsyncClient, ServerOverloaded
from facenet_proto.v1 import face_pb2 as pb
from scripted import Scripted, answer, answer_all, assert_answers, images


def refusing(retry_after_s: float, after_s: float = 0.0) -> Any:
    async def refuse(context: Any) -> None:
        await asyncio.sleep(after_s)
        pushback = (("grpc-retry-pushback-ms", str(round(1000 * retry_after_s))),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room", pushback)

    return refuse


async def calls_of(server: Scripted, count: int) -> None:
    for _ in range(500):
        if server.calls >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{server.calls} calls came")


async def test_a_call_whose_time_ends_before_there_is_room_is_told_so_at_once() -> None:
    server = Scripted(refusing(3), answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=0.6) as client:
        start = time.monotonic()
        for _ in range(2):
            with pytest.raises(ServerOverloaded, match="no room"):
                await client.embed_crops(images(1))
    assert time.monotonic() - start < 0.5
    assert server.calls == 1


async def test_other_calls_try_a_server_again_before_it_said_that_there_is_room() -> None:
    server = Scripted(refusing(4), answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=20) as client:
        refused = asyncio.create_task(client.embed_crops(images(1)))
        await calls_of(server, 1)
        start = time.monotonic()
        assert_answers(await client.embed_crops(images(1)), images(1))
        assert time.monotonic() - start < 3
        refused.cancel()


async def test_a_later_refusal_replaces_what_an_earlier_one_said() -> None:
    server = Scripted(refusing(30, after_s=0.1), refusing(0.02, after_s=0.3), answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=60) as client:
        first = asyncio.create_task(client.embed_crops(images(1)))
        second = asyncio.create_task(client.embed_crops(images(1)))
        await second
        start = time.monotonic()
        await client.embed_crops(images(1))
        assert time.monotonic() - start < 0.3
        first.cancel()


async def test_without_retries_no_call_waits_for_another_ones_refusal() -> None:
    server = Scripted(refusing(3), answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=5, retry=False) as client:
        with pytest.raises(ServerOverloaded):
            await client.embed_crops(images(1))
        start = time.monotonic()
        assert_answers(await client.embed_crops(images(1)), images(1))
        assert time.monotonic() - start < 0.5


async def test_a_stream_that_is_refused_is_refused_once_however_many_messages_it_had() -> None:
    server = Scripted(*[refusing(0.03, after_s=0.03)] * 5, answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=20) as client:
        sent = images(60)
        assert_answers(await client.embed_crops(sent), sent)


async def test_a_message_that_one_server_refuses_is_sent_to_another_that_is_free() -> None:
    async def refuse_the_first(context: Any) -> None:
        await answer_all(context, refused=range(1), retry_after_ms=4000)

    sent = images(2)
    async with Scripted(refuse_the_first).serve() as busy, Scripted(answer).serve() as free:
        async with AsyncClient([busy, free], timeout_s=20) as client:
            start = time.monotonic()
            assert_answers(await client.embed_crops(sent), sent)
            assert time.monotonic() - start < 3


async def test_a_server_is_told_of_the_time_that_a_message_has_waited() -> None:
    told_ms: list[int] = []

    async def note(context: Any) -> None:
        told_ms.append(pb.EmbedRequest.FromString(await context.read()).timeout_ms)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "noted")

    server = Scripted(refusing(0.5), note)
    async with server.serve() as target, AsyncClient(target, timeout_s=2) as client:
        first = asyncio.create_task(client.embed_crops(images(1)))
        await calls_of(server, 1)
        await asyncio.gather(first, client.embed_crops(images(1)), return_exceptions=True)
    assert len(told_ms) == 2
    assert all(0 < each <= 1600 for each in told_ms)
