import asyncio
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from facenet_server.errors import Overloaded, TimedOut
from facenet_server.serving.batcher import Batcher, ThreadRunner
from facenet_server.telemetry.counters import Stage


class Recorder:
    """A net that doubles its rows, takes its time for it, remembers its batches, and can be held up."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.batches: list[list[float]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        self.entered.set()
        assert self.open.wait(10)
        time.sleep(self.takes_s)
        self.batches.append(rows[:, 0].tolist())
        if (rows < 0).any():
            raise RuntimeError("no negative rows")
        return rows * 2, rows.sum(axis=1)


def rows(*values: float) -> np.ndarray:
    return np.array([[value] for value in values], np.float32)


async def held(net: Recorder, batcher: Batcher) -> "asyncio.Task[tuple[np.ndarray, ...]]":
    """One call that is inside the net and stays there until ``net.open`` is set."""
    net.open.clear()
    first = asyncio.create_task(batcher(rows(0)))
    await asyncio.to_thread(net.entered.wait, 10)
    return first


async def one_by_one(batcher: Batcher, values: Iterable[float]) -> None:
    """Calls of one row, a little apart: a worker has every chance to run what is there."""
    calls = []
    for value in values:
        calls.append(asyncio.create_task(batcher(rows(value))))
        for _ in range(5):
            await asyncio.sleep(0)
    await asyncio.gather(*calls)


async def test_a_call_gets_its_rows_answers_in_their_order() -> None:
    async with Batcher(Recorder(), 8) as batcher:
        doubled, sums = await batcher(rows(1, 2, 3))
    np.testing.assert_array_equal(doubled, rows(2, 4, 6))
    np.testing.assert_array_equal(sums, [1, 2, 3])


async def test_what_arrives_while_a_batch_runs_is_the_next_batch() -> None:
    net = Recorder()
    async with Batcher(net, 8) as batcher:
        first = await held(net, batcher)
        others = [asyncio.create_task(batcher(rows(i, i + 0.5))) for i in (1, 2, 3)]
        await asyncio.sleep(0)
        net.open.set()
        await first
        answers = await asyncio.gather(*others)
    assert net.batches == [[0], [1, 1.5, 2, 2.5, 3, 3.5]]
    for i, (doubled, _) in zip((1, 2, 3), answers, strict=True):
        np.testing.assert_array_equal(doubled, rows(2 * i, 2 * i + 1))


async def test_a_call_larger_than_a_batch_is_split_and_rejoined() -> None:
    net = Recorder()
    async with Batcher(net, 4) as batcher:
        doubled, _ = await batcher(rows(*range(10)))
    np.testing.assert_array_equal(doubled[:, 0], np.arange(10) * 2)
    assert [len(batch) for batch in net.batches] == [4, 4, 2]


async def test_no_batch_is_larger_than_allowed() -> None:
    net = Recorder()
    async with Batcher(net, 4) as batcher:
        await asyncio.gather(*(batcher(rows(*range(size))) for size in (3, 3, 1, 4, 2, 9)))
    assert max(map(len, net.batches)) <= 4
    assert sum(map(len, net.batches)) == 22


async def test_a_cancelled_calls_waiting_rows_are_not_run() -> None:
    net = Recorder()
    async with Batcher(net, 8) as batcher:
        first = await held(net, batcher)
        left, kept = asyncio.create_task(batcher(rows(1))), asyncio.create_task(batcher(rows(2)))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        net.open.set()
        await asyncio.gather(first, kept)
    assert net.batches == [[0], [2]]


@pytest.mark.parametrize("max_rows", [pytest.param(2, id="in two batches"), pytest.param(8, id="in one batch")])
async def test_rows_that_fail_fail_their_own_call_only(max_rows: int) -> None:
    net = Recorder()
    async with Batcher(net, max_rows) as batcher:
        first = await held(net, batcher)
        calls = [asyncio.create_task(batcher(rows(*values))) for values in ((1, -1), (2, 3))]
        await asyncio.sleep(0)
        net.open.set()
        failed, answered = await asyncio.gather(*calls, return_exceptions=True)
        await first
        await batcher(rows(4))
    assert isinstance(failed, RuntimeError)
    assert not isinstance(answered, BaseException)
    np.testing.assert_array_equal(answered[0], rows(4, 6))


async def test_rows_of_unlike_shapes_are_run_apart() -> None:
    net = Recorder()
    async with Batcher(net, 8) as batcher:
        first = await held(net, batcher)
        unlike = [asyncio.create_task(batcher(array)) for array in (rows(1), np.ones((1, 2), np.float32))]
        await asyncio.sleep(0)
        net.open.set()
        outcomes = await asyncio.gather(*unlike)
        await first
        doubled, _ = await batcher(rows(5))
    assert [len(doubled[0]) for doubled, _ in outcomes] == [1, 2]
    np.testing.assert_array_equal(doubled, rows(10))


async def test_closing_leaves_nobody_waiting() -> None:
    net = Recorder()
    async with Batcher(net, 1) as batcher:
        running = await held(net, batcher)
        waiting = asyncio.create_task(batcher(rows(1)))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, net.open.set)
    outcomes = await asyncio.gather(running, waiting, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)


@pytest.mark.parametrize("callers", [1, 7, 40])
async def test_concurrent_callers_never_see_each_others_rows(callers: int) -> None:
    async with Batcher(Recorder(), 16) as batcher:

        async def call(seed: int) -> bool:
            mine = np.random.default_rng(seed).uniform(1, 2, (seed % 37 + 1, 3)).astype(np.float32)
            doubled, sums = await batcher(mine)
            return bool((doubled == mine * 2).all() and np.allclose(sums, mine.sum(axis=1)))

        assert all(await asyncio.gather(*map(call, range(callers))))


async def test_each_worker_runs_a_batch_of_its_own() -> None:
    both = threading.Barrier(2, timeout=10)

    def net(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        both.wait()  # passes only where two batches run at once
        return (batch,)

    async with Batcher(net, 1, workers=2) as batcher:
        (answer,) = await batcher(rows(1, 2))
    np.testing.assert_array_equal(answer, rows(1, 2))


async def test_an_idle_worker_waits_for_as_many_rows_as_there_were_lately() -> None:
    net = Recorder(takes_s=0.2)
    async with Batcher(net, 8, max_wait_s=60) as batcher:
        await batcher(rows(1, 2, 3))
        await one_by_one(batcher, (4, 5, 6))
    assert net.batches == [[1, 2, 3], [4, 5, 6]]


async def test_each_of_several_workers_waits_for_its_share() -> None:
    net = Recorder(takes_s=0.2)
    async with Batcher(net, 8, workers=2, max_wait_s=60) as batcher:
        await batcher(rows(*range(8)))
        await one_by_one(batcher, range(8))
    assert list(map(len, net.batches)) == [4, 4, 4, 4]


@pytest.mark.parametrize(("takes_s", "max_wait_s"), [(0.0, 60), (0.2, 0.01)])
async def test_an_idle_worker_waits_no_longer_than_a_run_takes_or_than_allowed(
    takes_s: float, max_wait_s: float
) -> None:
    async with Batcher(Recorder(takes_s), 3, max_wait_s=max_wait_s) as batcher:
        await batcher(rows(7, 8, 9))
        (doubled, _) = await batcher(rows(1))
    np.testing.assert_array_equal(doubled, rows(2))


async def test_a_worker_that_fails_outside_a_run_answers_those_who_wait_and_goes_on() -> None:
    net = Recorder(takes_s=0.05)
    no_time: Any = "soon"
    async with Batcher(net, 8) as batcher:
        await batcher(rows(0))
        calls = [batcher(rows(1)), batcher(rows(2), deadline=no_time), batcher(rows(3))]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, TypeError)
        assert batcher._queued_rows == 0
        await batcher(rows(4))
    assert net.batches == [[0], [4]]


async def test_rows_whose_answer_would_come_too_late_are_not_run() -> None:
    net, clock = Recorder(takes_s=0.2), asyncio.get_running_loop().time
    async with Batcher(net, 8) as batcher:
        await batcher(rows(0))
        net.takes_s = 0.0
        with pytest.raises(TimedOut):  # as far as one can know
            await batcher(rows(1), deadline=clock() + 0.1)
        await batcher(rows(2), deadline=clock() + 0.1)  # what was once slow need not stay so
        with pytest.raises(TimedOut):
            await batcher(rows(3), deadline=clock() - 1)
    assert net.batches == [[0], [2]]


async def test_a_worker_without_a_thread_answers_and_lives_on() -> None:
    async with Batcher(Recorder(), 8) as batcher:
        runner = batcher._runner
        assert isinstance(runner, ThreadRunner)
        threads, runner._threads = runner._threads, ThreadPoolExecutor(1)
        runner._threads.shutdown()
        with pytest.raises(RuntimeError):
            await batcher(rows(1))
        runner._threads = threads
        await batcher(rows(2))


async def test_rows_of_callers_who_left_take_no_room() -> None:
    net = Recorder()
    async with Batcher(net, 2, max_queued_rows=4) as batcher:
        running = await held(net, batcher)
        leaving = asyncio.create_task(batcher(rows(1, 2, 3, 4)))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        waiting = asyncio.create_task(batcher(rows(5, 6, 7, 8)))
        await asyncio.sleep(0)
        net.open.set()
        await asyncio.gather(running, waiting)


async def test_what_is_over_the_bound_is_refused_at_once_and_costs_nobody_else() -> None:
    net = Recorder()
    async with Batcher(net, 2, max_queued_rows=4) as batcher:
        running = await held(net, batcher)
        waiting = asyncio.create_task(batcher(rows(1, 2, 3)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 rows wait"):
            await batcher(rows(4, 5))
        last = asyncio.create_task(batcher(rows(6)))  # fits
        await asyncio.sleep(0)
        net.open.set()
        await asyncio.gather(running, waiting, last)
        await batcher(rows(7, 8))  # there is room again
    assert [value for batch in net.batches for value in batch] == [0, 1, 2, 3, 6, 7, 8]


async def test_a_call_larger_than_the_bound_has_the_queue_for_itself() -> None:
    async with Batcher(Recorder(), 2, max_queued_rows=4) as batcher:
        doubled, _ = await batcher(rows(*range(9)))
    np.testing.assert_array_equal(doubled[:, 0], np.arange(9) * 2)


async def test_runs_rows_and_times_are_counted() -> None:
    stage = Stage("double")
    async with Batcher(Recorder(), 4, stage=stage) as batcher:
        await batcher(rows(*range(10)))
    assert (stage.runs, stage.rows) == (3, 10)
    assert stage.queue_ns > 0
    assert stage.compute_ns > 0


@pytest.mark.parametrize(("count", "workers", "parts"), [(9, 2, [5, 4]), (41, 2, [21, 20]), (9, 1, [9])])
async def test_a_call_is_split_evenly_among_the_workers(count: int, workers: int, parts: list[int]) -> None:
    net = Recorder()
    async with Batcher(net, 32, workers=workers) as batcher:
        net.open.clear()
        call = asyncio.create_task(batcher(rows(*range(count))))
        await asyncio.to_thread(net.entered.wait, 10)
        net.open.set()
        doubled, _ = await call
    np.testing.assert_array_equal(doubled[:, 0], np.arange(count) * 2)
    assert sorted(map(len, net.batches), reverse=True) == parts
