"""The SDK and servers that are not up yet, or not ready; a call's own time."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from calls import until
from conftest import Call
from facenet_client import (
    AnswerTimeout,
    AsyncClient,
    CallError,
    Client,
    RequestRefused,
    ServerOverloaded,
    ServerUnavailable,
)
from scripted import HEARD_S, Scripted, answer, assert_answers, free_address, images

LONG_S = 20.0
SHORT_S = 0.3


@asynccontextmanager
async def up_after(server: Scripted, address: str, delay_s: float) -> AsyncIterator[None]:
    """The server, at an address where nothing listens at first."""
    over = asyncio.Event()

    async def serve() -> None:
        await asyncio.sleep(delay_s)
        async with server.serve(address):
            await over.wait()

    task = asyncio.create_task(serve())
    try:
        yield
    finally:
        over.set()
        await task


async def test_a_server_that_is_not_up_yet_is_waited_for(call: Call) -> None:
    address = free_address()
    async with up_after(Scripted(answer), address, 0.5):
        assert_answers(await call(address, "embed_crops", images(3), timeout_s=LONG_S), images(3))


async def test_calls_that_wait_for_a_server_have_each_their_own_time() -> None:
    address = free_address()
    async with AsyncClient(address, timeout_s=LONG_S) as client:
        patient = asyncio.create_task(client.embed_crops(images(1)))
        with pytest.raises(ServerUnavailable, match=f"no server within {HEARD_S:.2g} s: {address}"):
            await client.embed_crops(images(1), timeout_s=HEARD_S)
        assert not patient.done()
        async with Scripted(answer).serve(address):
            assert_answers(await patient, images(1))


async def test_without_retries_a_server_that_is_not_there_is_told_at_once() -> None:
    async with AsyncClient(free_address(), timeout_s=LONG_S, retry=False) as client:
        with pytest.raises(ServerUnavailable) as told:
            await client.embed_crops(images(1))
    assert "no server within" not in str(told.value)


async def silent_call(context: Any) -> None:
    await asyncio.Event().wait()


async def test_a_call_has_a_time_of_its_own_whatever_the_clients() -> None:
    async with Scripted(silent_call, answer).serve() as target, AsyncClient(target, timeout_s=None) as client:
        with pytest.raises(AnswerTimeout):
            await client.embed_crops(images(1), timeout_s=SHORT_S)
    async with Scripted(answer).serve() as target, AsyncClient(target, timeout_s=1e-6) as client:
        assert_answers(await client.embed_crops(images(1), timeout_s=None), images(1))


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), "5", True])
@pytest.mark.parametrize("method", ["detect", "embed_crops", "server_info", "server_stats", "wait_until_ready"])
async def test_a_calls_time_is_checked_before_anything_is_sent(method: str, timeout_s: Any) -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        arguments: list[Any] = [[]] if method in ("detect", "embed_crops") else []
        with pytest.raises(ValueError, match="timeout_s is"):
            await getattr(client, method)(*arguments, timeout_s=timeout_s)


@pytest.mark.parametrize("ready", [None, True])
async def test_readiness_is_waited_for_until_the_server_is_up(ready: bool | None) -> None:
    address = free_address()
    async with AsyncClient(address) as client, up_after(Scripted(answer, ready=ready), address, 0.5):
        await client.wait_until_ready(LONG_S)
        assert_answers(await client.embed_crops(images(1), timeout_s=SHORT_S * 10), images(1))


async def test_readiness_is_waited_for_without_retries_too() -> None:
    address = free_address()
    async with AsyncClient(address, retry=False) as client, up_after(Scripted(answer, ready=True), address, 0.5):
        await client.wait_until_ready(LONG_S)


async def test_asking_whether_a_server_is_ready_takes_no_busy_one_out_of_use() -> None:
    server = Scripted(answer, ready=True)
    async with server.serve() as target, AsyncClient(target, timeout_s=LONG_S) as client:
        await client.wait_until_ready(LONG_S)
        server.info_fails = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await client.is_ready(LONG_S)
        assert server.infos == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ServerOverloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, AnswerTimeout),
        (grpc.StatusCode.UNAVAILABLE, ServerUnavailable),
    ],
)
async def test_servers_that_never_say_what_they_run_are_told_by_why(
    status: grpc.StatusCode, error: type[CallError]
) -> None:
    server = Scripted(answer, info_fails=status)
    async with server.serve() as target, AsyncClient(target, timeout_s=HEARD_S) as client:
        with pytest.raises(error):
            await client.embed_crops(images(1))


async def test_the_first_server_that_is_ready_ends_the_wait() -> None:
    async with Scripted(answer, ready=True).serve() as target, AsyncClient([free_address(), target]) as client:
        await client.wait_until_ready(LONG_S)


async def test_a_server_that_is_up_and_not_ready_is_waited_for() -> None:
    server = Scripted(answer, ready=False)
    async with server.serve() as target, AsyncClient(target) as client:
        with pytest.raises(ServerUnavailable, match=r"no server was ready within 2 s: .* not ready"):
            await client.wait_until_ready(HEARD_S)
        waiting = asyncio.create_task(client.wait_until_ready())
        await asyncio.sleep(SHORT_S)
        assert not waiting.done()
        server.ready = True
        await asyncio.wait_for(waiting, LONG_S)


async def test_one_that_was_ready_is_asked_again() -> None:
    server = Scripted(answer, ready=True)
    async with server.serve() as target, AsyncClient(target) as client:
        await client.wait_until_ready(LONG_S)
        server.ready = False
        with pytest.raises(ServerUnavailable):
            await client.wait_until_ready(SHORT_S)


async def test_closing_a_client_ends_its_wait() -> None:
    client = AsyncClient(free_address())
    await client.open()
    waiting = asyncio.create_task(client.wait_until_ready())
    await asyncio.sleep(SHORT_S)
    await client.aclose()
    with pytest.raises(CallError, match="the client was closed"):
        await waiting


async def test_closing_a_client_ends_its_first_call(silent: str) -> None:
    async with Scripted(answer).serve() as target:
        client = AsyncClient([target, silent], timeout_s=LONG_S)
        await client.open()
        calling = asyncio.create_task(client.embed_crops(images(1)))
        await asyncio.sleep(SHORT_S)
        await client.aclose()
        with pytest.raises(CallError, match="the client was closed"):
            await calling


async def test_a_call_that_begins_while_its_client_is_closed_leaves_nothing_behind() -> None:
    lost = list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: lost.append(str(told)))
    server = Scripted(silent_call, ready=True)
    async with server.serve() as target:
        client = AsyncClient(target)
        await client.open()
        calls = [asyncio.create_task(client.embed_crops(images(2))) for _ in range(3)]
        await until(lambda: server.calls == 3)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(client.embed_crops(images(1))))
        await closing
        ends = await asyncio.gather(*calls, return_exceptions=True)
    gc.collect()
    assert {type(end) for end in ends} <= {CallError, RuntimeError}
    assert not lost


async def test_a_ready_server_ends_the_wait_though_another_refuses_for_good() -> None:
    refuses = Scripted(answer, info_fails=grpc.StatusCode.FAILED_PRECONDITION)
    async with refuses.serve() as one, AsyncClient([one, free := free_address()]) as client:
        async with up_after(Scripted(answer, ready=True), free, SHORT_S):
            await client.wait_until_ready(LONG_S)


async def test_a_service_may_ask_whether_it_is_ready() -> None:
    server = Scripted(answer, ready=False)
    async with server.serve() as target, AsyncClient(target) as client:
        assert not await client.is_ready(HEARD_S)
        server.ready = True
        assert await client.is_ready(LONG_S)


async def test_a_server_that_comes_back_is_met_soon() -> None:
    """gRPC by itself waits up to two minutes between its attempts to connect."""
    address = free_address()
    async with AsyncClient(address, timeout_s=LONG_S) as client, up_after(Scripted(answer), address, 5.0):
        assert_answers(await client.embed_crops(images(1)), images(1))


def test_a_client_that_was_cancelled_may_be_opened_on_the_next_event_loop() -> None:
    async def cancelled(client: AsyncClient) -> None:
        async with client:
            task = asyncio.create_task(client.embed_crops(images(50)))
            await asyncio.sleep(0.05)
            task.cancel()

    async def answered(client: AsyncClient) -> None:
        async with Scripted(answer).serve(client._endpoints.addresses[0]), client:
            assert_answers(await client.embed_crops(images(2)), images(2))

    client = AsyncClient(free_address(), timeout_s=LONG_S)
    for _ in range(3):
        asyncio.run(cancelled(client))
        asyncio.run(answered(client))


def test_a_client_that_was_left_open_may_be_opened_on_the_next_event_loop() -> None:
    async def left(client: AsyncClient) -> None:
        await client.open()
        waiting = asyncio.create_task(client.embed_crops(images(1)))
        await asyncio.sleep(0.05)
        assert not waiting.done()

    async def answered(client: AsyncClient) -> None:
        await client.aclose()
        async with Scripted(answer).serve(client._endpoints.addresses[0]), client:
            assert_answers(await client.embed_crops(images(1)), images(1))

    client = AsyncClient(free_address(), timeout_s=LONG_S)
    asyncio.run(left(client))
    asyncio.run(answered(client))


def test_the_synchronous_client_waits_as_well() -> None:
    with Client(free_address()) as client, pytest.raises(ServerUnavailable, match="no server was ready"):
        client.wait_until_ready(SHORT_S)


async def test_waiting_ends_where_it_does_not_help() -> None:
    server = Scripted(answer, info_fails=grpc.StatusCode.FAILED_PRECONDITION)
    async with server.serve() as target, AsyncClient(target) as client:
        with pytest.raises(RequestRefused):
            await client.wait_until_ready(LONG_S)
