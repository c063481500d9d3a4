"""The SDK's streams: their sources, their ends, the threads that use them."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Call
from facenet_client import (
    AsyncClient,
    CallError,
    Client,
    ServerUnavailable,
)
from nets import crop, embed, fake_server, square
from scripted import HEARD_S, Scripted, answer_all, assert_answers, images


async def test_what_the_callers_own_iterator_raises_reaches_the_caller(call: Call) -> None:
    def images() -> Iterator[np.ndarray]:
        yield square()
        raise LookupError("the camera is gone")

    async with fake_server() as target:
        with pytest.raises(LookupError, match="the camera"):
            await call(target, "detect", images())


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


class SlowToEnd:
    """It answers all, and takes a while to end the call, or for ever; how it ended."""

    def __init__(self, ends_after_s: float) -> None:
        self._ends_after_s = ends_after_s
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self, context: Any) -> None:
        await answer_all(context)
        try:
            await asyncio.sleep(self._ends_after_s)
        except asyncio.CancelledError:
            self.end.set_result("cancelled")
            raise
        self.end.set_result("in order")


async def test_a_call_whose_messages_all_are_answered_is_left_to_end_in_order() -> None:
    script = SlowToEnd(0.1)
    async with Scripted(script).serve() as target, AsyncClient(target) as client:
        assert_answers(await client.embed_crops(images(3)), images(3))
        assert await script.end == "in order"


async def test_a_server_that_does_not_end_a_call_holds_nobody_up_for_long() -> None:
    script = SlowToEnd(60)
    async with Scripted(script).serve() as target, AsyncClient(target) as client:
        async with asyncio.timeout(5):
            assert_answers(await client.embed_crops(images(3)), images(3))
            assert await script.end == "cancelled"


async def test_synchronous_clients_that_come_and_go_do_no_harm_to_a_loop_beside_them() -> None:
    harm, loops = list[Any](), set[int]()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: harm.append(told))

    def live(target: str) -> None:
        with Client(target) as client:
            loops.add(id(client._loop))
            client.server_info()
            next(client.embed_crops_stream([crop(1)] * 50))

    async with fake_server() as target, AsyncClient(target) as beside:
        for _ in range(20):
            await asyncio.gather(asyncio.to_thread(live, target), beside.embed_crops([crop(2)] * 3))
    assert harm == []
    assert len(loops) == 1  # grpc.aio would keep each


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

    async with AsyncClient(await server.__aenter__(), timeout_s=HEARD_S) as client:
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
