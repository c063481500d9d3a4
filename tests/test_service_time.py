"""What is refused since it would wait for too much of its time, and what is not."""

import asyncio
import threading
import time
from contextlib import AsyncExitStack
from typing import Any

import nets
import numpy as np
import pytest
from calls import ask, raw, stream, until
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.admission import wait_estimator
from facenet_server.serving.micro_batch import IMAGES, RAW_CROPS
from nets import HeldNet, crop, embed, fake_server, fake_service, square


def slow_crops(count: int, timeout_ms: int | None = None) -> pb.EmbedRequest:
    item = pb.EmbedItem(crop=raw(crop(9, 9, 9)))
    return pb.EmbedRequest(items=[item] * count, timeout_ms=timeout_ms, options=pb.EmbedOptions(model="slow"))


def slow(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Twenty crops a second."""
    time.sleep(0.05 * len(rows))
    return embed(rows)


def work_s(service: Any, n_crops: int) -> float:
    """How long so many raw crops take, by the throughput that the server has measured."""
    seconds = service.admission.estimators[RAW_CROPS]._throughput.known_seconds_for(n_crops)
    assert seconds is not None
    return float(seconds)


async def test_a_message_that_would_wait_for_most_of_its_time_is_refused_and_another_kind_is_not() -> None:
    begun, goes_on = list[int](), threading.Event()

    def net(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        begun.append(len(rows))
        assert len(begun) < 3 or goes_on.wait(20)
        return slow(rows)

    async with fake_service({"colour": embed, "slow": net}, max_batch_rows=16) as (target, service):
        async with (
            stream(target, "Embed", pb.EmbedResponse) as first,
            stream(target, "Embed", pb.EmbedResponse) as second,
        ):
            await ask(first, slow_crops(4))
            await first.write(slow_crops(48))
            late = asyncio.ensure_future(first.read())
            await until(lambda: len(begun) == 3)  # two batches are left, 1.6 seconds of work
            refused = await ask(second, slow_crops(1, timeout_ms=int(1150 * work_s(service, 2 * 16))))
            photo = pb.EmbedRequest(items=[pb.EmbedItem(image=raw(square()))], timeout_ms=2000)
            found = await ask(second, photo)
            await second.write(slow_crops(1, timeout_ms=20_000))
            assert not late.done()  # nothing waited for it
            goes_on.set()
            patient = await second.read()
            assert len((await late).results) == 48
    assert [result.error.reason for result in refused.results] == ["OVERLOADED"]
    assert 100 < refused.retry_after_ms < 2000
    assert found.results[0].HasField("detection")
    assert patient.results[0].HasField("embedding")


@pytest.mark.timeout(40)
async def test_a_caller_of_little_is_let_in_beside_one_that_fills_every_seat() -> None:
    def net(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        time.sleep(0.0075 * len(rows))  # all seats are a second
        return embed(rows)

    async with fake_service({"colour": embed, "slow": net}) as (target, service):
        async with (
            stream(target, "Embed", pb.EmbedResponse) as bulk,
            stream(target, "Embed", pb.EmbedResponse) as modest,
        ):
            await ask(bulk, slow_crops(64))

            async def flood() -> None:
                while True:
                    await bulk.write(slow_crops(64))

            async def take() -> None:
                while True:
                    await bulk.read()

            flooding = [asyncio.create_task(work) for work in (flood(), take())]
            await asyncio.sleep(1.5)
            answers = []
            for _ in range(2):
                answers.append(await ask(modest, slow_crops(1, timeout_ms=int(2200 * work_s(service, 128)))))
            for work in flooding:
                work.cancel()
    assert "OVERLOADED" not in {answer.results[0].error.reason for answer in answers}


async def test_of_a_message_only_what_is_work_counts_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    found, pnet = threading.Event(), nets.pnet

    def held(levels: np.ndarray) -> Any:
        assert found.wait(10)
        return pnet(levels)

    monkeypatch.setattr(nets, "pnet", held)
    photos = pb.Pair(**dict.fromkeys("ab", pb.Side(image=raw(square()))))
    async with fake_service() as (target, service):
        async with stream(target, "Compare", pb.CompareResponse) as call:
            await call.write(pb.CompareRequest(pairs=[known_pair()] * 63 + [photos]))
            await until(lambda: service.admission.counts.items_in_flight == 64)
            assert service.admission.estimators[IMAGES]._of_caller.total() == 1
            found.set()
            assert len((await call.read()).results) == 64


async def test_what_waits_for_nothing_but_its_own_stream_is_not_refused() -> None:
    begun, goes_on = list[int](), threading.Event()

    def net(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        begun.append(len(rows))
        if len(begun) == 1:
            return slow(rows)
        assert goes_on.wait(20)
        return embed(rows)

    async with fake_service({"colour": embed, "slow": net}, max_batch_rows=16) as (target, service):
        async with stream(target, "Embed", pb.EmbedResponse) as call:
            await ask(call, slow_crops(4))
            await call.write(slow_crops(40))  # two seconds of work, by the first four
            await until(lambda: len(begun) == 2)
            await call.write(slow_crops(1, timeout_ms=int(1200 * work_s(service, 40))))
            try:
                async with asyncio.timeout(10):
                    await until(lambda: service.admission.counts.items_in_flight == 41)
            finally:
                goes_on.set()
            assert len((await call.read()).results) == 40
            assert (await call.read()).results[0].HasField("embedding")


async def test_pairs_without_faces_do_not_shut_out_pairs_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_estimator, "_OVER_S", 0.2)
    empty = pb.Pair(**dict.fromkeys("ab", pb.Side(image=raw(crop(0)))))
    good = pb.Pair(**dict.fromkeys("ab", pb.Side(image=raw(square()))))
    async with fake_server() as target:
        async with (
            stream(target, "Compare", pb.CompareResponse) as bad,
            stream(target, "Compare", pb.CompareResponse) as call,
        ):
            assert (await ask(call, pb.CompareRequest(pairs=[good]))).results[0].HasField("comparison")
            await bad.write(pb.CompareRequest(pairs=[empty] * 8))
            until_s = time.monotonic() + 2  # ten times what the pace remembers
            while time.monotonic() < until_s:  # one is always under way
                answer = await ask(bad, pb.CompareRequest(pairs=[empty] * 8))
                assert {result.error.reason for result in answer.results} == {"NO_FACE"}
            answer = await ask(call, pb.CompareRequest(pairs=[good], timeout_ms=10_000))
            assert answer.results[0].HasField("comparison")


async def test_crops_that_lie_untaken_shut_out_nobody_s_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = nets.pnet

    def pnet(level: np.ndarray) -> tuple[np.ndarray, ...]:
        time.sleep(0.01)
        return fast(level)

    monkeypatch.setattr(nets, "pnet", pnet)
    options = pb.DetectOptions(return_crops=True, crop_size_px=512)
    async with fake_service(max_mib_in_flight=16) as (target, service):
        estimator = service.admission.estimators[IMAGES]
        async with AsyncExitStack() as lying, stream(target, "Detect", pb.DetectResponse) as modest:
            for _ in range(3):
                await ask(modest, photos(8))
            for _ in range(6):
                call = await lying.enter_async_context(stream(target, "Detect", pb.DetectResponse))
                for _ in range(2):  # of each the first answer goes out, the second waits for it to be taken
                    await call.write(photos(16, options=options))
            await until(lambda: service.admission.counts.accepted_items == 3 * 8 + 12 * 16)
            await until(lambda: not estimator._n_seated)
            answer = await ask(modest, photos(16, timeout_ms=3000))
    assert {result.error.reason for result in answer.results} == {""}


def photos(count: int, **fields: Any) -> pb.DetectRequest:
    return pb.DetectRequest(images=[raw(square())] * count, **fields)


def known_pair() -> pb.Pair:
    vector = np.array([0, 0, 0, 1], np.float32).tobytes()
    known = pb.Side(embedding=pb.Embedding(vector=vector, dimension=4, model="colour"))
    return pb.Pair(a=known, b=known)


@pytest.mark.slow
async def test_crops_beside_a_photo_tell_of_the_pace_of_crops() -> None:
    mixed = [pb.EmbedItem(image=raw(square())), *[pb.EmbedItem(crop=raw(crop(9, 9, 9)))] * 15]
    async with fake_service({"slow": slow}, max_batch_rows=16) as (target, service):
        async with stream(target, "Embed", pb.EmbedResponse) as call:
            answer = await ask(call, pb.EmbedRequest(items=mixed))
    assert all(result.HasField("embedding") for result in answer.results[1:])
    assert service.admission.estimators[RAW_CROPS]._throughput.known_seconds_for(15) == pytest.approx(0.8, rel=0.6)
    assert service.admission.estimators[IMAGES]._throughput.known_seconds_for(1) is not None


@pytest.mark.slow
async def test_pairs_of_embeddings_beside_one_of_photos_are_no_work_that_others_wait_for() -> None:
    photos = pb.Pair(**dict.fromkeys("ab", pb.Side(image=raw(square()))))
    async with fake_service() as (target, service):
        estimator = service.admission.estimators[IMAGES]
        async with stream(target, "Compare", pb.CompareResponse) as call:
            for _ in range(5):
                await ask(call, pb.CompareRequest(pairs=[photos]))
            alone_s = estimator._throughput.known_seconds_for(100)
            for _ in range(5):
                answer = await ask(call, pb.CompareRequest(pairs=[known_pair()] * 63 + [photos]))
                assert all(result.HasField("comparison") for result in answer.results)
    assert alone_s is not None
    beside_s = estimator._throughput.known_seconds_for(100)
    assert beside_s is not None
    assert alone_s / 8 < beside_s < 8 * alone_s  # were they counted, it would be an image of 64


async def test_embeddings_are_compared_while_every_seat_is_taken() -> None:
    held = HeldNet()
    async with fake_server({"colour": held}, max_batch_rows=1) as target:
        async with (
            stream(target, "Embed", pb.EmbedResponse) as crops,
            stream(target, "Compare", pb.CompareResponse) as pairs,
        ):
            await crops.write(pb.EmbedRequest(items=[pb.EmbedItem(crop=raw(crop(9, 9, 9)))] * 8))
            await held.entered()
            answer = await ask(pairs, pb.CompareRequest(pairs=[known_pair()], timeout_ms=5000))
            assert answer.results[0].comparison.distance == 0
            held.open()
