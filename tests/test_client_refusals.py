"""What the SDK makes of servers that have no room: who waits how long for whom, and what is tried again."""

import asyncio
import contextlib
import time
from functools import partial
from typing import Any

import grpc
import pytest
from facenet_client import (
    AnswerTimeout,
    AsyncClient,
    RequestRefused,
    ServerItemError,
    ServerOverloaded,
    ServerUnavailable,
)
from facenet_client._call import Channel
from facenet_client._endpoint import Endpoint
from facenet_proto.v1 import face_pb2 as pb
from scripted import Scripted, answer, answer_all, answered, assert_answers, images, refusing


async def known(_: Endpoint) -> None:
    """What it runs is known."""


def unasked() -> Endpoint:
    """A server that nobody has asked yet."""
    return Endpoint([Channel("a:1", grpc.aio.insecure_channel("a:1"))], known, lambda: None)


async def test_a_call_whose_time_ends_before_there_is_room_is_told_so_at_once() -> None:
    server = Scripted(refusing(30), answer)
    async with server.serve() as target, AsyncClient(target) as client:
        for limit_s in (20, 0.05):
            with pytest.raises(ServerOverloaded, match="no room"):
                await client.embed_crops(images(1), timeout_s=limit_s)
    assert server.calls == 1


async def test_other_calls_try_a_server_again_before_it_said_that_there_is_room() -> None:
    server = Scripted(refusing(60), answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=30) as client:
        with pytest.raises(ServerOverloaded):
            await client.embed_crops(images(1))
        assert_answers(await client.embed_crops(images(1)), images(1))


async def test_of_what_a_server_said_of_its_room_the_last_counts() -> None:
    endpoint = unasked()
    for said_s, opens_least_s, opens_most_s in ((30.0, 0.1, 1.0), (0.1, 0.0, 0.1), (0.9, 0.1, 0.9)):
        endpoint.refused(ServerOverloaded("no room", retry_after_s=said_s))
        assert opens_least_s <= endpoint.opens_in_s <= opens_most_s
        assert endpoint.room_in_s == pytest.approx(said_s, abs=0.1)


async def test_a_server_that_is_back_has_room_whatever_it_said_before() -> None:
    async with Scripted(answer).serve() as target, grpc.aio.insecure_channel(target) as connection:
        changed = asyncio.Event()
        endpoint = Endpoint([Channel(target, connection)], known, changed.set)
        endpoint.refused(ServerOverloaded("no room", retry_after_s=30))
        endpoint.lost(ServerUnavailable("away"))
        await changed.wait()
        assert (endpoint.is_ready, endpoint.opens_in_s, endpoint.room_in_s) == (True, 0, 0)


async def test_without_retries_no_call_waits_for_another_ones_refusal() -> None:
    server = Scripted(refusing(30), answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=20, retry=False) as client:
        with pytest.raises(ServerOverloaded):
            await client.embed_crops(images(1))
        began_s = time.monotonic()
        assert_answers(await client.embed_crops(images(1)), images(1))
        assert time.monotonic() - began_s < 0.9


async def test_a_stream_that_is_refused_is_refused_once_however_many_messages_it_had() -> None:
    server = Scripted(*[refusing(0.03, after_s=0.03)] * 5, answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=20) as client:
        sent = images(60)
        assert_answers(await client.embed_crops(sent), sent)


async def test_a_message_for_which_one_server_has_no_room_goes_to_another_at_once() -> None:
    full = Scripted(partial(answer_all, refused=range(1000), retry_after_ms=60_000))
    idle = Scripted(answer)
    async with full.serve() as one, idle.serve() as other, AsyncClient([one, other], timeout_s=5) as client:
        for _ in range(60):  # calls begin at each of them in turn; there are ten tokens
            assert_answers(await client.embed_crops(images(1)), images(1))
        assert_answers([each async for each in client.embed_crops_stream(images(40))], images(40))
    assert 1 <= len(full.read_ids) <= 30  # now and then, whether it has room again


async def test_a_message_that_one_server_refused_goes_back_to_it_where_the_other_is_lost() -> None:
    async def lose(context: Any) -> None:
        await context.read()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "away")

    full = Scripted(partial(answer_all, refused=range(1), retry_after_ms=100))
    lost = Scripted(lose, ready=True)
    async with full.serve() as one, lost.serve() as other, AsyncClient([one, other], timeout_s=10) as client:
        for _ in range(2):  # one of them begins at the one, one at the other
            assert_answers(await client.embed_crops(images(1)), images(1))
    assert full.read_ids


async def test_a_message_for_which_no_server_has_room_comes_back_when_told_to() -> None:
    scripts = [partial(answer_all, refused=range(1), retry_after_ms=300) for _ in range(2)]
    one, other = Scripted(scripts[0]), Scripted(scripts[1])
    async with one.serve() as a, other.serve() as b, AsyncClient([a, b], timeout_s=5) as client:
        began_s = time.monotonic()
        assert_answers(await client.embed_crops(images(1)), images(1))
        assert time.monotonic() - began_s > 0.3
    assert (len(one.read_ids), len(other.read_ids)) in ((1, 2), (2, 1))


@pytest.mark.parametrize("first", [0, 1])
async def test_a_message_for_which_no_server_has_room_comes_back_to_the_one_that_has_some_first(first: int) -> None:
    never = Scripted(partial(answer_all, refused=range(1000), retry_after_ms=60_000))
    soon = Scripted(*[partial(answer_all, refused=range(1), retry_after_ms=50), answer] * 12)
    async with never.serve() as one, soon.serve() as other:
        targets = [one, other] if first == 0 else [other, one]
        async with AsyncClient(targets, timeout_s=3) as client:
            for _ in range(12):
                assert_answers(await client.embed_crops(images(1)), images(1))


async def test_a_stream_goes_on_beside_a_server_that_never_has_room() -> None:
    never = Scripted(partial(answer_all, refused=range(1000), retry_after_ms=60_000))
    now_and_then = Scripted(partial(answer_all, refused=range(0, 1000, 10), retry_after_ms=50))
    async with never.serve() as one, now_and_then.serve() as other, AsyncClient([one, other], timeout_s=5) as client:
        assert_answers([each async for each in client.embed_crops_stream(images(200))], images(200))


@pytest.mark.parametrize(("servers", "pushback_s", "after_s"), [(1, 0.0, 0.0), (2, 0.02, 0.025), (3, 0.02, 0.01)])
async def test_servers_that_refuse_for_a_moment_each_are_not_stormed(
    servers: int, pushback_s: float, after_s: float
) -> None:
    refuse = [Scripted(refusing(pushback_s, after_s)) for _ in range(servers)]
    async with contextlib.AsyncExitStack() as life:
        targets = [await life.enter_async_context(each.serve()) for each in refuse]
        client = await life.enter_async_context(AsyncClient(targets, timeout_s=3))
        with pytest.raises((ServerOverloaded, AnswerTimeout)):  # the budget or the time is spent first
            await client.embed_crops(images(1))
    assert sum(each.calls for each in refuse) < 20


async def test_what_comes_too_late_anyway_costs_no_try() -> None:
    server = Scripted(*[refusing(30)] * 15, refusing(0.01), answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=5) as client:
        for _ in range(15):
            with pytest.raises(ServerOverloaded):
                await client.embed_crops(images(1))
            client._endpoints._all[0]._closed_until = 0.0  # instead of a second each
        assert_answers(await client.embed_crops(images(1)), images(1))


async def test_a_server_is_told_of_the_time_that_a_message_has_waited() -> None:
    told_ms: list[int] = []

    async def note(context: Any) -> None:
        told_ms.append(pb.EmbedRequest.FromString(await context.read()).timeout_ms)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "noted")

    async with Scripted(refusing(30), note).serve() as target, AsyncClient(target, timeout_s=4) as client:
        for error in (ServerOverloaded, RequestRefused):  # the second call waits until the address has rested
            with pytest.raises(error):
                await client.embed_crops(images(1))
    assert [0 < each < 3700 for each in told_ms] == [True]


async def test_what_of_a_message_a_server_did_is_given_though_it_had_no_room_for_the_rest() -> None:
    crowded_ids = list[int]()

    async def in_part(context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            response = answered(data)
            if len(response.results) > 1:
                crowded_ids.append(response.id)
                response.retry_after_ms = 10
                response.results[0].error.CopyFrom(pb.ItemError(code=8, reason="OVERLOADED"))
            await context.write(response.SerializeToString())

    server = Scripted(in_part, limits={"max_items_per_message": 8})
    async with server.serve() as target, AsyncClient(target, timeout_s=5) as client:
        results = await client.embed_crops(images(40))
    assert crowded_ids
    failed = [result.error for result in results if result.error is not None]
    assert [type(error) for error in failed] == [ServerItemError] * len(crowded_ids)
    assert len(server.read_ids) == len(set(server.read_ids))
