"""What the SDK makes of servers that say nothing, or the wrong thing, and of long outages."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from calls import until
from conftest import server_process
from facenet_client import AnswerTimeout, AsyncClient, Embedding, _wire
from facenet_client._retry import backoff_s
from facenet_client.errors import CallError, ServerUnavailable
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.config import Config
from facenet_server.rpc import listener
from nets import embed, fake_server
from scripted import HEARD_S, Scripted, answer, answered, assert_answers, images, refusing


async def test_a_silent_address_fails_no_stream_that_another_can_serve(silent: str) -> None:
    sent = images(60)
    async with Scripted(answer).serve() as target, AsyncClient([target, silent], timeout_s=3) as client:
        assert_answers(await client.embed_crops(sent), sent)


def test_an_outage_may_last_however_long() -> None:
    assert [backoff_s(failures) for failures in (0, 1, 2, 10, 10**6)] == [0.05, 0.1, 0.2, 2.0, 2.0]


async def test_a_server_that_freezes_with_a_message_is_noticed_by_probes_and_another_answers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes twenty times as often, so that it does not take the 40 s that it does."""
    sooner = [(name, value // 20 if "keepalive_time" in name else value) for name, value in _wire.CHANNEL_OPTIONS]
    monkeypatch.setattr(_wire, "CHANNEL_OPTIONS", sooner)
    with (
        server_process("--models", str(tiny)) as (freezes, frozen),
        server_process("--models", str(tiny)) as (stays, _),
    ):
        async with AsyncClient([freezes, stays], timeout_s=60) as client:
            results, gone_on = list[Embedding](), asyncio.Event()

            async def inputs() -> AsyncIterator[np.ndarray]:
                for number, each in enumerate(images(200)):
                    if number == 100:
                        await gone_on.wait()
                    yield each

            async def take() -> None:
                async for result in client.embed_crops_stream(inputs()):
                    results.append(result)

            taking = asyncio.create_task(take())
            await until(lambda: len(results) == 100)
            frozen.process.send_signal(signal.SIGSTOP)
            try:
                gone_on.set()
                async with asyncio.timeout(30):
                    await taking
            finally:
                frozen.process.send_signal(signal.SIGCONT)
    assert [result.error for result in results] == [None] * 200


def test_probes_come_no_more_often_than_servers_let_them() -> None:
    mine, theirs = dict(_wire.CHANNEL_OPTIONS), dict(listener.channel_options(Config()))
    assert mine["grpc.keepalive_time_ms"] >= theirs["grpc.http2.min_ping_interval_without_data_ms"]


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

    async def lose_thrice(context: Any) -> None:
        data = await context.read()
        told.append(pb.EmbedRequest.FromString(data).timeout_ms)
        if len(told) > 3:
            await context.write(answered(data).SerializeToString())
        else:
            await asyncio.sleep(0.1)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with Scripted(lose_thrice).serve() as target, AsyncClient(target, timeout_s=5) as client:
        assert_answers(await client.embed_crops(images(1)), images(1))
    assert told[0] == 5000
    assert told == sorted(told, reverse=True)
    assert told[-1] < 4750


async def test_a_server_that_is_not_ready_gets_no_calls_until_it_is() -> None:
    good, bad = Scripted(answer), Scripted(answer, ready=False)
    async with good.serve() as first, bad.serve() as second, AsyncClient([first, second], timeout_s=5) as client:
        for _ in range(6):
            assert_answers(await client.embed_crops(images(1)), images(1))
        assert (good.calls, bad.calls) == (6, 0)
        bad.ready = True
        while not bad.calls:
            assert_answers(await client.embed_crops(images(1)), images(1))


async def test_a_server_that_gave_no_answer_in_time_is_not_used_while_it_is_not_ready() -> None:
    async def hang(context: Any) -> None:
        hung.ready = False
        await asyncio.Event().wait()

    good, hung = Scripted(answer), Scripted(hang, ready=True)
    async with good.serve() as first, hung.serve() as second, AsyncClient([first, second], timeout_s=HEARD_S) as client:
        ends = [await _end(client) for _ in range(8)]
    assert ends.count("AnswerTimeout") == hung.calls == 1
    assert ends.count("answered") == good.calls == 7


async def _end(client: AsyncClient) -> str:
    try:
        return "answered" if len(await client.embed_crops(images(1))) == 1 else "lost"
    except AnswerTimeout:
        return "AnswerTimeout"


async def test_in_an_outage_calls_wait_side_by_side_and_no_longer_than_their_time() -> None:
    async with Scripted(answer).serve() as target:
        client = AsyncClient(target, timeout_s=1)
        await client.__aenter__()
        assert_answers(await client.embed_crops(images(1), timeout_s=2 * HEARD_S), images(1))
    with pytest.raises(CallError):
        await client.embed_crops(images(1))
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*(client.embed_crops(images(1)) for _ in range(20)), return_exceptions=True)
    await client.__aexit__(None, None, None)
    assert {type(end) for end in ends} <= {ServerUnavailable, AnswerTimeout}


async def test_a_client_that_is_closed_while_it_asks_its_servers_says_so(silent: str) -> None:
    client = AsyncClient(silent, timeout_s=10)
    await client.__aenter__()
    asking = asyncio.create_task(client.embed_crops(images(1)))
    await asyncio.sleep(0.1)
    await client.__aexit__(None, None, None)
    with pytest.raises(CallError, match="closed"):
        await asking


async def test_a_refusing_address_holds_up_no_stream_that_another_serves() -> None:
    sent = images(40)
    async with Scripted(answer).serve() as first, Scripted(refusing(3)).serve() as second:
        async with AsyncClient([second, first], timeout_s=15) as client, asyncio.timeout(12):
            assert_answers(await client.embed_crops(sent), sent)


async def test_a_server_that_rests_for_its_refusal_is_preferred_to_one_that_never_answers(silent: str) -> None:
    refusing_once = Scripted(refusing(0.5), answer)
    async with refusing_once.serve() as other, AsyncClient([silent, other], timeout_s=2 * HEARD_S) as client:
        await client.server_info()
        assert await asyncio.gather(*(_outcome(client, 0.05 * number) for number in range(9))) == [None] * 9


async def _outcome(client: AsyncClient, after_s: float) -> CallError | None:
    await asyncio.sleep(after_s)
    try:
        assert_answers(await client.embed_crops(images(1)), images(1))
    except CallError as error:
        return error
    return None


async def test_a_stream_sends_a_slow_server_no_more_than_it_answers_in_time() -> None:
    def net(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        time.sleep(0.02 * len(rows))  # six messages would take 7.7 seconds
        return embed(rows)

    sent = images(500)
    async with fake_server({"slow": net}) as target, AsyncClient(target, timeout_s=6) as client:
        assert_answers(await client.embed_crops(sent), sent)
