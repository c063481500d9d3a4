"""Streams at the door, under limits and to every kind of end: a real server, raw gRPC callers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from calls import ask, until
from facenet_proto.v1 import face_pb2 as pb
from facenet_proto.v1.face_pb2_grpc import FaceServiceStub
from facenet_server.admission.limits import Counts
from facenet_server.errors import Overloaded
from facenet_server.rpc.service import FaceService
from facenet_server.serving.micro_batch import RAW_CROPS
from nets import HeldNet, crop, embed, fake_server, fake_service


def crops(*shades: int, timeout_ms: int | None = None, number: int = 0) -> pb.EmbedRequest:
    """A message of one-shade crops."""
    images = (pb.Image(raw=pb.RawImage(rgb=crop(*[shade] * 3).tobytes(), height=160, width=160)) for shade in shades)
    return pb.EmbedRequest(id=number, items=[pb.EmbedItem(crop=image) for image in images], timeout_ms=timeout_ms)


@asynccontextmanager
async def held_server(**settings: Any) -> AsyncIterator[tuple[HeldNet, FaceService, Any, grpc.aio.Channel]]:
    """A server whose embedder answers when told to, its service, a stub and the stub's channel."""
    net = HeldNet()
    async with fake_service({"held": net}, **settings) as (target, service):
        async with grpc.aio.insecure_channel(target) as channel:
            try:
                yield net, service, FaceServiceStub(channel), channel  # type: ignore[no-untyped-call]  # generated
            finally:
                net.open()


async def occupied(net: HeldNet, stub: Any, request: pb.EmbedRequest) -> Any:
    """A stream whose message is at the net's gate."""
    call = stub.Embed()
    await call.write(request)
    await net.entered()
    return call


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"max_items_in_flight": 1}, id="items in flight"),
        pytest.param({"max_items_per_caller": 1}, id="items of a caller"),
        pytest.param({"max_streams": 1}, id="streams"),
    ],
)
async def test_a_new_stream_without_room_is_refused_with_a_time_to_come_back(limits: dict[str, int]) -> None:
    async with held_server(**limits) as (net, service, stub, _):
        busy = await occupied(net, stub, crops(1))
        refused = stub.Embed()
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        pushback = dict(await refused.trailing_metadata())["grpc-retry-pushback-ms"]
        assert 0 < int(pushback) <= 5000
        net.open()
        assert (await busy.read()).results[0].embedding.dimension == 4
        await busy.done_writing()
        await until(lambda: service.admission.counts.streams == 0)
        assert service.admission.counts == Counts(accepted_items=1, answered_items=1, refused_streams=1)
        again = stub.Embed()  # there is room again
        await again.write(crops(2))
        assert len((await again.read()).results) == 1
        again.cancel()


async def test_a_new_stream_is_not_read_where_its_callers_share_of_the_bytes_is_taken_and_answered_later() -> None:
    async with held_server(max_mib_in_flight=1) as (net, service, stub, __):
        busy = await occupied(net, stub, crops(*range(8)))  # 614 kB, which is more than half, but was alone
        unread = stub.Embed()
        await unread.write(crops(1))
        await until(lambda: service.admission.counts.streams == 2)
        assert service.admission.counts.accepted_items == 8
        net.open()
        assert len((await busy.read()).results) == 8
        assert len((await unread.read()).results) == 1
        busy.cancel()
        unread.cancel()


async def test_a_new_stream_at_a_server_that_drains_is_sent_elsewhere_though_there_is_no_room() -> None:
    async with held_server(max_items_in_flight=1) as (net, service, stub, _):
        busy = await occupied(net, stub, crops(1))
        service.drain()
        late = stub.Embed()
        assert await late.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" not in dict(await late.trailing_metadata())
        net.open()
        assert (await busy.read()).results[0].HasField("embedding")
        busy.cancel()


async def test_of_a_message_in_part_overloaded_the_rest_is_answered_and_a_time_to_come_back_told() -> None:
    def crowded(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        if (rows[:, 0, 0, 0] == 2).any():
            raise Overloaded("no memory")
        return embed(rows)

    async with fake_server({"crowded": crowded}) as target, grpc.aio.insecure_channel(target) as channel:
        call: Any = FaceServiceStub(channel).Embed()  # type: ignore[no-untyped-call]  # generated
        response = await ask(call, crops(1, 2, 3))
        assert [each.WhichOneof("outcome") for each in response.results] == ["embedding", "error", "embedding"]
        assert (response.results[1].error.code, response.results[1].error.reason) == (8, "OVERLOADED")
        assert response.retry_after_ms > 0
        assert (await ask(call, crops(1, 3))).retry_after_ms == 0


async def test_a_running_stream_without_room_is_held_back_not_refused() -> None:
    async with held_server(max_items_per_stream=1) as (net, service, stub, _):
        call = await occupied(net, stub, crops(1))

        async def send() -> None:
            for number in (2, 3, 4):
                await call.write(crops(number, number=number))
            await call.done_writing()

        sending = asyncio.create_task(send())  # which its connection holds back
        await asyncio.sleep(0.05)
        assert service.admission.counts.accepted_items == 1
        net.open()
        answers = [answer async for answer in call]
        await sending
        assert [answer.id for answer in answers] == [0, 2, 3, 4]
        assert service.admission.counts.refused_items == 0


async def test_a_message_that_was_read_and_does_not_fit_is_refused_whole_and_the_stream_goes_on() -> None:
    async with held_server(max_mib_in_flight=1) as (net, service, stub, _):
        call = await occupied(net, stub, crops(1))
        await call.write(crops(*range(13), number=7))
        await until(lambda: service.admission.counts.refused_items == 13)
        net.open()
        answered, refused = await call.read(), await call.read()
        assert answered.retry_after_ms == 0
        assert refused.id == 7
        assert refused.retry_after_ms > 0
        assert [(each.error.code, each.error.reason) for each in refused.results] == [(8, "OVERLOADED")] * 13
        await call.write(crops(5))
        assert (await call.read()).results[0].HasField("embedding")
        await call.done_writing()


async def test_a_message_whose_items_have_no_room_waits_and_is_handed_back_when_the_server_drains() -> None:
    async with held_server(max_items_in_flight=6) as (net, service, stub, _):
        call = await occupied(net, stub, crops(1))
        await call.write(crops(2, 3, 4, number=7))
        await until(lambda: service.admission.counts.bytes_in_flight > 4 * 76_800)
        assert service.admission.counts.accepted_items == 1
        service.drain()
        net.open()
        assert (await call.read()).results[0].HasField("embedding")
        assert (await call.read()).draining
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_message_whose_time_is_up_while_it_waits_for_room_is_told_so_then_and_never_begun() -> None:
    async with held_server(max_items_in_flight=6) as (net, service, stub, _):
        call = await occupied(net, stub, crops(1))
        late = stub.Embed()
        await late.write(crops(2, 3, 4, timeout_ms=50, number=7))
        answer = await late.read()
        assert (answer.id, [each.error.reason for each in answer.results]) == (7, ["TIMED_OUT"] * 3)
        await until(lambda: service.admission.counts.bytes_in_flight < 4 * 76_800)
        assert (service.admission.counts.accepted_items, service.admission.counts.refused_items) == (1, 3)
        net.open()
        await late.write(crops(5))
        assert (await late.read()).results[0].HasField("embedding")
        assert (await call.read()).results[0].HasField("embedding")
        for each in (call, late):
            each.cancel()


async def test_streams_that_come_together_are_all_answered_though_one_has_room_at_a_time() -> None:
    async with held_server(max_items_in_flight=24) as (net, _, stub, _):  # a caller's share is half of it
        net.open()
        streams = [stub.Embed() for _ in range(30)]
        answers = await asyncio.gather(*(ask(each, crops(*range(10))) for each in streams))
        assert all(result.HasField("embedding") for answer in answers for result in answer.results)
        for each in streams:
            each.cancel()


async def test_what_waits_for_room_is_waited_for() -> None:
    async with held_server(max_items_in_flight=6) as (net, service, stub, _):
        call = await occupied(net, stub, crops(1))
        await call.write(crops(2, 3, 4, timeout_ms=300))
        estimator = service.admission.estimators[RAW_CROPS]
        await until(lambda: estimator._of_caller.total() == 4)
        await until(lambda: estimator._of_caller.total() == 1)  # its time is up
        net.open()
        for _ in range(2):
            await call.read()
        await until(lambda: not estimator._of_caller)
        call.cancel()


async def test_items_whose_time_is_up_get_no_row_and_their_neighbours_theirs() -> None:
    async with held_server(max_batch_rows=1) as (net, _, stub, _):
        call = await occupied(net, stub, crops(1))
        late, patient = stub.Embed(), stub.Embed()
        await late.write(crops(50, 51, timeout_ms=30))
        await patient.write(crops(60))
        answer = await late.read()
        assert [(each.error.code, each.error.reason) for each in answer.results] == [(4, "TIMED_OUT")] * 2
        net.open()
        assert (await patient.read()).results[0].HasField("embedding")
        assert (await call.read()).results[0].HasField("embedding")
        assert net.batches == [[1], [60]]
        for each in (call, late, patient):
            each.cancel()


async def cancel(call: Any, channel: grpc.aio.Channel) -> None:
    call.cancel()


async def close_the_channel(call: Any, channel: grpc.aio.Channel) -> None:
    await channel.close()


async def send_garbage(call: Any, channel: grpc.aio.Channel) -> None:
    broken: Any = channel.stream_stream("/facenet.v1.FaceService/Embed")()
    await broken.write(b"\xff\xff\xff")
    assert await broken.code() is grpc.StatusCode.INVALID_ARGUMENT
    call.cancel()


@pytest.mark.parametrize("leave", [cancel, close_the_channel, send_garbage])
async def test_a_caller_who_leaves_frees_its_room_and_its_waiting_rows_are_not_run(leave: Any) -> None:
    async with held_server(max_batch_rows=1) as (net, service, stub, channel):
        counts = service.admission.counts
        call = await occupied(net, stub, crops(1))
        await call.write(crops(2, 3))
        await until(lambda: counts.accepted_items == 3)
        await leave(call, channel)
        await until(lambda: counts.streams == 0)
        assert (counts.items_in_flight, counts.bytes_in_flight, counts.abandoned_items) == (0, 0, 3)
        net.open()
        await asyncio.sleep(0.02)
        assert net.batches == [[1]]


async def test_the_stream_s_own_deadline_frees_its_room() -> None:
    async with held_server() as (net, service, stub, _):
        call = stub.Embed(timeout=2)
        await call.write(crops(1))
        await net.entered()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: service.admission.counts.streams == 0)
        assert service.admission.counts.items_in_flight == 0


async def test_a_caller_that_only_half_closes_gets_its_answers() -> None:
    async with held_server() as (net, service, stub, _):
        call = await occupied(net, stub, crops(1))
        await call.write(crops(2))
        await call.done_writing()
        net.open()
        assert len([answer async for answer in call]) == 2
        assert await call.code() is grpc.StatusCode.OK
        await until(lambda: service.admission.counts.streams == 0)
        assert service.admission.counts.abandoned_items == 0


@pytest.mark.parametrize("method", ["Detect", "Embed", "Compare"])
async def test_a_bomb_of_empty_items_is_refused_unparsed(method: str) -> None:
    async with fake_service() as (target, service):
        async with grpc.aio.insecure_channel(target) as channel:
            call: Any = channel.stream_stream(f"/facenet.v1.FaceService/{method}")()
            await call.write(b"\x12\x00" * 5_000_000)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert service.admission.counts.accepted_items == 0
