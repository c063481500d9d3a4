import asyncio
import time

import grpc
import numpy as np
import pytest
from facenet_client import AsyncClient
from facenet_proto.v1 import face_pb2 as pb
from facenet_proto.v1.face_pb2_grpc import FaceServiceStub
from facenet_server.telemetry.counters import LoopLag, resident_bytes
from nets import crop, fake_server, square


async def test_a_blocked_loop_shows_in_its_lag() -> None:
    async with LoopLag() as lag:
        assert lag.now() == (0, 0, 0)
        await asyncio.sleep(0)  # the sampler starts its timer
        time.sleep(0.2)  # noqa: ASYNC251 (what must not happen)
        await asyncio.sleep(0.01)
        assert lag.now().max_s >= 0.1


def test_the_process_holds_memory() -> None:
    assert resident_bytes() > 10_000_000


@pytest.mark.parametrize("share_windows", ["on", "off"])
async def test_the_server_tells_what_it_has_done(share_windows: str) -> None:
    def raw(pixels: np.ndarray) -> pb.Image:
        return pb.Image(raw=pb.RawImage(rgb=pixels.tobytes(), height=pixels.shape[0], width=pixels.shape[1]))

    async with fake_server(share_windows=share_windows) as target, grpc.aio.insecure_channel(target) as channel:
        stub = FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        call = stub.Embed()
        items = [pb.EmbedItem(image=raw(square())), pb.EmbedItem(crop=raw(crop(9, 9, 9)))]
        await call.write(pb.EmbedRequest(items=items))
        await call.read()
        await call.done_writing()
        stats = await stub.GetServerStats(pb.GetServerStatsRequest())
    counted = {stage.name: stage for stage in stats.stages}
    assert counted["colour"].rows == 2
    assert counted["transpose"].runs == counted["merge"].runs == 1
    assert counted["mtcnn-rnet"].compute_ns > 0
    assert stats.uptime_s > 0
    assert stats.resident_bytes > 0


async def test_the_sdk_tells_what_was_let_in_and_what_came_of_it() -> None:
    async with fake_server() as first, fake_server() as second:
        async with AsyncClient(first) as one, AsyncClient([first, second]) as both:
            before = await one.server_stats()
            await one.embed_crops([crop(1, 2, 3)] * 5)
            after = await one.server_stats()
            of_both = await both.server_stats()
    between = after.since(before).admission
    assert (between.accepted_items, between.answered_items, between.refused_items) == (5, 5, 0)
    assert after.admission.items_in_flight == 0
    assert of_both.admission.accepted_items == 5
