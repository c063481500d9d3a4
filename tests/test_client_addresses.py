"""The SDK with several addresses and connections."""

import asyncio
import contextlib
from typing import Any

import grpc
import numpy as np
import pytest
from calls import until
from conftest import Call
from facenet_client import AsyncClient, CallError, Client, RequestRefused
from facenet_client._targets import addresses
from nets import HeldNet, crop, embed, fake_server
from scripted import Scripted, answer, answered, assert_answers, free_address, images


@pytest.mark.parametrize("form", ["{0},{1}", ["{0}", "{1}"], ["{0},{1}"]], ids=str)
async def test_several_addresses_share_the_messages_of_one_stream(call: Call, form: Any) -> None:
    """Neither server answers before both have a message."""
    nets = [HeldNet(), HeldNet()]
    shades = list(range(40))
    async with fake_server({"colour": nets[0]}, max_items_per_message=2) as first:
        async with fake_server({"colour": nets[1]}, max_items_per_message=2) as second:
            target = form.format(first, second) if isinstance(form, str) else [x.format(first, second) for x in form]
            running = asyncio.create_task(call(target, "embed_crops", (crop(shade, 0, 0) for shade in shades)))
            for net in nets:
                await net.entered()
            for net in nets:
                net.open()
            results = await running
    expected = embed(np.array([crop(shade, 0, 0) for shade in shades]))[0]
    np.testing.assert_allclose([np.asarray(result) for result in results], expected, atol=1e-6)
    seen = [{shade for batch in net.batches for shade in batch} for net in nets]
    assert seen[0] | seen[1] == set(shades)
    assert not seen[0] & seen[1]


async def test_one_address_can_have_several_connections(call: Call) -> None:
    async with fake_server(max_items_per_message=1) as target:
        results = await call(target, "embed_crops", [crop(shade) for shade in range(50)], connections=3)
    assert [result.error for result in results] == [None] * 50


async def test_small_calls_take_turns_at_the_addresses(call: Call) -> None:
    nets = [HeldNet(), HeldNet()]
    for net in nets:
        net.open()
    async with fake_server({"colour": nets[0]}) as first, fake_server({"colour": nets[1]}) as second:
        async with AsyncClient([first, second]) as client:
            for shade in range(4):
                await client.embed_crops([crop(shade)])
    assert [len(net.batches) for net in nets] == [2, 2]


async def test_of_several_servers_the_smallest_limits_hold(call: Call) -> None:
    async with fake_server(max_items_per_message=8) as first, fake_server(max_message_mib=1) as second:
        info = await call([first, second], "server_info")
        results = await call([first, second], "embed_crops", [crop(1)] * 100)
    assert info.limits["max_items_per_message"] == 8
    assert info.limits["max_message_bytes"] == 1 << 20
    assert [result.error for result in results] == [None] * 100


async def test_a_limit_that_one_server_does_not_tell_is_the_other_ones(call: Call) -> None:
    older, newer = Scripted(answer), Scripted(answer, limits={"max_image_side_px": 9000})
    async with older.serve() as first, newer.serve() as second:
        info = await call([first, second], "server_info")
    assert info.limits["max_image_side_px"] == 9000


@pytest.mark.parametrize(
    "status", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN]
)
async def test_a_server_that_cannot_say_now_what_it_is_keeps_nobody_from_the_others(status: grpc.StatusCode) -> None:
    sent = images(20)
    busy, there = Scripted(answer, info_fails=status), Scripted(answer)
    async with busy.serve() as first, there.serve() as second, AsyncClient([first, second], timeout_s=5) as client:
        assert_answers(await client.embed_crops(sent), sent)
    assert busy.calls == 0


async def test_servers_with_different_models_are_not_mixed(call: Call) -> None:
    async with fake_server() as first, fake_server({"other": embed}) as second:
        with pytest.raises(CallError, match="different models"):
            await call([first, second], "embed_crops", [crop(1)])


async def slowly(context: Any) -> None:
    while (data := await context.read()) is not grpc.aio.EOF:
        await asyncio.sleep(0.02)
        await context.write(answered(data).SerializeToString())


async def test_a_stream_keeps_its_models_while_a_service_asks_whether_servers_are_ready() -> None:
    """One of two servers is upgraded: it is refused, whoever asks, as long as the other is in use."""
    old, new, address = (
        Scripted(slowly, model="old", ready=True),
        Scripted(answer, model="new", ready=True),
        free_address(),
    )
    async with old.serve() as target, AsyncClient([target, address], timeout_s=10) as client:
        running = asyncio.create_task(client.embed_crops(images(100)))
        await until(lambda: bool(old.read_ids))
        async with new.serve(address):
            await until(lambda: new.infos > 0)
            while not running.done():
                assert await client.is_ready(5)
                await asyncio.sleep(0.1)
        assert_answers(await running, images(100))
    assert not new.calls


async def test_a_server_that_is_upgraded_after_another_is_used_again() -> None:
    first, second = Scripted(answer, model="x", ready=True), Scripted(answer, model="y", ready=True)
    async with first.serve() as one, second.serve() as two, AsyncClient([one, two], timeout_s=5) as client:
        with pytest.raises(CallError, match="different models"):
            await client.embed_crops(images(1))
        first.model = second.model = "y"
        with contextlib.suppress(CallError):
            await client.embed_crops(images(1))
        assert_answers(await client.embed_crops(images(1)), images(1))


async def test_a_refused_server_is_asked_again_after_another_calls_error() -> None:
    async def bad(context: Any) -> None:
        await context.read()
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")

    old, new, address = Scripted(slowly, bad, slowly, model="old"), Scripted(slowly, model="new"), free_address()
    async with old.serve() as target, AsyncClient([target, address], timeout_s=20) as client:
        running = asyncio.create_task(client.embed_crops(images(200)))
        await until(lambda: bool(old.read_ids))
        async with new.serve(address):
            await until(lambda: new.infos > 0)
            with pytest.raises(RequestRefused, match="bad"):
                await client.embed_crops(images(1))
            new.model = "old"
            assert_answers(await running, images(200))
    assert new.read_ids


async def test_the_statistics_of_several_servers_are_their_sum(call: Call) -> None:
    async with fake_server() as first, fake_server() as second:
        await call([first, second], "embed_crops", [crop(1)] * 7)
        stats = await call([first, second], "server_stats")
    assert stats.stage("colour").rows == 7


@pytest.mark.parametrize("target", ["", [], "a:1,", ["a:1", ""]], ids=str)
def test_an_empty_address_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match="names no server"):
        Client(target)


def test_a_list_of_one_grpc_target_stays_one() -> None:
    assert addresses("ipv4:127.0.0.1:1,127.0.0.1:2") == ("ipv4:127.0.0.1:1,127.0.0.1:2",)
    assert addresses("dns:///a:1, b:2") == ("dns:///a:1", "b:2")


async def test_the_servers_work_between_two_answers_is_their_difference(call: Call) -> None:
    async with fake_server(max_batch_rows=8) as target:
        await call(target, "embed_crops", [crop(1)] * 3)
        earlier = await call(target, "server_stats")
        await call(target, "embed_crops", [crop(1)] * 10)
        later = await call(target, "server_stats")
    assert earlier.stage("colour").rows == 3
    work = later.since(earlier).stage("colour")
    assert (work.name, work.rows) == ("colour", 10)
    assert work.runs >= 2
    assert work.mean_rows == work.rows / work.runs
    assert work.mean_compute_s > 0
    assert 0 < later.since(earlier).uptime_s < later.uptime_s
    with pytest.raises(ValueError, match="earlier"):
        earlier.stage("colour").since(later.stage("colour"))
    with pytest.raises(ValueError, match="restarted"):
        earlier.since(later)
