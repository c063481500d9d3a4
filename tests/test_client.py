"""The SDK against a real server on fake networks: both clients, the same behaviour."""

import threading
from pathlib import Path
from typing import Any

import facenet_client
import grpc
import numpy as np
import pytest
from conftest import Call
from facenet_client import (
    AnswerTimeout,
    AsyncClient,
    Client,
    Embedding,
    EmbeddingError,
    ImageError,
    NoFaceError,
    OptionError,
    RequestRefused,
    ServerItemError,
    ServerUnavailable,
    raise_for_errors,
)
from nets import POISON, crop, embed, fake_server, square


async def test_paths_bytes_and_arrays_are_images(call: Call, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "square.png"
    Image.fromarray(square()).save(file)
    async with fake_server() as target:
        results = await call(target, "detect", [file, str(file), file.read_bytes(), square()])
    assert [len(result.faces) for result in results] == [1, 1, 1, 1]
    assert len({result.faces[0].box for result in results}) == 1
    assert (results[0].width, results[0].height) == (160, 120)
    assert len(results[0].faces[0].landmarks) == 5


async def test_results_come_in_input_order_over_many_messages(call: Call) -> None:
    shades = [int(shade) for shade in np.random.default_rng(0).integers(0, 256, 150)]
    async with fake_server(max_items_per_message=8) as target:
        results = await call(target, "embed_crops", (crop(shade, 0, 0) for shade in shades))
    assert len(results) == 150
    for shade, result in zip(shades, results, strict=True):
        np.testing.assert_allclose(np.asarray(result), embed(crop(shade, 0, 0)[np.newaxis])[0][0], atol=1e-6)
    assert results[0].model == "colour"


async def test_messages_stay_under_the_servers_limit_of_bytes(call: Call) -> None:
    async with fake_server(max_message_mib=1) as target:  # a raw crop is 75 KiB: 13 fit
        results = await call(target, "embed_crops", [crop(1)] * 40)
    assert [result.error for result in results] == [None] * 40


async def test_no_input_gives_no_results(call: Call) -> None:
    async with fake_server() as target:
        assert await call(target, "detect", []) == []


async def test_each_bad_item_has_its_own_error_and_the_others_their_answer(call: Call) -> None:
    bad = [b"", b"text", "no/such/file.jpg", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), 42]
    large = np.zeros((800, 800, 3), np.uint8)  # 1.8 MiB raw
    async with fake_server(max_message_mib=1) as target:
        results = await call(target, "detect", [square(), *bad, large, square()])
    reasons = [result.error.reason if result.error else None for result in results]
    unusable = "UNUSABLE_INPUT"
    assert reasons == [None, "EMPTY", "UNSUPPORTED_FORMAT", *[unusable] * 4, "IMAGE_TOO_LARGE", None]
    assert all(isinstance(result.error, ImageError) for result in results[1:-1])
    assert len(results[-1].faces) == 1


async def test_errors_are_typed_by_their_reason(call: Call) -> None:
    poisoned = crop(9)
    poisoned[0, 0] = POISON
    foreign = Embedding(np.eye(1, 4, dtype=np.float32)[0], "foreign")
    async with fake_server() as target:
        unknown = {"operating_point": "far_2"}
        assert isinstance((await call(target, "compare", [(square(), square())], **unknown))[0].error, OptionError)
        with pytest.raises(RequestRefused, match="no embedder 'none' is served; there is"):
            await call(target, "embed_crops", [crop(1)], model="none")
        assert isinstance((await call(target, "embed_crops", [poisoned]))[0].error, ServerItemError)
        pairs = [(foreign, square()), (crop(0), square())]
        mismatch, no_face = await call(target, "compare", pairs)
    assert isinstance(mismatch.error, EmbeddingError)
    assert isinstance(no_face.error, NoFaceError)
    assert np.isnan(no_face.distance)
    assert no_face.same is None


async def test_errors_can_be_raised(call: Call) -> None:
    async with fake_server() as target:
        fine = await call(target, "detect", [square()])
        mixed = await call(target, "detect", [square(), b"", b"text"])
    assert raise_for_errors(fine) == fine
    with pytest.raises(ImageError, match="EMPTY") as raised:
        raise_for_errors(mixed)
    assert raised.value.__notes__ == ["item 1; 2 of 3 items failed"]


async def test_a_failed_embedding_cannot_pass_for_a_vector(call: Call) -> None:
    async with fake_server() as target:
        (failed,) = await call(target, "embed_crops", [b"text"])
    with pytest.raises(ImageError):
        np.asarray(failed)


async def test_options_reach_the_server(call: Call) -> None:
    async with fake_server() as target:
        options = {"return_crops": True, "crop_size_px": 32, "margin_px": 8, "thresholds": (0.5, 0.6, 0.65)}
        (cut,) = await call(target, "detect", [square()], **options)
        (none,) = await call(target, "detect", [square()], thresholds=(0.6, 0.7, 0.999))
        (chosen,) = await call(target, "embed", [square()], faces="most_central", model="other")
    assert cut.faces[0].crop.shape == (32, 32, 3)
    assert none.faces == ()
    assert chosen.faces[0].embedding.model == "other"


async def test_faces_and_embeddings_can_be_compared_again(call: Call) -> None:
    async with fake_server() as target:
        (found,) = await call(target, "embed", [square()])
        face = found.faces[0]
        results = await call(target, "compare", [(face, square()), (face.embedding, face)], threshold=0.1)
    assert [result.same for result in results] == [True, True]
    assert results[0].distance == pytest.approx(0, abs=1e-6)
    assert results[0].threshold == pytest.approx(0.1)
    assert results[0].face_a is None
    assert results[0].face_b.box == face.box


@pytest.mark.parametrize(
    ("options", "error"), [({"min_fcae_px": 20}, TypeError), ({"faces": "prettiest"}, ValueError)], ids=str
)
async def test_a_misspelt_option_is_refused_before_anything_is_sent(
    call: Call, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await call("127.0.0.1:1", "embed", [square()], **options)


@pytest.mark.parametrize("one", ["photo.jpg", b"bytes", square()], ids=["path", "bytes", "array"])
async def test_one_image_is_not_taken_for_a_list_of_them(call: Call, one: Any) -> None:
    with pytest.raises(TypeError, match="iterable"):
        await call("127.0.0.1:1", "detect", one)


async def test_a_server_that_is_not_there_is_unavailable(call: Call) -> None:
    with pytest.raises(ServerUnavailable):
        await call("127.0.0.1:1", "detect", [square()], timeout_s=0.5)


async def test_no_answer_in_time_is_a_timeout(call: Call) -> None:
    opened = threading.Event()

    def stuck(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        assert opened.wait(10)
        return embed(rows)

    async with fake_server({"colour": stuck}) as target:
        with pytest.raises(AnswerTimeout, match=r"0\.2 s"):
            await call(target, "embed_crops", [crop(1)], timeout_s=0.2)
        opened.set()


async def test_a_call_that_the_server_does_not_know_is_refused() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(RequestRefused):
            await client.server_info()
    await server.stop(0)


async def test_a_path_that_no_file_system_has_is_its_items_error(call: Call) -> None:
    async with fake_server() as target:
        results = await call(target, "detect", ["a\0b.jpg", square()])
    assert isinstance(results[0].error, ImageError)
    assert len(results[1].faces) == 1


async def test_the_servers_description_is_a_value() -> None:
    async with fake_server() as target, AsyncClient(target) as client:
        info = await client.server_info()
    assert [model.name for model in info.models if model.kind == "embedder"] == ["colour", "other"]
    assert info.providers == ("FakeExecutionProvider",)
    assert info.limits["max_items_per_message"] == 64


def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(RuntimeError, match="with Client"):
        Client("127.0.0.1:1").detect([square()])


def test_the_door_shows_what_it_exports() -> None:
    exported = [name for name in vars(facenet_client) if not name.startswith("_")]
    modules = {"aio", "cli", "client", "errors", "evaluation", "load", "stats", "types"}
    assert sorted(set(exported) - modules) == sorted(facenet_client.__all__)
    assert facenet_client.__all__ == sorted(facenet_client.__all__)
