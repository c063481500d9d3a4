import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from calls import until
from facenet_server.config import Config
from facenet_server.inference import work_limits
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.batched_detector import BatchedDetector, Nets
from facenet_server.serving.batcher import Batcher
from facenet_server.serving.compute import Compute, Steps
from facenet_server.serving.image_task import ImageTask
from facenet_server.serving.per_image_detector import PerImageDetector
from facenet_server.serving.pipeline import ImageWorkers
from facenet_server.telemetry.counters import Stats
from facenet_server.vision.options import DetectOptions
from facenet_server.vision.sources import Raw
from nets import onet, pnet, rnet


async def test_a_job_is_counted_under_its_stage() -> None:
    stats = Stats()
    with Compute(2, stats) as compute:
        assert await compute("add", max, 1, 2) == 2
        assert await compute("add", max, 3, 2) == 3
        with pytest.raises(ZeroDivisionError):
            await compute("fail", divmod, 1, 0)
    assert {stage.name: (stage.runs, stage.rows) for stage in stats} == {"add": (2, 2), "fail": (0, 0)}


async def test_each_step_of_a_job_is_counted_and_what_the_job_waited_with_the_first() -> None:
    stats, gate = Stats(), threading.Event()

    def steps(step: Steps) -> int:
        return step("double", lambda number: 2 * number, step("add", sum, [1, 2]))

    with opened(gate, Compute(1, stats)) as compute:
        before = asyncio.create_task(compute("wait", gate.wait))
        job = asyncio.create_task(compute.job("add", steps))
        await asyncio.sleep(0)
        assert (stats.stage("add").under_way, stats.stage("double").under_way) == (1, 0)
        gate.set()
        assert await before
        assert await job == 6
    assert [stats.stage(name).runs for name in ("add", "double")] == [1, 1]
    assert stats.stage("add").queue_ns > stats.stage("double").queue_ns == 0
    assert stats.stage("add").under_way == 0


async def test_steps_that_were_taken_are_counted_though_a_later_one_fails() -> None:
    stats = Stats()

    def steps(step: Steps) -> tuple[int, int]:
        return step("fail", divmod, step("add", sum, [1]), 0)

    with Compute(1, stats) as compute:
        with pytest.raises(ZeroDivisionError):
            await compute.job("add", steps)
    assert {stage.name: (stage.runs, stage.under_way) for stage in stats} == {"add": (1, 0)}


async def test_a_job_whose_caller_leaves_is_not_begun_or_takes_no_further_step() -> None:
    taken: list[str] = []
    entered, gate = threading.Event(), threading.Event()

    def take(name: str) -> None:
        taken.append(name)
        entered.set()
        gate.wait()

    with opened(gate, Compute(1, Stats())) as compute:
        running = asyncio.create_task(compute.job("a", lambda step: [step("a", take, name) for name in ("a1", "a2")]))
        waiting = asyncio.create_task(compute("b", take, "b1"))
        await asyncio.to_thread(entered.wait)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
    assert taken == ["a1"]


async def test_the_items_of_a_step_are_taken_by_the_threads_that_are_free_and_come_in_their_order() -> None:
    met, seen = threading.Barrier(2), set[str]()

    def square(number: int) -> int:
        met.wait(10)  # two at a time, or none
        seen.add(threading.current_thread().name)
        return number * number

    with Compute(2, Stats()) as compute:
        squares = await compute.job("square", lambda step: step.spread(square, range(8)))
    assert squares == [number * number for number in range(8)]
    assert len(seen) == 2


@pytest.mark.parametrize("bad", ["the job's", "another"])
async def test_an_item_that_fails_ends_its_step_whichever_thread_took_it(bad: str) -> None:
    met, failed, taken, own = threading.Barrier(2), threading.Event(), list[int](), threading.local()

    def fail(number: int) -> None:
        taken.append(number)
        met.wait(10)  # one in each thread
        if hasattr(own, "is_the_jobs") == (bad == "the job's"):
            failed.set()
            raise ZeroDivisionError
        failed.wait(10)
        time.sleep(0.05)  # until what failed has said so

    def job(step: Steps) -> list[None]:
        own.is_the_jobs = True
        return step.spread(fail, range(8))

    with Compute(2, Stats()) as compute:
        with pytest.raises(ZeroDivisionError):
            await compute.job("fail", job)
    assert sorted(taken) == [0, 1]


async def test_what_fails_in_a_spread_step_is_held_by_nothing() -> None:
    class Image:
        pass

    async def fail(image: Image) -> None:
        met = threading.Barrier(2)

        def divide(number: int) -> None:
            assert image
            met.wait(10)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await compute.job("fail", lambda step: step.spread(divide, range(2)))

    gc.collect()
    gc.disable()
    try:
        with Compute(2, Stats()) as compute:
            image = Image()
            seen = weakref.ref(image)
            await fail(image)
            del image
            await compute("after", sum, [1])  # the thread that had it has another
            assert seen() is None
    finally:
        gc.enable()


async def test_a_thread_that_helps_leaves_for_a_job_that_waits() -> None:
    begun, gate, order = threading.Event(), threading.Event(), list[str]()

    def item(number: int) -> None:
        begun.set()
        gate.wait(10)
        time.sleep(0.005)
        order.append("item")

    with opened(gate, Compute(2, Stats())) as compute:
        long = asyncio.create_task(compute.job("long", lambda step: step.spread(item, range(20))))
        await asyncio.to_thread(begun.wait)
        other = asyncio.create_task(compute("other", order.append, "other"))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(long, other)
    assert order.index("other") < 15


async def test_what_has_begun_goes_on_before_anything_else_begins() -> None:
    gate, order = threading.Event(), list[str]()
    with opened(gate, Compute(1, Stats())) as compute:
        jobs: list[asyncio.Task[Any]] = [asyncio.create_task(compute("wait", gate.wait))]
        await asyncio.sleep(0)
        beginning = compute.job("new", lambda step: step("new", order.append, "new"), begins=True)
        jobs += [asyncio.create_task(beginning), asyncio.create_task(compute("old", order.append, "old"))]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*jobs)
    assert order == ["old", "new"]


async def test_no_image_begins_while_enough_crops_of_those_that_have_begun_are_with_an_embedder() -> None:
    begun = list[str]()
    with Compute(2, Stats(), most_crops_ahead=2) as compute:
        with compute.crops_ahead(1):
            await compute.job("first", lambda step: step("first", begun.append, "first"), begins=True)
            with compute.crops_ahead(1):
                waiting = asyncio.create_task(
                    compute.job("second", lambda step: step("second", begun.append, "second"), begins=True)
                )
                await compute("other", sum, [1])  # goes on with something else
                assert begun == ["first"]
            await waiting
    assert begun == ["first", "second"]


async def test_an_end_that_something_follows_is_told_at_once_however_many_jobs_wait() -> None:
    gate, told = threading.Event(), list[int]()

    async def follow(number: int) -> None:
        await compute("enter", gate.wait if number else int)
        told.append(number)

    with opened(gate, Compute(1, Stats(), max_held_s=60.0)) as compute:
        jobs = [asyncio.create_task(follow(number)) for number in range(9)]
        await until(lambda: told == [0])
        gate.set()
        await asyncio.gather(*jobs)


async def test_a_step_takes_no_thread_that_another_job_waits_for() -> None:
    gate, seen = threading.Event(), set[str]()

    def take(_: int) -> None:
        seen.add(threading.current_thread().name)

    with opened(gate, Compute(2, Stats())) as compute:
        other = asyncio.create_task(compute("wait", gate.wait))
        await asyncio.sleep(0)
        await compute.job("take", lambda step: step.spread(take, range(100)))
        gate.set()
        assert await other
    assert len(seen) == 1


async def test_ends_are_told_together_while_many_jobs_wait_and_none_is_held_for_long() -> None:
    gate, told = threading.Event(), list[int]()

    def enter(number: int) -> int:
        if number == 4:
            gate.wait(10)
        return number

    async def follow(number: int) -> None:
        told.append(await compute.job("enter", lambda step: step("enter", enter, number), is_last=True))

    with opened(gate, Compute(1, Stats(), max_held_s=0.05)) as compute:
        jobs = [asyncio.create_task(follow(number)) for number in range(20)]
        while len(told) < 4:  # noqa: ASYNC110 (held back by fifteen others, but not for ever)
            await asyncio.sleep(0.001)
        assert told == [0, 1, 2, 3]
        gate.set()
        await asyncio.gather(*jobs)
    assert told == list(range(20))


@pytest.mark.parametrize("n_threads", [pytest.param(1, id="in one thread"), pytest.param(2, id="over two threads")])
@pytest.mark.parametrize("shared", [pytest.param(False, id="by itself"), pytest.param(True, id="with shared batches")])
async def test_an_image_whose_caller_leaves_ends_its_pyramid_at_the_level_that_runs(
    n_threads: int, shared: bool
) -> None:
    entered, gate, levels = threading.Event(), threading.Event(), []

    def held_pnet(level: np.ndarray) -> tuple[np.ndarray, ...]:
        levels.append(level.shape)
        entered.set()
        gate.wait()
        return pnet(level)

    image = Raw(bytes(200 * 200 * 3), 200, 200)
    async with Batcher(rnet, 8) as shared_rnet, Batcher(onet, 8) as shared_onet:
        with opened(gate, Compute(n_threads, Stats())) as compute:
            limits = work_limits(Config())
            finder: ImageWorkers = PerImageDetector(held_pnet, rnet, onet, limits, compute)
            if shared:
                finder = BatchedDetector(Nets(held_pnet, shared_rnet, shared_onet), limits, compute)
            finding = asyncio.create_task(finder.find(ImageTask(image, DetectOptions()), BatchBarrier(1)))
            await asyncio.to_thread(entered.wait)
            finding.cancel()
            await asyncio.gather(finding, return_exceptions=True)
    assert len(levels) <= n_threads


async def test_batches_that_share_the_threads_of_jobs_run_none_of_those_who_left_meanwhile() -> None:
    gate, seen = threading.Event(), list[int]()

    def net(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.extend(rows[:, 0].tolist())
        return (rows.astype(np.float32),)

    with opened(gate, Compute(1, Stats())) as compute:
        async with Batcher(net, 8, threads=compute.threads) as batcher:
            before = asyncio.create_task(compute("wait", gate.wait))
            await asyncio.sleep(0)
            calls = [asyncio.create_task(batcher(np.array([[number]]))) for number in (1, 2)]
            while batcher._queued_rows or not batcher._running_rows:  # noqa: ASYNC110 (until they are a batch)
                await asyncio.sleep(0)
            calls[0].cancel()
            await asyncio.sleep(0)
            gate.set()
            assert (await calls[1])[0].tolist() == [[2]]
            assert await before
        assert await compute("after", sum, [1, 2]) == 3
    assert seen == [2]


@contextmanager
def opened(gate: threading.Event, compute: Compute) -> Iterator[Compute]:
    """Threads whose jobs wait for the gate, however the test ends."""
    with compute:
        try:
            yield compute
        finally:
            gate.set()


@pytest.mark.parametrize(("n_threads", "max_held_s"), [(2, 0.03), (3, 5.0), (4, 0.0)])
async def test_of_many_jobs_some_of_which_fail_or_are_left_each_ends_as_it_should_and_nothing_is_under_way(
    n_threads: int, max_held_s: float
) -> None:
    chance, stats = random.Random(n_threads), Stats()

    def job(step: Steps, number: int) -> int:
        squares = step.spread(lambda n: step("square", pow, n, 2), range(number % 7))
        return number // (number % 5) + sum(squares)  # every fifth fails

    async def one(compute: Compute, number: int) -> None:
        call = asyncio.create_task(compute.job("job", partial(job, number=number)))
        if number % 11 == 3:
            await asyncio.sleep(chance.random() / 500)
            call.cancel()
        (result,) = await asyncio.gather(call, return_exceptions=True)
        if isinstance(result, asyncio.CancelledError):
            assert number % 11 == 3
        elif number % 5 == 0:
            assert isinstance(result, ZeroDivisionError)
        else:
            assert result == number // (number % 5) + sum(n * n for n in range(number % 7))

    async def caller(compute: Compute, first: int) -> None:
        for number in range(first, 2000, 16):
            await one(compute, number)

    with Compute(n_threads, stats, max_held_s) as compute:
        await asyncio.wait_for(asyncio.gather(*(caller(compute, first) for first in range(16))), 30)
        await until(lambda: compute._n_jobs() == 0)
        assert compute._under_way == 0
    assert {stage.under_way for stage in stats} == {0}


async def test_a_large_job_gives_away_no_more_time_than_it_has_itself() -> None:
    begun, gate, order = threading.Event(), threading.Event(), list[str]()

    def large(step: Steps) -> None:
        begun.set()
        gate.wait(10)
        while len(order) < 1:
            step.give_way()
        step.give_way()  # the smaller one took longer than this one has run since
        order.append("large")

    def small(step: Steps) -> None:
        deadline_s = time.monotonic() + 10 * (time.monotonic() - began_s)
        while time.monotonic() < deadline_s:
            pass
        order.append("small")

    with Compute(1, Stats()) as compute:
        began_s = time.monotonic()
        jobs = [asyncio.create_task(compute.job("large", large, begins=True, size=10_000_000))]
        await asyncio.to_thread(begun.wait, 10)
        jobs += [asyncio.create_task(compute.job("small", small, begins=True, size=1)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*jobs)
    assert order == ["small", "large", "small", "small"]
