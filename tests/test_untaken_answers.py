"""Callers that take no answers: what they had is given up, and nobody else is shut out."""

import asyncio
import gc
import socket
import time
from types import CoroutineType
from typing import Any

import grpc
import pytest
from calls import raw, until
from facenet_client import AsyncClient
from facenet_proto.v1 import face_pb2 as pb
from facenet_proto.v1.face_pb2_grpc import FaceServiceStub
from facenet_server.rpc import stream as streams
from facenet_server.rpc.stream import Method, StreamLimits
from nets import fake_service, square

LARGE_ANSWERS = pb.DetectOptions(return_crops=True, crop_size_px=512)


async def test_a_caller_that_takes_no_answers_loses_its_stream_and_its_room() -> None:
    image = raw(square())
    async with fake_service(max_write_stall_s=0.3) as (target, service):
        options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            call: Any = FaceServiceStub(channel).Detect()  # type: ignore[no-untyped-call]  # generated
            counts = service.admission.counts
            for _ in range(4):
                await call.write(pb.DetectRequest(images=[image] * 8, options=LARGE_ANSWERS))
            await until(lambda: counts.stalled_streams == 1)
            assert counts.streams == 1  # gRPC holds it, and what it has
            assert counts.abandoned_items == 32
            assert counts.items_in_flight == 0
            assert service.admission.crop_bytes.used[0] == 8 * 512 * 512 * 3  # of the answer that still lies there
            gc.collect()
            assert not any(type(kept) is streams._Pending for kept in gc.get_objects())  # nor are the others kept
            assert len((await call.read()).results) == 8
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            assert ended.value.code() is grpc.StatusCode.CANCELLED
            assert service.admission.crop_bytes.used[0] == 0
            assert (counts.streams, counts.stalled_streams) == (0, 0)


async def test_a_stream_that_waited_for_room_when_it_stalled_keeps_nothing_of_its_reader() -> None:
    """Nor of the message that it had read."""
    request = pb.DetectRequest(images=[raw(square())] * 8, options=LARGE_ANSWERS)
    async with fake_service(max_write_stall_s=0.3, max_items_per_stream=12) as (target, service):
        options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            call: Any = FaceServiceStub(channel).Detect()  # type: ignore[no-untyped-call]  # generated
            await call.write(request)
            behind = asyncio.create_task(call.write(request))
            counts, admission = service.admission.counts, service.admission
            await until(lambda: counts.accepted_items == 8 and counts.bytes_in_flight > 600_000)
            await until(lambda: counts.stalled_streams == 1)
            assert (admission.bytes.used, admission.items.used) == ((0,), (0,))
            gc.collect()
            kept = [each for each in gc.get_objects() if isinstance(each, CoroutineType)]
            assert "Stream._answer" in [each.__qualname__ for each in kept]
            assert "Stream._read" not in [each.__qualname__ for each in kept]
            call.cancel()
            await asyncio.wait({behind})


@pytest.mark.parametrize("max_write_stall_s", [30.0, 0.05], ids=["before the stall", "after it"])
async def test_a_caller_that_goes_while_its_answers_lie_is_no_failure(
    caplog: pytest.LogCaptureFixture, max_write_stall_s: float
) -> None:
    request = pb.DetectRequest(images=[raw(square())] * 8, options=LARGE_ANSWERS)
    async with fake_service(max_write_stall_s=max_write_stall_s) as (target, service):
        counts, crops = service.admission.counts, service.admission.crop_bytes
        for _ in range(20):
            options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(target, options=options) as channel:
                call: Any = FaceServiceStub(channel).Detect()  # type: ignore[no-untyped-call]  # generated
                await call.write(request)
                if max_write_stall_s < 1:
                    await until(lambda: counts.stalled_streams == 1)
                else:
                    await until(lambda: crops.used[0] > 0)
                    await asyncio.sleep(0.01)
                call.cancel()
            await until(lambda: counts.streams == 0)
            assert (counts.items_in_flight, counts.bytes_in_flight, crops.used[0]) == (0, 0, 0)
    assert caplog.text == ""


async def test_callers_that_take_no_answers_never_shut_out_others_or_the_health_checks() -> None:
    lies = pb.DetectRequest(images=[raw(square())] * 8, options=LARGE_ANSWERS).SerializeToString()
    limits = {"max_write_stall_s": 0.05, "max_streams": 8, "max_connections": 4, "max_streams_per_connection": 1000}
    async with fake_service(**limits) as (target, service):
        own = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=own) as bad, grpc.aio.insecure_channel(target) as good:
            detect: Any = bad.unary_stream("/facenet.v1.FaceService/Detect")
            counts, calls = service.admission.counts, list[Any]()
            for _ in range(300):  # gRPC itself takes 268 calls, of whatever kind
                so_far = counts.stalled_streams
                calls.append(call := detect(lies))
                await until(lambda call=call, so_far=so_far: call.done() or counts.stalled_streams > so_far)
            refused = [call for call in calls if call.done()]
            assert len(refused) + counts.streams == 300
            assert {await call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert all(["grpc-retry-pushback-ms" in dict(await call.trailing_metadata()) for call in refused])
            assert counts.stalled_streams == counts.streams <= 4  # the share of one caller
            other: Any = FaceServiceStub(good)  # type: ignore[no-untyped-call]  # generated
            assert (await other.GetServerStats(pb.GetServerStatsRequest())).admission.stalled_streams == counts.streams
            async with AsyncClient(target) as client:
                assert (await client.server_stats()).admission.stalled_streams == counts.streams
            seen = other.Detect()
            await seen.write(pb.DetectRequest(images=[raw(square())]))
            assert (await seen.read()).results[0].HasField("detection")
            seen.cancel()


async def test_a_caller_that_lets_crops_lie_is_refused_further_ones_and_nothing_else_until_it_takes_them() -> None:
    with_crops = pb.DetectRequest(images=[raw(square())] * 8, options=LARGE_ANSWERS)
    without = pb.DetectRequest(images=[raw(square())])
    async with fake_service(max_write_stall_s=0.3, max_mib_in_flight=12) as (target, service):
        options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub: Any = FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            lies, other = stub.Detect(), stub.Detect()
            await lies.write(with_crops)
            await until(lambda: service.admission.counts.abandoned_items == 8)
            for request in (with_crops, without):
                await other.write(request)
            refused, answered = await other.read(), await other.read()
            assert {result.error.reason for result in refused.results} == {"OVERLOADED"}
            assert refused.retry_after_ms > 0
            assert len(answered.results[0].detection.faces) == 1
            assert len((await lies.read()).results) == 8
            await until(lambda: not service.admission.crop_bytes.used[0])
            await other.write(with_crops)
            assert all(result.HasField("detection") for result in (await other.read()).results)
            await other.done_writing()


async def test_items_whose_crops_do_not_fit_beside_untaken_ones_are_refused_and_the_others_answered() -> None:
    request = pb.DetectRequest(images=[raw(square())] * 2, options=LARGE_ANSWERS)
    async with fake_service(max_mib_in_flight=5) as (target, service):  # a caller's share is 2.5 MiB
        options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub: Any = FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            untaken, other = stub.Detect(), stub.Detect()
            await untaken.write(request)
            await until(lambda: service.admission.crop_bytes.used == (3 << 19,))  # two crops of 0.75 MiB
            await other.write(request)
            answer = await other.read()
            assert sorted(result.error.reason for result in answer.results) == ["", "OVERLOADED"]
            assert answer.retry_after_ms > 0
            for call in (untaken, other):
                await call.done_writing()
            assert [len(each.results) for each in await _all(untaken)] == [2]
        await until(lambda: not service.admission.counts.streams)
        assert service.admission.crop_bytes.used == (0,)


async def _all(call: Any) -> list[Any]:
    return [answer async for answer in call]


async def test_what_was_taken_while_the_server_itself_stood_still_was_taken_in_time() -> None:
    loop, taken = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    theirs, ours = socket.socketpair()

    def is_taken() -> None:
        loop.remove_reader(ours)
        taken.set_result(None)

    def stand_still() -> None:
        theirs.send(b".")
        time.sleep(0.2)

    class Context:
        async def write(self, _: Any) -> None:
            loop.add_reader(ours, is_taken)
            loop.call_soon(stand_still)
            await taken

    context: Any = Context()
    nobody: Any = None
    with theirs, ours:
        method = Method(pb.DetectRequest, pb.DetectResponse, "images", nobody, {})
        stream = streams.Stream(method, context, StreamLimits(1, 1, 1, max_write_stall_s=0.05), nobody, asyncio.Event())
        assert await stream._write(pb.DetectResponse())
