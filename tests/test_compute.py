import asyncio
import threading

import numpy as np
import pytest
from facenet_server.batching import Batcher
from facenet_server.company import Company
from facenet_server.compute import Compute, Steps
from facenet_server.detector import Detector, Nets, WorkLimits
from facenet_server.options import DetectOptions
from facenet_server.stats import Stats
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

    with Compute(1, stats) as compute:
        before = asyncio.create_task(compute("wait", gate.wait))
        job = asyncio.create_task(compute.job("add", steps))
        await asyncio.sleep(0.02)
        assert (stats.stage("add").under_way, stats.stage("double").under_way) == (1, 0)
        gate.set()
        assert await before
        assert await job == 6
    assert [stats.stage(name).runs for name in ("add", "double")] == [1, 1]
    assert stats.stage("add").queue_ns >= 10_000_000
    assert stats.stage("double").queue_ns == 0
    assert stats.stage("add").under_way == 0


async def test_a_job_whose_caller_leaves_is_not_begun_or_takes_no_further_item() -> None:
    taken: list[str] = []
    entered, gate = threading.Event(), threading.Event()

    def take(name: str) -> None:
        taken.append(name)
        entered.set()
        gate.wait()

    with Compute(1, Stats()) as compute:
        running = asyncio.create_task(compute.job("a", lambda step: list(map(take, step.wanted(["a1", "a2", "a3"])))))
        waiting = asyncio.create_task(compute("b", take, "b1"))
        await asyncio.to_thread(entered.wait)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        gate.set()
    assert taken == ["a1"]


@pytest.mark.parametrize("n_threads", [pytest.param(1, id="in one thread"), pytest.param(2, id="over two threads")])
async def test_an_image_whose_caller_leaves_ends_its_pyramid_at_the_level_that_runs(n_threads: int) -> None:
    entered, gate, levels = threading.Event(), threading.Event(), []

    def held_pnet(level: np.ndarray) -> tuple[np.ndarray, ...]:
        levels.append(level.shape)
        entered.set()
        gate.wait()
        return pnet(level)

    image = np.zeros((200, 200, 3), np.uint8)
    async with Batcher(rnet, 8) as shared_rnet, Batcher(onet, 8) as shared_onet:
        with Compute(n_threads, Stats()) as compute:
            detector = Detector(Nets(held_pnet, shared_rnet, shared_onet), WorkLimits(10**6, 1000), compute)
            finding = asyncio.create_task(detector.find(image, DetectOptions(), Company(1)))
            await asyncio.to_thread(entered.wait)
            finding.cancel()
            await asyncio.gather(finding, return_exceptions=True)
            gate.set()
    assert len(levels) <= n_threads
