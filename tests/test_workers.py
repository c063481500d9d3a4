"""Worker processes behind one front: crashes, hangs and kills cost nobody but the item that is to blame."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fake_worker
import numpy as np
import pytest
from calls import ask, crops, raw, stream, until
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.build import Built, Parts, built, wanted_workers
from facenet_server.config import Config
from facenet_server.errors import StartError
from facenet_server.rpc.converters import INTERNAL
from facenet_server.workers.pool import WorkerPool
from facenet_server.workers.remote import RemoteWorkers
from nets import crop, fake_service, square

COMMAND = (sys.executable, "-m", "fake_worker")
SETTINGS: dict[str, Any] = {"listen": "127.0.0.1:0", "workers": "2", "threads": 2, "default_embedder": "colour"}


@asynccontextmanager
async def served(
    settings: dict[str, Any] | None = None, on_lost: Callable[[], object] = lambda: None, **parts: Any
) -> AsyncIterator[tuple[str, Built]]:
    """A server with two workers and a spare one."""
    config = Config(**{**SETTINGS, **(settings or {})}).with_streams_for(None)
    async with built(config, Parts(**{"worker_command": COMMAND, **parts}), on_lost) as server:
        await server.grpc_server.start()
        try:
            yield f"127.0.0.1:{server.port}", server
        finally:
            await server.grpc_server.stop(0)


def counts(server: Built) -> Any:
    told = server.service._stats.workers()
    assert told is not None
    return told


def pool(server: Built) -> WorkerPool:
    workers = server.service._pipeline._workers
    assert isinstance(workers, RemoteWorkers)
    return workers._pool


def pids(server: Built) -> list[int]:
    return list(server.service._stats.worker_pids())


async def ready(server: Built) -> None:
    """Two work, one stands by."""
    await until(lambda: (counts(server).working, counts(server).standing_by) == (2, 1))


async def embedded(target: str, *pixels: np.ndarray, **options: Any) -> list[pb.EmbedResult]:
    async with stream(target, "Embed", pb.EmbedResponse) as call:
        return list((await ask(call, crops(*pixels, **options))).results)


async def detected(target: str, *pixels: np.ndarray, **options: Any) -> list[pb.DetectResult]:
    async with stream(target, "Detect", pb.DetectResponse) as call:
        request = pb.DetectRequest(images=map(raw, pixels), options=pb.DetectOptions(**options))
        return list((await ask(call, request)).results)


async def test_workers_answer_as_the_servers_own_process_does() -> None:
    photos, ready_crops = [square(), square(90, 20, 40)], [crop(200, 100, 0), crop(1, 2, 4)]

    async def answers(target: str) -> list[Any]:
        shown = await detected(target, *photos, return_crops=True, crop_size_px=40)
        async with stream(target, "Embed", pb.EmbedResponse) as call:
            items = [pb.EmbedItem(image=raw(photo)) for photo in photos]
            whole = await ask(call, pb.EmbedRequest(items=items, options=pb.EmbedOptions(model="other")))
        return [*shown, *whole.results, *await embedded(target, *ready_crops)]

    async with served() as (target, _):
        found = await answers(target)
    async with fake_service() as (target, _):
        assert found == await answers(target)
    assert not any(result.HasField("error") for result in found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP], ids=lambda number: number.name)
async def test_what_a_worker_had_that_ends_is_answered_by_another(number: signal.Signals) -> None:
    slow = [np.full((160, 160, 3), (99, green, 0), np.uint8) for green in range(30)]
    async with served({"max_batch_rows": 4}) as (target, server):
        await ready(server)
        asking = asyncio.create_task(embedded(target, *slow))
        await until(lambda: server.service._stats.stage("colour").under_way == 2)
        os.kill(pids(server)[0], number)
        results = await asking
        assert not any(result.HasField("error") for result in results)
        vectors = [np.frombuffer(result.embedding.vector, "<f4") for result in results]
        assert [int(np.argmin(abs(v[1] / v[0] - (np.arange(30) + 1) / 100))) for v in vectors] == list(range(30))
        await ready(server)
        assert counts(server).ended == 1
        assert counts(server).jobs_run_again
        assert not counts(server).jobs_given_up


async def test_a_crop_that_ends_workers_costs_two_of_them_once_and_nobody_else() -> None:
    neighbours = [crop(9, 9, shade) for shade in range(6)]
    async with served() as (target, server):
        await ready(server)
        first = await embedded(target, *neighbours, crop(*fake_worker.CRASH))
        assert [result.error.code for result in first] == [0] * 6 + [INTERNAL]
        assert counts(server).ended == 2
        again = await embedded(target, crop(*fake_worker.CRASH), *neighbours)
        assert [result.error.message for result in again] == [first[-1].error.message] + [""] * 6
        await ready(server)
        assert (counts(server).ended, counts(server).jobs_given_up) == (2, 1)


async def test_an_image_that_ends_workers_costs_two_of_them_once_and_nobody_else() -> None:
    poison = square()
    poison[0, 0] = fake_worker.CRASH
    async with served() as (target, server):
        await ready(server)
        first = await detected(target, square(), poison, square())
        assert [result.error.code for result in first] == [0, INTERNAL, 0]
        again = await detected(target, poison)
        assert again[0].error.message == first[1].error.message
        assert counts(server).ended == 2


async def test_an_image_that_takes_longer_than_its_limit_ends_with_its_worker_and_is_refused() -> None:
    stuck = square()
    stuck[0, 0] = fake_worker.HANG
    async with served(job_limit_s=1.0) as (target, server):
        await ready(server)
        first = await detected(target, stuck, square())
        assert [result.error.code for result in first] == [INTERNAL, 0]
        again = await detected(target, stuck)
        assert again[0].error.message == first[0].error.message
        assert counts(server).ended == 1


async def test_a_device_lost_in_one_worker_ends_that_worker_and_in_all_the_server() -> None:
    lost: list[str] = []
    async with served(on_lost=lambda: lost.append("all")) as (target, server):
        await ready(server)
        first = await embedded(target, crop(*fake_worker.LOSE))
        assert [result.error.reason for result in first] == ["DEVICE_LOST"]
        assert counts(server).ended == 2
        assert not lost
        assert not (await embedded(target, crop(1, 2, 3 + 1)))[0].HasField("error"), "others have theirs"
        await ready(server)
        for _ in range(2):
            await embedded(target, crop(*fake_worker.LOSE))
        assert lost


async def test_without_a_second_attempt_a_dead_workers_jobs_fail() -> None:
    async with served(n_attempts=1) as (target, server):
        await ready(server)
        asking = asyncio.create_task(embedded(target, *(crop(99, shade, 0) for shade in range(20))))
        await until(lambda: server.service._stats.stage("colour").under_way)
        for pid in pids(server)[:2]:
            os.kill(pid, signal.SIGSEGV)
        assert any(result.error.code == INTERNAL for result in await asking)


async def test_many_copies_of_what_ends_workers_cost_few_of_them() -> None:
    poison = square()
    poison[0, 0] = fake_worker.CRASH
    async with served() as (target, server):
        await ready(server)
        results = await detected(target, *[poison] * 6)
        assert {result.error.code for result in results} == {INTERNAL}
        assert counts(server).ended <= 4, "two at once, the one that took their place, and one more"


async def test_calls_that_are_given_up_at_once_leave_no_place_taken() -> None:
    async with served() as (target, server):
        await ready(server)
        async with stream(target, "Detect", pb.DetectResponse) as call:
            for number in range(60):
                request = pb.DetectRequest(images=[raw(square())], timeout_ms=1 + number % 4)
                await ask(call, request)
        assert not any(result.HasField("error") for result in await detected(target, square()))
        await until(lambda: not any(worker.jobs for worker in pool(server)._active))
        assert counts(server).ended == 0


async def test_an_image_that_hangs_ends_its_worker_though_its_caller_has_left() -> None:
    stuck = square()
    stuck[0, 0] = fake_worker.HANG
    async with served(job_limit_s=1.0) as (target, server):
        await ready(server)
        async with stream(target, "Detect", pb.DetectResponse) as call:
            answer = await ask(call, pb.DetectRequest(images=[raw(stuck)], timeout_ms=200))
        assert answer.results[0].error.reason == "TIMED_OUT"
        await until(lambda: counts(server).ended == 1)
        await until(lambda: counts(server).jobs_given_up == 1)
        assert (await detected(target, stuck))[0].error.code == INTERNAL
        assert counts(server).ended == 1


async def test_streams_of_crops_hold_up_no_photo() -> None:
    slow = [crop(99, shade, 0) for shade in range(8)]
    async with served({"max_batch_rows": 2}) as (target, server):
        await ready(server)

        async def crops_without_end(model: str) -> None:
            async with stream(target, "Embed", pb.EmbedResponse) as call:
                while True:
                    await ask(call, crops(*slow, model=model))

        crowd = [asyncio.create_task(crops_without_end(model)) for model in ("colour", "other") * 4]
        await until(lambda: server.service._stats.stage("colour").runs > 10)
        before = server.service._stats.stage("colour").runs + server.service._stats.stage("other").runs
        assert not any(result.HasField("error") for result in await detected(target, square()))
        after = server.service._stats.stage("colour").runs + server.service._stats.stage("other").runs
        for each in crowd:
            each.cancel()
        assert after - before < 12, "it took its turn"


async def test_a_worker_that_writes_without_end_holds_up_nobody() -> None:
    async with served() as (target, server):
        await ready(server)
        asking = asyncio.create_task(embedded(target, crop(*fake_worker.FLOOD)))
        await until(lambda: server.service._stats.stage("colour").under_way)
        assert not any(result.HasField("error") for result in await detected(target, square()))
        assert not (await asking)[0].HasField("error")


async def test_restarts_leave_nothing_behind() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def children() -> list[str]:
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

    async with served() as (_, server):
        await ready(server)
        before, old = descriptors(), pids(server)
        for _ in range(3):
            os.kill(pids(server)[0], signal.SIGKILL)
            await until(lambda: counts(server).standing_by == 0)
            await ready(server)
        assert descriptors() == before
        assert len(pids(server)) == 3
        assert len(set(pids(server)) & set(old)) < 3
        ended = [*old, *pids(server)]
    assert not set(map(str, ended)) & set(children()), "no zombie"


async def test_what_a_worker_writes_is_logged_in_whole_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with served() as (target, server):
            await ready(server)
            await embedded(target, crop(*fake_worker.CRASH))
            await ready(server)
    lines = [record.message for record in caplog.records if record.name == "facenet_server.workers"]
    assert any("Fatal Python error: Segmentation fault" in line for line in lines), "faulthandler's"
    assert all(line.startswith("worker ") for line in lines)


async def test_a_worker_that_cannot_start_is_told_in_one_line(tmp_path: Path) -> None:
    config = Config(models=tmp_path, **SETTINGS).with_streams_for(None)
    with pytest.raises(StartError, match="facenet-convert all"):
        async with built(config):
            pass
    with pytest.raises(StartError, match="a worker process ended while it started"):
        async with built(config, Parts(worker_command=(sys.executable, "-c", "raise SystemExit(3)"))):
            pass


@pytest.mark.parametrize(
    ("workers", "gigabytes", "expected"), [("3", 1, 3), ("auto", 64, 8), ("auto", 2, 2), ("auto", 0.5, 1), ("0", 64, 0)]
)
def test_there_is_a_worker_a_core_as_far_as_memory_goes(workers: str, gigabytes: float, expected: int) -> None:
    assert wanted_workers(Config(workers=workers), 8, int(gigabytes * 1e9)) == expected
