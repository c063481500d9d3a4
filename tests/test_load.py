"""The load generator against real servers on fake networks: what it sends, counts and times."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from facenet_client import AsyncClient, CallError, ImageError, ServerUnavailable, load
from facenet_client.load.engine import _due_times
from facenet_client.load.report import Reservoir
from nets import HeldNet, crop, fake_server, fake_service, square


async def run(
    target: str, work: load.Workload, *, connections: int = 1, timeout_s: float = 10, **plan: Any
) -> load.Report:
    async with AsyncClient(target, timeout_s=timeout_s, connections=connections) as client:
        return await load.run(client, work, load.Plan(**{"warm_up_s": 0, **plan}))


@pytest.mark.parametrize("plan", [{"callers": 3}, {"callers": 2, "window": 4}, {"rate_per_s": 1000.0}], ids=str)
async def test_a_load_sends_as_many_messages_as_planned_and_counts_their_items(plan: dict[str, Any]) -> None:
    async with fake_server() as target:
        report = await run(target, load.workload("embed_crops", [crop(1)] * 5, batch=2), messages=30, **plan)
    assert (report.messages, report.items) == (30, 60)
    assert report.is_clean
    assert 0 < report.latency.p50_s <= report.latency.p95_s <= report.latency.p99_s <= report.latency.max_s
    assert report.items_per_s == pytest.approx(60 / report.elapsed_s)
    assert report.server is not None
    assert report.server.stage("colour").rows == 60


@pytest.mark.parametrize(("method", "item"), [("detect", square()), ("embed", square()), ("embed_crops", crop(1))])
async def test_each_method_can_be_loaded(method: str, item: np.ndarray) -> None:
    async with fake_server() as target:
        report = await run(target, load.workload(method, [item]), messages=3)
    assert (report.items, report.is_clean) == (3, True)


async def test_items_in_error_are_counted_by_their_reason() -> None:
    work = load.workload("embed_crops", [crop(1), b"text", square()], batch=3)
    async with fake_server() as target:
        report = await run(target, work, messages=4)
    assert (report.messages, report.items) == (4, 4)
    assert report.errors == {"UNSUPPORTED_FORMAT": 4, "WRONG_SIZE": 4}
    assert not report.is_clean


async def test_messages_without_an_answer_are_counted_by_the_name_of_their_error() -> None:
    net = HeldNet()
    async with fake_service({"colour": net}) as (target, service):
        work = load.workload("embed_crops", [crop(1)])
        running = asyncio.create_task(run(target, work, callers=2, messages=10))
        await net.entered()
        service.drain()  # what is accepted is answered, what comes next is not
        net.open()
        report = await running
    assert report.failures == {"ServerUnavailable": 2}
    assert 1 <= report.messages <= 2
    assert report.first_failure.startswith(f"{target}: the server is shutting down")
    assert not report.is_clean


async def test_a_message_without_an_answer_in_time_is_a_failure_that_ends_its_caller() -> None:
    net = HeldNet()
    async with fake_server({"colour": net}) as target, AsyncClient(target, timeout_s=0.2) as client:
        plan = load.Plan(callers=2, messages=10, warm_up_s=0)
        report = await load.run(client, load.workload("embed_crops", [crop(1)]), plan)
        with pytest.raises(CallError, match="warming up"):
            await load.run(client, load.workload("embed_crops", [crop(1)]), load.Plan(messages=1))
        net.open()
    assert report.failures == {"AnswerTimeout": 2}
    assert np.isnan(report.latency.p50_s)


async def test_latency_in_an_open_loop_counts_from_when_a_message_was_due() -> None:
    """One caller, held up: all but the first message wait for it, and their latencies tell."""
    net = HeldNet()
    async with fake_server({"colour": net}) as target:
        work = load.workload("embed_crops", [crop(1)])
        running = asyncio.create_task(run(target, work, rate_per_s=1e6, messages=50))
        await net.entered()
        net.open()
        report = await running
    assert report.messages == 50
    assert report.latency.p50_s > report.late.p50_s > 0
    assert report.late.max_s > report.late.p50_s


def test_messages_are_due_at_the_rate_at_random_or_even_times() -> None:
    even = list(_due_times(load.Plan(rate_per_s=10.0, messages=5, poisson=False), 100.0))
    assert even == pytest.approx([100.1, 100.2, 100.3, 100.4, 100.5])
    random = list(_due_times(load.Plan(rate_per_s=10.0, duration_s=1000.0), 100.0))
    assert len(random) == pytest.approx(10_000, rel=0.05)
    gaps = np.array([later - earlier for earlier, later in pairwise(random)])
    assert gaps.std() == pytest.approx(0.1, rel=0.1)
    assert random[-1] <= 1100


async def test_warming_up_is_not_counted() -> None:
    async with fake_server() as target:
        report = await run(target, load.workload("embed_crops", [crop(1)]), messages=3, warm_up_s=1e-6, callers=2)
    assert report.messages == 3
    assert report.server is not None
    assert report.server.stage("colour").rows == 3


async def test_a_server_that_is_not_there_is_raised_before_anything_is_counted() -> None:
    with pytest.raises(ServerUnavailable):
        await run("127.0.0.1:1", load.workload("embed_crops", [crop(1)]), messages=3, timeout_s=0.5)


async def test_a_plan_beyond_the_servers_limits_is_refused() -> None:
    work = load.workload("embed_crops", [crop(1)])
    async with fake_server(max_streams_per_connection=3, max_messages_in_flight=3, max_message_mib=1) as target:
        with pytest.raises(ValueError, match="more connections"):
            await run(target, work, messages=3, callers=3)
        with pytest.raises(ValueError, match="4 messages of a stream"):
            await run(target, work, messages=3, window=4)
        with pytest.raises(ValueError, match="65 items"):
            await run(target, load.workload("embed_crops", [crop(1)], batch=65), messages=1)
        with pytest.raises(ValueError, match="bytes of a message"):
            await run(target, load.workload("embed_crops", [crop(1)], batch=14), messages=1)
        report = await run(target, work, messages=9, callers=3, connections=2)
    assert report.messages == 9


@pytest.mark.parametrize(
    "plan",
    [{}, *({"messages": 1} | wrong for wrong in ({"callers": 0}, {"rate_per_s": 0}, {"rate_per_s": 1, "window": 2}))],
    ids=str,
)
def test_a_plan_that_makes_no_sense_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ends|at least|above|window"):
        load.Plan(**plan)


def test_a_workload_takes_images_only() -> None:
    with pytest.raises(ImageError):
        load.workload("embed_crops", ["no/such/file.jpg"])
    with pytest.raises(ValueError, match="no items"):
        load.workload("embed_crops", [])
    with pytest.raises(ValueError, match="embed_crops"):
        load.workload("compare", [crop(1)])


async def test_progress_is_told_while_messages_are_under_way() -> None:
    net, told = HeldNet(), asyncio.Event()
    seen: list[load.Progress] = []

    def tell(progress: load.Progress) -> None:
        seen.append(progress)
        told.set()

    async with fake_server({"colour": net}) as target, AsyncClient(target) as client:
        plan = load.Plan(messages=1, warm_up_s=0)
        running = asyncio.create_task(load.run(client, load.workload("embed_crops", [crop(1)]), plan, tell))
        await told.wait()
        net.open()
        await running
    assert (seen[0].messages, seen[0].errors) == (0, 0)
    assert seen[0].elapsed_s > 0


async def test_a_report_is_json_without_nan() -> None:
    async with fake_server() as target:
        report = await run(target, load.workload("embed_crops", [crop(1)]), messages=1)
    record = json.loads(json.dumps(report.record(), allow_nan=False))
    assert record["items"] == 1
    (stage,) = (stage for stage in record["server"]["stages"] if stage["name"] == "colour")
    assert stage["mean_rows"] == 1


def test_latencies_beyond_a_million_are_a_fair_sample() -> None:
    reservoir = Reservoir()
    for value in range(3 << 20):
        reservoir.add(value)
    assert len(reservoir.values) == 1 << 20
    assert np.mean(reservoir.values) == pytest.approx((3 << 20) / 2, rel=0.01)


def test_random_crops_are_crops_and_the_same_each_time() -> None:
    first, second = load.random_crops(2)
    assert first.shape == second.shape == (160, 160, 3)
    assert first.dtype == np.uint8
    assert (first != second).any()
    np.testing.assert_array_equal(first, load.random_crops(1)[0])
