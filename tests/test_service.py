"""The wire: what a caller in any language sees. A real grpc.aio server, fake networks."""

import logging

import grpc
import numpy as np
import pytest
from calls import ask, crops, raw, stream
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.rpc.service import SERVICE
from nets import EMBEDDERS, POISON, crop, fake_server, square

INVALID_ARGUMENT, NOT_FOUND, INTERNAL = 3, 5, 13


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


async def test_a_long_name_is_not_told_back_whole() -> None:
    request = crops(*[crop(1)] * 3, model="\x07" * 100_000)
    async with fake_server() as target, stream(target, "Embed", pb.EmbedResponse) as call:
        answer = await ask(call, request)
    assert answer.ByteSize() < 2000


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
    assert [model.name for model in info.models if model.kind == "embedder"] == list(EMBEDDERS)
    assert info.limits.max_items_per_message == 5
    assert info.detect_defaults.min_face_px == 20
    assert all(field.name in {f.name for f, _ in info.limits.ListFields()} for field in pb.Limits.DESCRIPTOR.fields)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
