"""The SDK against a real server on fake networks: both clients, the same behaviour."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import facenet_client
import grpc
import numpy as np
import pytest
from conftest import ROOT
from facenet_client import (
    AnswerTimeout,
    AsyncClient,
    CallError,
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
from facenet_client._connections import addresses
from nets import POISON, HeldNet, crop, embed, fake_server, square

Call = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """``await call(target, method, *args, **options)``: one method of a fresh client of either kind."""

    def sync(target: Any, settings: Any, method: str, *args: Any, **options: Any) -> Any:
        with Client(target, **settings) as client:
            return getattr(client, method)(*args, **options)

    async def run(
        target: Any, method: str, *args: Any, timeout_s: float = 10, connections: int = 1, **options: Any
    ) -> Any:
        settings: Any = {"timeout_s": timeout_s, "connections": connections}
        if request.param == "sync":
            return await asyncio.to_thread(sync, target, settings, method, *args, **options)
        async with AsyncClient(target, **settings) as client:
            return await getattr(client, method)(*args, **options)

    return run


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
        assert isinstance((await call(target, "detect", [square()], min_face_px=3))[0].error, OptionError)
        assert isinstance((await call(target, "embed_crops", [crop(1)], model="none"))[0].error, OptionError)
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
        await call("127.0.0.1:1", "detect", [square()])


async def test_no_answer_in_time_is_a_timeout(call: Call) -> None:
    opened = threading.Event()

    def stuck(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        assert opened.wait(10)
        return embed(rows)

    async with fake_server({"colour": stuck}) as target:
        with pytest.raises(AnswerTimeout, match=r"0\.2 s"):
            await call(target, "embed_crops", [crop(1)], timeout_s=0.2)
        opened.set()


async def test_what_the_callers_own_iterator_raises_reaches_the_caller(call: Call) -> None:
    def images() -> Iterator[np.ndarray]:
        yield square()
        raise LookupError("the camera is gone")

    async with fake_server() as target:
        with pytest.raises(LookupError, match="the camera"):
            await call(target, "detect", images())


async def test_a_call_that_the_server_does_not_know_is_refused() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(RequestRefused):
            await client.server_info()
    await server.stop(0)


async def test_a_stream_answers_each_item_before_the_next_one_exists() -> None:
    """A source that waits for the answer to its last item must not wait for ever."""
    answered = asyncio.Event()
    answered.set()

    async def source() -> AsyncIterator[np.ndarray]:
        for _ in range(5):
            await answered.wait()
            answered.clear()
            yield square()

    count = 0
    async with fake_server() as target, AsyncClient(target) as client:
        async for _ in client.detect_stream(source()):
            count += 1
            answered.set()
    assert count == 5


async def test_a_synchronous_stream_answers_each_item_before_the_next_one_exists() -> None:
    def run(target: str) -> int:
        answered = threading.Semaphore(1)
        count = 0

        def source() -> Iterator[np.ndarray]:
            for _ in range(5):
                assert answered.acquire(timeout=10)
                yield square()

        with Client(target) as client:
            for _ in client.detect_stream(source()):
                count += 1
                answered.release()
        return count

    async with fake_server() as target:
        assert await asyncio.to_thread(run, target) == 5


async def test_a_stream_that_is_left_ends_its_call_and_the_client_goes_on() -> None:
    def forever() -> Iterator[np.ndarray]:
        while True:
            yield crop(1)

    def run(target: str) -> int:
        with Client(target) as client:
            for number, _ in enumerate(client.embed_crops_stream(forever())):
                if number == 10:
                    break
            return len(client.detect([square()])[0].faces)

    async with fake_server() as target:
        assert await asyncio.to_thread(run, target) == 1


async def test_one_client_serves_several_threads() -> None:
    def run(target: str) -> None:
        with Client(target) as client:
            seen: list[bool] = []

            def work(shade: int) -> None:
                results = client.embed_crops([crop(shade, 0, 0)] * 30)
                expected = embed(crop(shade, 0, 0)[np.newaxis])[0][0]
                seen.append(all(np.allclose(result.vector, expected, atol=1e-6) for result in results))

            threads = [threading.Thread(target=work, args=(shade,)) for shade in (10, 90, 250)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert seen == [True] * 3

    async with fake_server() as target:
        await asyncio.to_thread(run, target)


async def test_a_server_that_stops_leaves_the_answers_before_and_a_typed_error() -> None:
    async def endless() -> AsyncIterator[np.ndarray]:
        while True:
            yield crop(1)

    server = fake_server()
    count = 0

    async def consume(client: AsyncClient) -> None:
        nonlocal count
        async for _ in client.embed_crops_stream(endless()):
            count += 1
            if count == 20:
                await server.__aexit__(None, None, None)

    async with AsyncClient(await server.__aenter__(), timeout_s=1) as client:
        with pytest.raises(ServerUnavailable):
            await consume(client)
    assert count >= 20


async def test_closing_the_client_wakes_whoever_waits_for_its_streams() -> None:
    def run(target: str) -> list[BaseException]:
        never = threading.Event()
        raised: list[BaseException] = []

        def source() -> Iterator[np.ndarray]:
            yield square()
            never.wait()

        def consume() -> None:
            try:
                for _ in client.detect_stream(source()):
                    answered.set()
            except CallError as error:
                raised.append(error)

        answered = threading.Event()
        with Client(target) as client:
            thread = threading.Thread(target=consume)
            thread.start()
            assert answered.wait(10)
        thread.join(10)
        never.set()
        assert not thread.is_alive()
        return raised

    async with fake_server() as target:
        (error,) = await asyncio.to_thread(run, target)
    assert "closed" in str(error)


async def test_sources_that_block_hold_up_no_other_stream() -> None:
    def run(target: str) -> int:
        never = threading.Event()

        def source() -> Iterator[np.ndarray]:
            yield square()
            never.wait()

        with Client(target) as client:
            blocked = [client.detect_stream(source()) for _ in range(12)]
            answered = [len(next(stream).faces) for stream in blocked]
            found = client.detect([square()])
            never.set()
        return sum(answered) + len(found)

    async with fake_server() as target:
        assert await asyncio.to_thread(run, target) == 13


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyError], ids=lambda kind: kind.__name__)
async def test_whatever_an_asynchronous_source_raises_ends_the_stream(error: type[BaseException]) -> None:
    async def source() -> AsyncIterator[np.ndarray]:
        yield square()
        raise error

    count = 0

    async def consume(client: AsyncClient) -> None:
        nonlocal count
        async for _ in client.detect_stream(source()):
            count += 1

    async with fake_server() as target, AsyncClient(target) as client:
        with pytest.raises(error):
            await consume(client)
    assert count == 1


LEAVES = """
import sys, threading
import numpy
from facenet_client import Client

def source():
    yield numpy.zeros((64, 64, 3), numpy.uint8)
    threading.Event().wait()

with Client(sys.argv[1]) as client:
    for _ in client.detect_stream(source()):
        break
"""


async def test_a_process_ends_though_a_source_it_left_still_blocks() -> None:
    async with fake_server() as target:
        command = [sys.executable, "-c", LEAVES, target]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ("protos", "client"))}
        ended = await asyncio.to_thread(subprocess.run, command, env=env, timeout=15, check=False)
    assert ended.returncode == 0


async def test_a_path_that_no_file_system_has_is_its_items_error(call: Call) -> None:
    async with fake_server() as target:
        results = await call(target, "detect", ["a\0b.jpg", square()])
    assert isinstance(results[0].error, ImageError)
    assert len(results[1].faces) == 1


async def test_the_servers_description_is_a_value() -> None:
    async with fake_server() as target, AsyncClient(target) as client:
        info = await client.server_info()
    assert [model.name for model in info.models] == ["colour", "other"]
    assert info.providers == ("FakeExecutionProvider",)
    assert info.limits["max_items_per_message"] == 64


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


async def test_servers_with_different_models_are_not_mixed(call: Call) -> None:
    async with fake_server() as first, fake_server({"other": embed}) as second:
        with pytest.raises(CallError, match="different models"):
            await call([first, second], "embed_crops", [crop(1)])


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


async def test_an_array_that_its_owner_uses_again_is_sent_as_it_was(call: Call) -> None:
    def camera() -> Iterator[np.ndarray]:
        frame = crop(0)
        for shade in range(50):
            frame[:] = shade, 0, 0
            yield frame

    async with fake_server() as target:
        results = await call(target, "embed_crops", camera())
    expected = embed(np.array([crop(shade, 0, 0) for shade in range(50)]))[0]
    np.testing.assert_allclose([np.asarray(result) for result in results], expected, atol=1e-6)


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


def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(RuntimeError, match="with Client"):
        Client("127.0.0.1:1").detect([square()])


def test_the_door_shows_what_it_exports() -> None:
    exported = [name for name in vars(facenet_client) if not name.startswith("_")]
    modules = {"aio", "cli", "client", "errors", "evaluation", "load", "stats", "types"}
    assert sorted(set(exported) - modules) == sorted(facenet_client.__all__)
    assert facenet_client.__all__ == sorted(facenet_client.__all__)
