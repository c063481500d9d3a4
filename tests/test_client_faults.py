"""What the SDK makes of servers that drain, die, refuse and come back: every answer once, in order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from facenet_client import (
    AnswerTimeout,
    AsyncClient,
    Client,
    Embedding,
    ItemTimeout,
    ServerFault,
    ServerOverloaded,
    ServerUnavailable,
)
from facenet_proto.v1 import face_pb2 as pb
from nets import HeldNet, crop, embed, fake_server, fake_service
from scripted import Scripted, answer, answer_all, answered, assert_answers, images, refusing

refuse = refusing(0.01)


async def taken(
    client: AsyncClient, sent: Sequence[np.ndarray] | AsyncIterator[np.ndarray], results: list[Embedding]
) -> None:
    async for result in client.embed_crops_stream(sent):
        results.append(result)


async def refuse_for_good(context: Any) -> None:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")


async def drain_after_two(context: Any) -> None:
    await answer_all(context, 2)
    await context.write(pb.EmbedResponse(draining=True).SerializeToString())
    await context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")


async def lose_the_device_after_two(context: Any) -> None:
    await answer_all(context, 2)
    response = answered(await context.read())
    response.results[0].error.CopyFrom(pb.ItemError(code=14, reason="DEVICE_LOST"))
    await context.write(response.SerializeToString())
    await never(context)


async def die_after_three(context: Any) -> None:
    await answer_all(context, 3)
    await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


async def end_early(context: Any) -> None:
    """In good order, though answers are due. All five messages are read, so that no write meets the end."""
    messages = [await context.read() for _ in range(5)]
    await context.write(answered(messages[0]).SerializeToString())


async def never(context: Any) -> None:
    await asyncio.Event().wait()


async def refuse_two_messages(context: Any) -> None:
    await answer_all(context, refused=range(2))


async def refuse_many_messages(context: Any) -> None:
    await answer_all(context, refused=range(1, 26))


async def answer_one_and_refuse(context: Any) -> None:
    await answer_all(context, 1)
    await refuse(context)


@pytest.mark.parametrize(
    "scripts",
    [
        pytest.param((refuse, refuse, answer), id="refused at the door"),
        pytest.param((refuse_two_messages,), id="messages refused"),
        pytest.param((drain_after_two, drain_after_two, answer), id="drained"),
        pytest.param((lose_the_device_after_two, answer), id="device lost"),
        pytest.param((die_after_three, answer), id="died"),
    ],
)
async def test_what_was_not_answered_is_sent_again_and_answered_once(scripts: tuple[Any, ...]) -> None:
    sent = images(30)
    async with Scripted(*scripts).serve() as target, AsyncClient(target, timeout_s=10) as client:
        assert_answers(await client.embed_crops(sent), sent)


async def three_of_six(context: Any) -> None:
    """Read what a window holds, so that no write meets the end, and answer half of it."""
    messages = [await context.read() for _ in range(6)]
    for data in messages[:3]:
        await context.write(answered(data).SerializeToString())


async def three_of_six_and_die(context: Any) -> None:
    await three_of_six(context)
    await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


async def three_of_six_and_hang(context: Any) -> None:
    await three_of_six(context)
    await never(context)


async def test_what_was_answered_before_a_call_was_lost_is_not_sent_again() -> None:
    sent, server = images(6), Scripted(three_of_six_and_die, answer)
    async with server.serve() as target, AsyncClient(target, timeout_s=10) as client:
        assert_answers(await client.embed_crops(sent), sent)
    assert (server.seen[0].read_ids, server.seen[0].answered_ids) == ([0, 1, 2, 3, 4, 5], [0, 1, 2])
    assert sorted(server.read_ids) == [0, 1, 2, 3, 3, 4, 4, 5, 5]


async def test_what_was_answered_before_a_connection_was_lost_is_not_sent_to_another_server() -> None:
    sent, results = images(6), list[Embedding]()
    lost, other = Scripted(three_of_six_and_hang), Scripted(answer, ready=False)
    async with other.serve() as stays, contextlib.AsyncExitStack() as life:
        async with AsyncClient([await life.enter_async_context(lost.serve()), stays], timeout_s=10) as client:
            running = asyncio.create_task(taken(client, sent, results))
            while len(results) < 3:  # noqa: ASYNC110 (results come as they come)
                await asyncio.sleep(0.001)
            other.ready = True
            await life.aclose()
            await running
    assert_answers(results, sent)
    assert (lost.seen[0].read_ids, lost.seen[0].answered_ids) == ([0, 1, 2, 3, 4, 5], [0, 1, 2])
    assert sorted(other.read_ids) == [3, 4, 5]


async def test_the_synchronous_client_does_so_too() -> None:
    sent = images(30)

    def run(target: str) -> list[Embedding]:
        with Client(target, timeout_s=10) as client:
            return client.embed_crops(sent)

    async with Scripted(drain_after_two, die_after_three, answer).serve() as target:
        assert_answers(await asyncio.to_thread(run, target), sent)


@pytest.mark.parametrize(
    ("script", "error"),
    # A refusal that meets the first message on its way reads as a lost call: grpc.aio tells the write's failure.
    [
        (refuse, (ServerOverloaded, ServerUnavailable)),
        (die_after_three, ServerUnavailable),
        (drain_after_two, ServerUnavailable),
    ],
)
async def test_without_retries_the_first_failure_is_told(script: Any, error: Any) -> None:
    async with Scripted(script).serve() as target, AsyncClient(target, retry=False) as client:
        with pytest.raises(error):
            await client.embed_crops(images(30))


async def test_a_refusal_without_a_time_to_come_back_is_final() -> None:
    server = Scripted(refuse_for_good)
    async with server.serve() as target, AsyncClient(target) as client:
        with pytest.raises(ServerOverloaded, match="too large"):
            await client.embed_crops(images(1))
    assert server.calls == 1


async def test_a_call_that_ends_in_order_with_answers_due_is_no_success() -> None:
    async with Scripted(end_early, answer).serve() as target, AsyncClient(target) as client:
        with pytest.raises(ServerFault):
            await client.embed_crops(images(5))


async def test_refusals_without_end_are_told_once_the_budget_is_spent() -> None:
    server = Scripted(refuse)
    async with server.serve() as target, AsyncClient(target, timeout_s=30) as client:
        with pytest.raises(ServerOverloaded):
            await client.embed_crops(images(4))
    assert server.calls < 20


@pytest.mark.parametrize(
    "scripts",
    [
        pytest.param((refuse_many_messages,), id="messages"),
        pytest.param((answer_one_and_refuse, *[refuse] * 20, answer), id="at the door"),
    ],
)
async def test_a_stream_that_is_under_way_waits_for_a_busy_server_however_often_it_is_refused(
    scripts: tuple[Any, ...],
) -> None:
    sent = images(40)
    async with Scripted(*scripts).serve() as target, AsyncClient(target, timeout_s=20) as client:
        assert_answers(await client.embed_crops(sent), sent)


async def test_a_stream_that_is_refused_without_end_is_told_so_in_its_messages_time() -> None:
    async with Scripted(answer_one_and_refuse, refuse).serve() as target, AsyncClient(target, timeout_s=0.5) as client:
        with pytest.raises((ServerOverloaded, ServerUnavailable, AnswerTimeout)):
            await client.embed_crops(images(4))


async def test_a_message_without_answer_fails_in_its_own_time() -> None:
    async with Scripted(never).serve() as target, AsyncClient(target, timeout_s=0.3) as client:
        with pytest.raises(AnswerTimeout):
            await client.embed_crops(images(2))


@pytest.mark.slow
async def test_a_message_that_is_sent_again_fails_in_its_own_time_behind_one_that_has_longer() -> None:
    async def die_with_the_first(context: Any) -> None:
        if pb.EmbedRequest.FromString(await context.read()).id == 0:
            await asyncio.sleep(0.8)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        while await context.read() is not grpc.aio.EOF:
            pass

    async def inputs() -> AsyncIterator[np.ndarray]:
        yield crop(1, 2, 3)
        await asyncio.sleep(0.5)
        yield crop(4, 5, 6)

    servers = [Scripted(die_with_the_first, refusing(5)) for _ in range(2)]
    async with servers[0].serve() as first, servers[1].serve() as second:
        async with AsyncClient([first, second], timeout_s=1.5) as client:
            start = asyncio.get_running_loop().time()
            with pytest.raises(AnswerTimeout):
                await taken(client, inputs(), [])
            took_s = asyncio.get_running_loop().time() - start
    assert 1.4 < took_s < 1.9  # not 2, when the message that it waits behind is out of time
    assert sorted(server.read_ids for server in servers) == [[0], [1, 0]]


async def test_a_server_that_drains_hands_its_stream_to_the_others() -> None:
    sent, results = images(200), list[Embedding]()
    held = HeldNet()
    async with fake_service({"colour": held}, max_items_per_message=1) as (first, draining):
        async with fake_server({"colour": embed}, max_items_per_message=1) as second:
            async with AsyncClient([first, second]) as client:
                running = asyncio.create_task(taken(client, sent, results))
                await held.entered()
                draining.drain()  # with at least one message accepted, whose answer is still due
                held.open()
                await running
    assert_answers(results, sent)


async def test_a_server_that_is_stopped_at_once_costs_nothing_visible() -> None:
    sent, results = images(300), list[Embedding]()
    dying = fake_server({"colour": embed}, max_items_per_message=1)
    async with fake_server({"colour": embed}, max_items_per_message=1) as stays:
        async with AsyncClient([await dying.__aenter__(), stays]) as client:
            running = asyncio.create_task(taken(client, sent, results))
            while len(results) < 20:  # noqa: ASYNC110 (results come as they come)
                await asyncio.sleep(0.001)
            await dying.__aexit__(None, None, None)
            await running
    assert_answers(results, sent)


async def test_one_server_of_several_that_is_away_from_the_start_is_done_without() -> None:
    sent = images(50)
    async with fake_server({"colour": embed}, max_items_per_message=1) as there:
        async with AsyncClient(["127.0.0.1:1", there], timeout_s=10) as client:
            assert_answers(await client.embed_crops(sent), sent)


async def test_the_server_learns_how_long_the_caller_waits() -> None:
    held = HeldNet()
    async with fake_server({"colour": held}) as target:
        async with AsyncClient(target, timeout_s=0.4) as client:
            try:
                results = await client.embed_crops(images(1))
                assert isinstance(results[0].error, ItemTimeout)
            except AnswerTimeout:  # the client's own clock was first
                pass
        held.open()


async def test_closing_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    async with Scripted(never).serve() as target:
        client = await AsyncClient(target).__aenter__()
        waiting = asyncio.create_task(client.embed_crops(images(3)))
        await asyncio.sleep(0.1)
        await client.__aexit__(None, None, None)
        with pytest.raises(Exception, match="closed"):
            await waiting
        left = [task for task in asyncio.all_tasks() - before if "facenet_client" in repr(task)]
        assert not left
