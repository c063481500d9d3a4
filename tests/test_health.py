"""Health, drain and the end, in real processes of the real server on stand-in networks."""

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from facenet_proto.v1 import face_pb2 as pb
from facenet_proto.v1.face_pb2_grpc import FaceServiceStub
from facenet_server.rpc.health import LIVENESS
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nets import crop

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# A server whose embedder does what a crop's first pixel says: 7 loses the device, 8 waits for that, 9 hangs.
SERVER = """
    import asyncio, sys, threading
    import nets, numpy as np
    from facenet_server.build import Parts
    from facenet_server.server import StopPolicy, serve
    from facenet_server.config import Config
    from facenet_server.errors import FatalError
    from facenet_server.models.contract import ModelInfo

    class Stub:
        providers, on_cuda = ["StandIn"], False
        def __init__(self, kind, net):
            self.info = ModelInfo(kind, kind, "test", "0", "0", "fixed", 160, 0.0, 4)
            self.net = net
        def __call__(self, *rows):
            return self.net(*rows)

    lost = threading.Event()
    def embed(rows):
        shades = rows[:, 0, 0, 0]
        if 7 in shades:
            lost.set()
        if 7 in shades or 8 in shades:
            lost.wait()
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        if 9 in shades:
            threading.Event().wait($hang_s)
        return nets.embed(rows)

    def opener(config):
        kinds = {"pnet": nets.pnet, "rnet": nets.rnet, "onet": nets.onet, "embedder": embed}
        return {kind: Stub(kind, net) for kind, net in kinds.items()}

    try:
        config = Config(listen="$listen", stall_s=$stall_s, grace_s=$grace_s, runs_per_embedder=3, max_batch_rows=4)
        import logging; logging.basicConfig(level="INFO", stream=sys.stderr)
        stop = StopPolicy(last_s=$last_s, turn_away_s=$turn_away_s)
        asyncio.run(serve(config, Parts(open_networks=opener), stop))
    except FatalError as error:
        sys.exit(str(error))
"""


class Process:
    """The server in a process, its address, and a connection to it."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, channel: grpc.aio.Channel) -> None:
        self.process = process
        self.address = address
        self.face: Any = FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    async def status(self, service: str) -> int:
        response = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return int(response.status)

    async def until(self, service: str, status: int) -> None:
        while await self.status(service) != status:  # noqa: ASYNC110 (another process' state)
            await asyncio.sleep(0.02)

    async def begun(self, shade: int) -> Any:
        """An Embed stream of one crop, once that is under way."""
        before = await self.items_in_flight()
        call = self.face.Embed()
        await call.write(request(shade))
        while await self.items_in_flight() == before:  # noqa: ASYNC110 (another process' state)
            await asyncio.sleep(0.02)
        return call

    async def items_in_flight(self) -> int:
        stats = await self.face.GetServerStats(pb.GetServerStatsRequest())
        return int(stats.admission.items_in_flight)

    async def embed(self, *shades: int) -> pb.EmbedResponse:
        call = self.face.Embed()
        await call.write(request(*shades))
        response: pb.EmbedResponse = await call.read()
        await call.done_writing()
        return response


def request(*shades: int) -> pb.EmbedRequest:
    images = (pb.Image(raw=pb.RawImage(rgb=crop(*[shade] * 3).tobytes(), height=160, width=160)) for shade in shades)
    return pb.EmbedRequest(items=[pb.EmbedItem(crop=image) for image in images])


@asynccontextmanager
async def server(**changed: str) -> AsyncIterator[Process]:
    """``changed``: texts of the script that are others."""
    script = textwrap.dedent(SERVER)
    usual = {
        "listen": "127.0.0.1:0",
        "hang_s": "3",
        "stall_s": "0.5",
        "grace_s": "10",
        "turn_away_s": "0.3",
        "last_s": "5",
    }
    for name, value in usual.items():
        script = script.replace(f"${name}", changed.get(name, value))
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{script}"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    log = b""
    try:
        while b"listening on" not in (line := await process.stderr.readline()):
            log += line
            assert line, log.decode()
        address = line.split()[-1].decode()
        drained = asyncio.create_task(process.stderr.read())
        async with grpc.aio.insecure_channel(address) as channel:
            yield Process(process, address, channel)
        await drained
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.timeout(40)
async def test_a_lost_device_is_told_to_all_and_ends_the_process_and_the_next_one_on_its_port_serves() -> None:
    async with server() as one:
        assert await one.status("") == await one.status(LIVENESS) == SERVING
        watch = one.health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        others = [await one.begun(8) for _ in range(2)]
        for answer in [await one.embed(7), *[await call.read() for call in others]]:
            assert [(each.error.code, each.error.reason) for each in answer.results] == [(14, "DEVICE_LOST")]
        assert (await watch.read()).status == NOT_SERVING
        assert [(await call.read()).draining for call in others] == [True] * 2
        assert [await call.code() for call in others] == [grpc.StatusCode.UNAVAILABLE] * 2
        assert await one.process.wait() == 1
    async with server(listen=one.address) as next_one:
        assert (await next_one.embed(5)).results[0].HasField("embedding")
        next_one.process.terminate()


@pytest.mark.timeout(40)
async def test_a_lost_device_ends_the_process_though_a_run_hangs_for_ever() -> None:
    async with server(hang_s="600") as one:
        hanging = await one.begun(9)
        await one.embed(7)
        assert await hanging.code() is grpc.StatusCode.UNAVAILABLE
        assert await one.process.wait() == 1


@pytest.mark.timeout(40)
async def test_who_comes_right_after_a_drains_last_answer_is_told_of_it() -> None:
    async with server(hang_s="1.5", turn_away_s="3") as one:
        last = await one.begun(9)
        one.process.terminate()
        assert (await last.read()).results[0].HasField("embedding")
        late = one.face.Embed()
        assert (await late.read()).draining
        assert await late.code() is grpc.StatusCode.UNAVAILABLE
        assert await one.process.wait() == 0


@pytest.mark.timeout(40)
async def test_a_server_that_drains_is_not_ready_but_alive() -> None:
    async with server(hang_s="1", stall_s="60", turn_away_s="3") as one:
        last = await one.begun(9)
        one.process.terminate()
        await one.until("", NOT_SERVING)
        assert await one.status(LIVENESS) == SERVING
        assert (await last.read()).results[0].HasField("embedding")
        assert await one.process.wait() == 0


@pytest.mark.timeout(40)
async def test_a_server_whose_work_hangs_is_not_ready_but_alive_and_ready_again_when_it_moves() -> None:
    async with server() as one:
        hanging = asyncio.create_task(one.embed(9))
        await one.until("facenet.v1.FaceService", NOT_SERVING)
        assert await one.status(LIVENESS) == SERVING
        assert (await hanging).results[0].HasField("embedding")
        await one.until("facenet.v1.FaceService", SERVING)
        one.process.terminate()
        assert await one.process.wait() == 0


async def test_a_second_signal_ends_at_once_though_a_run_hangs() -> None:
    async with server() as one:
        watch, hanging = one.health.Watch(health_pb2.HealthCheckRequest()), await one.begun(9)
        for status in (SERVING, NOT_SERVING):
            assert (await watch.read()).status == status
            one.process.terminate()
        async with asyncio.timeout(2):
            await one.process.wait()
        with pytest.raises(grpc.aio.AioRpcError):
            await hanging.read()


async def test_one_signal_ends_in_time_though_a_run_hangs_for_ever() -> None:
    async with server(hang_s="600", grace_s="0.2", last_s="1") as one:
        hanging = await one.begun(9)
        one.process.terminate()
        async with asyncio.timeout(5):
            assert await one.process.wait() == 1
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await hanging.read()


async def test_draining_answers_what_was_accepted_says_so_and_ends_well() -> None:
    async with server() as one:
        call = await one.begun(9)
        one.process.terminate()
        answered = await call.read()
        assert answered.results[0].HasField("embedding")
        assert (await call.read()).draining
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert await one.process.wait() == 0


async def test_a_watcher_does_not_hold_up_a_drain() -> None:
    async with server(grace_s="60") as one:
        call = one.health.Watch(health_pb2.HealthCheckRequest())
        assert (await call.read()).status == SERVING
        one.process.terminate()
        async with asyncio.timeout(5):
            assert (await call.read()).status == NOT_SERVING
            assert await one.process.wait() == 0
