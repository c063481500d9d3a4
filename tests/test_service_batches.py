"""What streams share and what they keep apart: batches, credits, seats, ends."""

import asyncio
import io
from typing import Any

import grpc
import nets
import numpy as np
import pytest
from calls import ask, crops, raw, stream
from facenet_proto.v1 import face_pb2 as pb
from nets import HeldNet, crop, embed, fake_server, fake_service, square
from PIL import Image


async def test_answers_come_in_request_order_whatever_their_work() -> None:
    slow, fast = [raw(square())] * 20, [pb.Image(encoded=b"no image")]
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        for number in range(10):
            await call.write(pb.DetectRequest(id=number, images=slow if number % 2 == 0 else fast))
        await call.done_writing()
        assert [(await call.read()).id for _ in range(10)] == list(range(10))
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_bytes_that_are_no_message_end_the_stream_after_what_was_accepted() -> None:
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        await call.write(pb.DetectRequest(id=1, images=[raw(square())]))
        await call.write(b"\xff\xff\xff")
        assert (await call.read()).id == 1
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "DetectRequest" in (ended.value.details() or "")


async def test_more_items_than_allowed_end_the_stream() -> None:
    settings = {"max_items_per_message": 2}
    async with fake_server(**settings) as target, stream(target, "Embed", pb.EmbedResponse) as call:
        assert len((await ask(call, crops(crop(1), crop(2)))).results) == 2
        with pytest.raises(grpc.aio.AioRpcError, match="the limit is 2"):
            await ask(call, crops(*[crop(1)] * 3))


async def test_a_message_over_the_limit_is_refused_by_its_size() -> None:
    large = raw(np.zeros((700, 600, 3), np.uint8))
    async with fake_server(max_message_mib=1) as target, stream(target, "Detect", pb.DetectResponse) as call:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await ask(call, pb.DetectRequest(images=[large]))
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_crops_of_different_streams_share_batches() -> None:
    held = HeldNet()
    async with fake_server({"colour": held}, max_batch_rows=64) as target:
        async with stream(target, "Embed", pb.EmbedResponse) as first:
            await first.write(crops(crop(1)))
            await held.entered()
            async with stream(target, "Embed", pb.EmbedResponse) as a, stream(target, "Embed", pb.EmbedResponse) as b:
                waiting = [asyncio.ensure_future(ask(call, crops(crop(1), crop(2)))) for call in (a, b)]
                await _let_the_server_read(target)
                held.open()
                answers = await asyncio.gather(*waiting)
            await first.read()
    assert [len(answer.results) for answer in answers] == [2, 2]
    assert [len(batch) for batch in held.batches] == [1, 4]


async def test_a_stream_is_read_only_as_far_ahead_as_there_is_credit() -> None:
    held = HeldNet()
    async with fake_server({"colour": held}, max_messages_in_flight=3) as target:
        async with stream(target, "Embed", pb.EmbedResponse) as call:
            writer = asyncio.ensure_future(_write_all(call, [crops(crop(1))] * 10))
            await held.entered()
            await _let_the_server_read(target)
            held.open()
            answers = [await call.read() for _ in range(10)]
            await writer
    assert all(len(answer.results) == 1 for answer in answers)
    batches = [len(batch) for batch in held.batches]
    assert batches[:2] == [1, 2]  # all that had been read while the first was held, of ten that were there
    assert sum(batches) == 10


async def _let_the_server_read(target: str) -> None:
    """By the time it has answered these, the server has seen what was sent before them."""
    async with stream(target, "Detect", pb.DetectResponse) as probe:
        for _ in range(20):
            await ask(probe, pb.DetectRequest(images=[raw(square())]))


async def _write_all(call: Any, requests: list[Any]) -> None:
    for request in requests:
        await call.write(request)
    await call.done_writing()


async def test_a_caller_that_leaves_has_its_waiting_rows_dropped() -> None:
    held = HeldNet()
    async with fake_server({"colour": held}, max_batch_rows=4) as target:
        async with stream(target, "Embed", pb.EmbedResponse) as first:
            await first.write(crops(crop(1)))
            await held.entered()
            async with stream(target, "Embed", pb.EmbedResponse) as leaver:
                await leaver.write(crops(*[crop(9)] * 8))
                await _let_the_server_read(target)
            await _let_the_server_read(target)
            held.open()
            await first.read()
            await ask(first, crops(crop(2)))
    assert [shade for batch in held.batches for shade in batch] == [1, 2]


async def test_draining_answers_what_was_accepted_and_then_ends_the_stream() -> None:
    held = HeldNet()
    async with fake_service({"colour": held}) as (target, service):
        async with stream(target, "Embed", pb.EmbedResponse) as call:
            await call.write(crops(crop(1)))
            await held.entered()
            service.drain()
            await _let_the_loop_turn()
            await call.write(crops(crop(2)))  # too late: not accepted
            held.open()
            answer, last = await call.read(), await call.read()
            await call.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
    assert answer.results[0].HasField("embedding")
    assert (last.draining, len(last.results)) == (True, 0)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def _let_the_loop_turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_images_of_a_message_share_batches_at_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: dict[str, list[int]] = {"rnet": [], "onet": [], "embed": []}

    def recorded(name: str, net: Any) -> Any:
        def record(rows: np.ndarray) -> Any:
            batches[name].append(len(rows))
            return net(rows)

        return record

    monkeypatch.setattr(nets, "rnet", recorded("rnet", nets.rnet))
    monkeypatch.setattr(nets, "onet", recorded("onet", nets.onet))
    images = [square(side=side) for side in (24, 28, 32, 36)] + [crop(0)]  # one leaves without a face
    items = [pb.EmbedItem(image=raw(image)) for image in images]
    async with fake_server(
        {"colour": recorded("embed", embed)}, max_batch_rows=1000, share_windows="on", threads=1
    ) as target:
        async with stream(target, "Embed", pb.EmbedResponse) as call:
            answer = await ask(call, pb.EmbedRequest(items=items))
    assert [len(result.detection.faces) > 0 for result in answer.results] == [True] * 4 + [False]
    assert [len(batches[stage]) for stage in ("rnet", "onet", "embed")] == [1, 1, 1]


async def test_one_caller_with_much_work_does_not_shut_out_another() -> None:
    file = io.BytesIO()
    Image.new("RGB", (600, 600)).save(file, "PNG")
    bulk = pb.DetectRequest(images=[pb.Image(encoded=file.getvalue())] * 64)
    async with fake_server() as target:
        async with stream(target, "Detect", pb.DetectResponse) as greedy:
            for _ in range(3):
                await greedy.write(bulk)
            answered = asyncio.ensure_future(greedy.read())
            async with stream(target, "Detect", pb.DetectResponse) as modest:
                await ask(modest, pb.DetectRequest(images=[raw(square())]))
            assert not answered.done()  # 8 of its 64 images at a time, twice: the other one came between
            await answered


async def test_an_image_for_whose_pixels_there_is_no_memory_now_waits() -> None:
    held = HeldNet()
    large = np.zeros((1000, 900, 3), np.uint8)
    large[:120, :160] = square()
    async with fake_service({"colour": held}, max_megapixels_in_flight=1) as (target, service):
        async with (
            stream(target, "Embed", pb.EmbedResponse) as first,
            stream(target, "Detect", pb.DetectResponse) as second,
        ):
            await first.write(pb.EmbedRequest(items=[pb.EmbedItem(image=raw(large))]))
            await held.entered()  # at work, and in memory
            await second.write(pb.DetectRequest(images=[raw(crop(0)), raw(np.zeros((400, 300, 3), np.uint8))]))
            while not service._micro_batches._images._waiting:  # noqa: ASYNC110  # seats tell nobody that somebody waits
                await asyncio.sleep(0.01)
            held.open()
            assert len((await first.read()).results[0].detection.faces) == 1
            assert [result.error.reason for result in (await second.read()).results] == ["", ""]
