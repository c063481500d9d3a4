"""The wire: what a caller in any language sees. A real grpc.aio server, fake networks."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import nets
import numpy as np
import pytest
from facenet_proto.v1 import face_pb2 as pb
from facenet_server import detector
from facenet_server.service import SERVICE
from nets import EMBEDDERS, POISON, HeldNet, crop, embed, fake_server, fake_service, square
from PIL import Image

INVALID_ARGUMENT, NOT_FOUND, INTERNAL = 3, 5, 13


def raw(pixels: np.ndarray) -> pb.Image:
    return pb.Image(raw=pb.RawImage(rgb=pixels.tobytes(), height=pixels.shape[0], width=pixels.shape[1]))


def crops(*pixels: np.ndarray, **options: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(items=[pb.EmbedItem(crop=raw(p)) for p in pixels], options=pb.EmbedOptions(**options))


@asynccontextmanager
async def stream(target: str, method: str, response: Any) -> AsyncIterator[Any]:
    """An open call that takes messages or bytes."""
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=response.FromString,
        )()
        try:
            yield call
        finally:
            call.cancel()


async def ask(call: Any, request: Any) -> Any:
    await call.write(request)
    return await call.read()


async def test_a_detection_has_boxes_landmarks_and_the_images_size() -> None:
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        answer = await ask(call, pb.DetectRequest(id=7, images=[raw(square(50, 40, 32))]))
    assert answer.id == 7
    (result,) = answer.results
    found = result.detection
    assert (found.height, found.width, found.exif_orientation) == (120, 160, 1)
    (face,) = found.faces
    assert face.score > 0.7
    assert len(face.landmarks) == 5
    assert (face.box.x1 + face.box.x2) / 2 == pytest.approx(66, abs=4)
    assert (face.box.y1 + face.box.y2) / 2 == pytest.approx(56, abs=4)
    assert face.box.x2 - face.box.x1 == pytest.approx(48, abs=6)
    assert not face.HasField("crop")
    assert not face.HasField("embedding")


async def test_answers_come_in_request_order_whatever_their_work() -> None:
    slow, fast = [raw(square())] * 20, [pb.Image(encoded=b"no image")]
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        for number in range(10):
            await call.write(pb.DetectRequest(id=number, images=slow if number % 2 == 0 else fast))
        await call.done_writing()
        assert [(await call.read()).id for _ in range(10)] == list(range(10))
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_bad_item_spoils_neither_its_neighbours_nor_its_stream() -> None:
    request = pb.DetectRequest(images=[raw(square()), pb.Image(encoded=b"text"), pb.Image(), raw(square(60, 20))])
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        for _ in range(2):
            results = (await ask(call, request)).results
            assert [r.WhichOneof("outcome") for r in results] == ["detection", "error", "error", "detection"]
            assert [r.error.reason for r in results] == ["", "UNSUPPORTED_FORMAT", "EMPTY", ""]
            assert {r.error.code for r in results[1:3]} == {INVALID_ARGUMENT}


async def test_options_out_of_range_are_an_error_of_their_message_alone() -> None:
    bad = pb.DetectRequest(images=[raw(square())] * 2, options=pb.DetectOptions(min_face_px=5))
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        assert [r.error.reason for r in (await ask(call, bad)).results] == ["OPTION_OUT_OF_RANGE"] * 2
        assert (await ask(call, pb.DetectRequest(images=[raw(square())]))).results[0].HasField("detection")


async def test_an_empty_message_has_an_empty_answer() -> None:
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        answer = await ask(call, pb.DetectRequest(id=3))
    assert (answer.id, len(answer.results)) == (3, 0)


async def test_max_faces_keeps_the_best_scores() -> None:
    two = np.maximum(square(10, 10, 32, 235), square(110, 70, 32, 255))
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        every = (await ask(call, pb.DetectRequest(images=[raw(two)]))).results[0].detection.faces
        options = pb.DetectOptions(max_faces=1)
        best = (await ask(call, pb.DetectRequest(images=[raw(two)], options=options))).results[0].detection.faces
    assert len(every) == 2
    assert list(best) == [every[0]]
    assert every[0].score > every[1].score


async def test_crops_come_when_asked_for_in_the_size_asked_for() -> None:
    options = pb.DetectOptions(return_crops=True, crop_size_px=24, margin_px=0)
    async with fake_server() as target, stream(target, "Detect", pb.DetectResponse) as call:
        answer = await ask(call, pb.DetectRequest(images=[raw(square())], options=options))
    cut = answer.results[0].detection.faces[0].crop
    assert cut.size_px == 24
    assert np.frombuffer(cut.rgb, np.uint8).reshape(24, 24, 3)[12, 12].tolist() == [255, 255, 255]


async def test_crops_over_the_limit_of_a_response_are_an_error_of_their_item() -> None:
    options = pb.DetectOptions(return_crops=True, crop_size_px=512)  # 768 KiB each
    async with fake_server(max_crop_mib=1) as target, stream(target, "Detect", pb.DetectResponse) as call:
        results = (await ask(call, pb.DetectRequest(images=[raw(square())] * 2, options=options))).results
    assert sorted(r.error.reason for r in results) == ["", "RESPONSE_TOO_LARGE"]


async def test_too_much_work_is_refused_before_it_is_done() -> None:
    large = raw(np.zeros((1000, 1100, 3), np.uint8))
    settings = {"max_pyramid_megapixels": 1}
    async with fake_server(**settings) as target, stream(target, "Detect", pb.DetectResponse) as call:
        fine, small = pb.DetectOptions(min_face_px=20), pb.DetectOptions(min_face_px=12)
        assert (await ask(call, pb.DetectRequest(images=[large], options=fine))).results[0].HasField("detection")
        refused = (await ask(call, pb.DetectRequest(images=[large], options=small))).results[0].error
    assert refused.reason == "TOO_MUCH_WORK"


async def test_an_embedding_names_its_model_and_has_unit_length() -> None:
    async with fake_server() as target, stream(target, "Embed", pb.EmbedResponse) as call:
        by_default = (await ask(call, crops(crop(200, 10, 10)))).results[0].embedding
        by_name = (await ask(call, crops(crop(200, 10, 10), model="other"))).results[0].embedding
    assert (by_default.model, by_name.model) == ("colour", "other")
    vector = np.frombuffer(by_default.vector, "<f4")
    assert vector.shape == (by_default.dimension,)
    assert np.linalg.norm(vector) == pytest.approx(1)


async def test_the_faces_of_an_image_are_embedded() -> None:
    image = raw(square())
    async with fake_server() as target, stream(target, "Embed", pb.EmbedResponse) as call:
        answer = await ask(call, pb.EmbedRequest(items=[pb.EmbedItem(image=image), pb.EmbedItem(image=raw(crop(0)))]))
    one, none = (result.detection.faces for result in answer.results)
    assert [face.embedding.dimension for face in one] == [4]
    assert len(none) == 0


async def test_a_crop_of_another_size_is_refused() -> None:
    async with fake_server() as target, stream(target, "Embed", pb.EmbedResponse) as call:
        results = (await ask(call, crops(crop(1), crop(1)[:159]))).results
    assert [r.error.reason for r in results] == ["", "WRONG_SIZE"]


async def test_an_unknown_model_is_not_found() -> None:
    async with fake_server() as target, stream(target, "Embed", pb.EmbedResponse) as call:
        error = (await ask(call, crops(crop(1), model="resnet"))).results[0].error
    assert (error.code, error.reason) == (NOT_FOUND, "UNKNOWN_MODEL")
    assert "colour" in error.message


async def test_a_failing_network_fails_its_items_and_tells_nothing_of_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    poisoned = crop(50)
    poisoned[0, 0] = POISON
    caplog.set_level(logging.CRITICAL, "facenet_server")
    async with (
        fake_server(max_batch_rows=1) as target,
        stream(target, "Embed", pb.EmbedResponse) as call,
    ):
        results = (await ask(call, crops(crop(1), poisoned, crop(2)))).results
    assert [r.WhichOneof("outcome") for r in results] == ["embedding", "error", "embedding"]
    assert results[1].error.code == INTERNAL
    assert "secret" not in results[1].error.message


async def test_two_sides_are_compared_by_distance_and_threshold() -> None:
    red, blue = square(), square()
    red[..., 1:] //= 3
    blue[..., :2] //= 3
    red[..., 0], blue[..., 0] = square()[..., 0], square()[..., 0]  # the fake detector looks at red
    pairs = [pb.Pair(a=pb.Side(image=raw(a)), b=pb.Side(image=raw(b))) for a, b in ((red, red), (red, blue))]
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        same, other = (result.comparison for result in (await ask(call, pb.CompareRequest(pairs=pairs))).results)
        strict = pb.CompareOptions(threshold=1e-3)
        judged = (await ask(call, pb.CompareRequest(pairs=pairs[1:], options=strict))).results[0].comparison
    assert (same.distance, same.same, same.threshold, same.model) == (0, True, 0.5, "colour")
    assert other.distance > 0.1
    assert same.HasField("face_a")
    assert same.HasField("face_b")
    assert (judged.same, judged.threshold) == (False, pytest.approx(1e-3))


async def test_an_operating_point_is_chosen_by_name() -> None:
    pair = pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side(image=raw(square())))
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:

        async def compare(**options: Any) -> Any:
            request = pb.CompareRequest(pairs=[pair], options=pb.CompareOptions(**options))
            return (await ask(call, request)).results[0]

        default, strict = (await compare()).comparison, (await compare(operating_point="far_1e-3")).comparison
        given = (await compare(threshold=0.75)).comparison
        unknown = (await compare(operating_point="far_1e-9")).error
    assert (default.operating_point, default.threshold) == ("best_accuracy", 0.5)
    assert (strict.operating_point, strict.threshold) == ("far_1e-3", 0.25)
    assert (given.operating_point, given.threshold, given.same) == ("given", 0.75, True)
    assert default.probability == pytest.approx(1 / (1 + np.exp(-5)))
    assert (unknown.code, unknown.reason) == (NOT_FOUND, "UNKNOWN_OPERATING_POINT")


async def test_an_uncalibrated_model_gives_distances_without_verdicts() -> None:
    pair = pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side(image=raw(square())))
    settings = {"calibration": None}
    async with fake_server(**settings) as target, stream(target, "Compare", pb.CompareResponse) as call:
        plain = (await ask(call, pb.CompareRequest(pairs=[pair]))).results[0].comparison
        options = pb.CompareOptions(threshold=0.5)
        given = (await ask(call, pb.CompareRequest(pairs=[pair], options=options))).results[0].comparison
        options = pb.CompareOptions(operating_point="best_accuracy")
        refused = (await ask(call, pb.CompareRequest(pairs=[pair], options=options))).results[0].error
    assert plain.operating_point == "uncalibrated"
    assert not any(plain.HasField(name) for name in ("threshold", "same", "probability"))
    assert (given.operating_point, given.same, given.HasField("probability")) == ("given", True, False)
    assert refused.reason == "UNKNOWN_OPERATING_POINT"


async def test_embeddings_are_compared_with_their_own_kind_only() -> None:
    def side(model: str = "colour", dimension: int = 4, scale: float = 1.0) -> pb.Side:
        vector = np.eye(1, dimension, dtype="<f4")[0] * np.float32(scale)
        return pb.Side(embedding=pb.Embedding(vector=vector.tobytes(), dimension=dimension, model=model))

    cut_short = side()
    cut_short.embedding.vector = cut_short.embedding.vector[:-1]
    others = [side(), side("other"), side(dimension=5), side(scale=2), cut_short, pb.Side()]
    request = pb.CompareRequest(pairs=[pb.Pair(a=side(), b=other) for other in others])
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        results = (await ask(call, request)).results
    assert results[0].comparison.distance == 0
    assert not results[0].comparison.HasField("face_a")
    reasons = [r.error.reason for r in results[1:]]
    assert reasons == ["MODEL_MISMATCH", "BAD_EMBEDDING", "BAD_EMBEDDING", "BAD_EMBEDDING", "EMPTY"]


async def test_embeddings_of_interchangeable_models_are_compared() -> None:
    def side(model: str) -> pb.Side:
        return pb.Side(embedding=pb.Embedding(vector=np.eye(1, 4, dtype="<f4").tobytes(), dimension=4, model=model))

    pairs = [pb.Pair(a=side("colour"), b=side(model)) for model in ("colour-int8", "other")]
    twins = {"colour": ("colour-int8",)}
    async with fake_server(interchangeable_with=twins) as target:
        async with stream(target, "Compare", pb.CompareResponse) as call:
            same, other = (await ask(call, pb.CompareRequest(pairs=pairs))).results
    assert same.comparison.distance == 0
    assert other.error.reason == "MODEL_MISMATCH"


async def test_a_side_without_a_face_is_an_error_of_its_pair() -> None:
    pair = pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side(image=raw(crop(0))))
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        error = (await ask(call, pb.CompareRequest(pairs=[pair]))).results[0].error
    assert (error.code, error.reason) == (NOT_FOUND, "NO_FACE")
    assert "side b" in error.message


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
    async with fake_server({"colour": recorded("embed", embed)}, max_batch_rows=1000) as target:
        async with stream(target, "Embed", pb.EmbedResponse) as call:
            answer = await ask(call, pb.EmbedRequest(items=items))
    assert [len(result.detection.faces) > 0 for result in answer.results] == [True] * 4 + [False]
    assert [len(batches[stage]) for stage in ("rnet", "onet", "embed")] == [1, 1, 1]


async def test_images_of_more_windows_than_are_cut_at_once_hold_up_none_of_their_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(detector, "_WINDOWS_AT_ONCE", 1)
    many = square(10, 10, 24)
    many[60:100, 80:120] = 255
    pair = pb.Pair(a=pb.Side(image=raw(many)), b=pb.Side(image=raw(square(side=24))))
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        (result,) = (await ask(call, pb.CompareRequest(pairs=[pair]))).results
    assert result.HasField("comparison")


async def test_a_failing_image_holds_up_none_of_its_company() -> None:
    pairs = [
        pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side(image=raw(square(60, 30)))),
        pb.Pair(a=pb.Side(image=pb.Image(encoded=b"text")), b=pb.Side(image=raw(square()))),
        pb.Pair(a=pb.Side(image=raw(crop(0))), b=pb.Side(image=raw(square()))),
        pb.Pair(a=pb.Side(image=raw(square())), b=pb.Side()),
    ]
    async with fake_server() as target, stream(target, "Compare", pb.CompareResponse) as call:
        results = (await ask(call, pb.CompareRequest(pairs=pairs))).results
    assert [result.error.reason for result in results] == ["", "UNSUPPORTED_FORMAT", "NO_FACE", "EMPTY"]


async def test_a_long_name_is_not_told_back_whole() -> None:
    request = crops(*[crop(1)] * 3, model="\x07" * 100_000)
    async with fake_server() as target, stream(target, "Embed", pb.EmbedResponse) as call:
        answer = await ask(call, request)
    assert answer.ByteSize() < 2000


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
            while not service._pixels.waiting:  # noqa: ASYNC110  # seats tell nobody that somebody waits
                await asyncio.sleep(0.01)
            held.open()
            assert len((await first.read()).results[0].detection.faces) == 1
            assert [result.error.reason for result in (await second.read()).results] == ["", ""]


async def test_the_server_tells_its_models_and_limits() -> None:
    async with fake_server(max_items_per_message=5) as target, grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/GetServerInfo",
            request_serializer=lambda data: data,
            response_deserializer=pb.GetServerInfoResponse.FromString,
        )
        info = await call(b"")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\xff\xff")
    assert [model.name for model in info.models] == list(EMBEDDERS)
    assert info.limits.max_items_per_message == 5
    assert info.detect_defaults.min_face_px == 20
    assert all(field.name in {f.name for f, _ in info.limits.ListFields()} for field in pb.Limits.DESCRIPTOR.fields)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
