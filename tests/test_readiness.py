"""What the health service says: readiness that follows the work, and who watches it."""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from facenet_server.rpc.auth import Callers
from facenet_server.rpc.health import Health
from facenet_server.rpc.unary import UnaryCalls
from facenet_server.serving.compute import Compute
from facenet_server.telemetry.counters import Stats
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_job_that_hangs_is_seen_beside_others_and_though_its_caller_left() -> None:
    stats, gate = Stats(), threading.Event()
    with Compute(2, stats) as compute:
        try:
            async with Health(["face"], stats, stall_s=0.05) as told:
                hanging = asyncio.create_task(compute("hung", gate.wait))
                await compute("other", time.sleep, 0)
                hanging.cancel()
                while await status_of(told) != NOT_SERVING:
                    await compute("other", time.sleep, 0.005)
                gate.set()
                while await status_of(told) != SERVING:
                    await compute("other", time.sleep, 0.005)
        finally:
            gate.set()


async def test_jobs_whose_callers_give_up_while_all_threads_hang_are_no_progress_and_keep_nothing() -> None:
    class Image:
        """What a job is of."""

    stats, gate = Stats(), threading.Event()
    with Compute(1, stats) as compute:
        try:
            async with Health(["face"], stats, stall_s=0.05) as told, asyncio.timeout(10):
                hanging = asyncio.create_task(compute("hung", gate.wait))
                kept = weakref.WeakSet[Image]()
                while await status_of(told) != NOT_SERVING:
                    kept.add(image := Image())
                    waits = asyncio.create_task(compute("hung", id, image))
                    await asyncio.sleep(0.001)
                    waits.cancel()
                    await asyncio.wait({waits})
                    del waits, image
                await asyncio.sleep(0)  # the last one's frame
                assert not kept
                gate.set()
                assert await hanging
                while await status_of(told) != SERVING:  # noqa: ASYNC110 (a check tells of now)
                    await asyncio.sleep(0.005)
        finally:
            gate.set()


async def test_readiness_follows_the_work_and_nothing_under_way_is_ready() -> None:
    stats = Stats()

    async def until(wanted: int) -> None:
        while await status_of(told) != wanted:  # noqa: ASYNC110 (a check tells of now)
            await asyncio.sleep(0.005)

    async with Health(["face"], stats, stall_s=0.05) as told:
        assert await status_of(told) == SERVING
        with stats.stage("hung").at_work():
            await until(NOT_SERVING)
        await until(SERVING)
        told.end()
        assert await status_of(told) == NOT_SERVING


async def test_who_watches_is_told_each_change_though_others_leave_and_let_go_at_the_end() -> None:
    stats = Stats()
    async with watched(Health(["face"], stats, stall_s=0.05)) as (told, stub):
        calls = [stub.Watch(health_pb2.HealthCheckRequest(service="face")) for _ in range(3)]
        assert [(await call.read()).status for call in calls] == [SERVING] * 3
        calls[0].cancel()
        with stats.stage("hung").at_work():
            assert [(await call.read()).status for call in calls[1:]] == [NOT_SERVING] * 2
        assert [(await call.read()).status for call in calls[1:]] == [SERVING] * 2
        told.end()
        assert [(await call.read()).status for call in calls[1:]] == [NOT_SERVING] * 2
        assert [await call.code() for call in calls[1:]] == [grpc.StatusCode.OK] * 2


async def test_a_service_of_another_name_is_not_found_and_to_watchers_unknown() -> None:
    async with watched(Health(["face"], Stats(), stall_s=60)) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        call = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def status_of(told: Health) -> int:
    return int((await told.check(health_pb2.HealthCheckRequest(service="face"), None)).status)


@asynccontextmanager
async def watched(told: Health) -> AsyncIterator[tuple[Health, Any]]:
    """It on a socket, and a stub for it."""
    endpoint = grpc.aio.server()
    endpoint.add_generic_rpc_handlers((told.handlers(UnaryCalls(Callers(), 64)),))
    port = endpoint.add_insecure_port("127.0.0.1:0")
    async with told, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await endpoint.start()
        try:
            yield told, health_pb2_grpc.HealthStub(channel)
        finally:
            await endpoint.stop(0)


async def test_a_watch_of_a_stranger_ends_after_seconds_where_callers_are_known_by_tokens() -> None:
    told = Health(("face",), Stats(), 1.0, Callers({}))
    async with watched(told) as (_, stub):
        answers = [answer.status async for answer in stub.Watch(health_pb2.HealthCheckRequest(service="face"))]
    assert answers == [health_pb2.HealthCheckResponse.SERVING]
