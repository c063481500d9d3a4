"""A caller that goes, at each point of its item's way, in each way of going: what it had is free, and its neighbours'
answers are theirs."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import nets
import numpy as np
import pytest
from calls import until
from facenet_proto.v1 import face_pb2 as pb
from facenet_proto.v1.face_pb2_grpc import FaceServiceStub
from facenet_server.admission.limits import Counts
from facenet_server.rpc.stream import Stream
from nets import crop, embed, fake_service, square

OCCUPANT, SIBLING, VICTIM, UNREAD = 10, 20, 30, 40  # their crops' shades
_DEADLINE_S = 1.0

_SENDER = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    data = file.read()
messages = [data[start : start + len(data) // 2] for start in (0, len(data) // 2)][: int(sys.argv[3])]
def endless():
    yield from messages
    import threading
    threading.Event().wait()
for _ in channel.stream_stream("/facenet.v1.FaceService/Embed")(endless()):
    pass
"""


class StepNet:
    """The fake embedder, one batch at a step; it remembers the shades of each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._steps = threading.Semaphore(0)

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        self.batches.append(sorted(rows[:, 0, 0, 0].tolist()))
        assert self._steps.acquire(timeout=10)
        return embed(rows)

    def step(self, count: int = 1) -> None:
        """Let so many batches through."""
        self._steps.release(count)


@dataclass
class Scene:
    """A server, what it counts, and a caller about to go; answers are written once ``writes`` is set."""

    net: StepNet
    counts: Counts
    target: str
    writes: asyncio.Event
    victim: Any = None
    channel: Any = None
    sender: "subprocess.Popen[bytes] | None" = None


def message(shade: int) -> bytes:
    pixels = crop(shade, shade, shade).tobytes()
    image = pb.Image(raw=pb.RawImage(rgb=pixels, height=160, width=160))
    return pb.EmbedRequest(id=shade, items=[pb.EmbedItem(crop=image)]).SerializeToString()


def picture() -> bytes:
    """A message of an image with one face."""
    pixels = square()
    image = pb.Image(raw=pb.RawImage(rgb=pixels.tobytes(), height=pixels.shape[0], width=pixels.shape[1]))
    return pb.EmbedRequest(items=[pb.EmbedItem(image=image)]).SerializeToString()


@asynccontextmanager
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """Answers are held back before they are written, until ``writes`` is set."""
    net, writes, write = StepNet(), asyncio.Event(), Stream._write

    async def later(self: Stream, answer: Any) -> bool:
        await writes.wait()
        return await write(self, answer)

    monkeypatch.setattr(Stream, "_write", later)
    async with fake_service({"steps": net}, max_batch_rows=8, max_items_per_stream=1) as (target, service):
        made = Scene(net, service.admission.counts, target, writes)
        try:
            yield made
        finally:
            net.step(100)
            writes.set()
            if made.sender is not None:
                made.sender.kill()
                made.sender.wait()
            if made.channel is not None:
                await made.channel.close()


# ---- ways to go ----


async def cancel(scene: Scene) -> None:
    scene.victim.cancel()


async def wait_for_the_deadline(scene: Scene) -> None:
    assert await scene.victim.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def close(scene: Scene) -> None:
    await scene.channel.close()


async def half_close(scene: Scene) -> None:
    await scene.victim.done_writing()


async def kill(scene: Scene) -> None:
    assert scene.sender is not None
    scene.sender.kill()


async def send(scene: Scene, go: Any, messages: list[bytes], folder: Any) -> None:
    """The victim's messages, from a process of its own where it is to be killed."""
    if go is kill:
        (folder / "messages").write_bytes(b"".join(messages) if len(messages) == 2 else messages[0] * 2)
        command = [sys.executable, "-c", _SENDER, scene.target, str(folder / "messages"), str(len(messages))]
        scene.sender = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 (it returns at once)
        return
    scene.channel = grpc.aio.insecure_channel(scene.target, options=[("grpc.use_local_subchannel_pool", 1)])
    method = scene.channel.stream_stream(
        "/facenet.v1.FaceService/Embed", response_deserializer=pb.EmbedResponse.FromString
    )
    scene.victim = method(timeout=_DEADLINE_S if go is wait_for_the_deadline else None)
    for each in messages:
        await scene.victim.write(each)


# ---- points of the way: from where the victim and its sibling wait for the occupant's batch ----


async def unread(scene: Scene) -> None:
    """The victim's second message lies on the way."""


async def queued(scene: Scene) -> None:
    """The victim's row waits for a run."""


async def in_batch(scene: Scene) -> None:
    scene.net.step()
    await until(lambda: scene.net.batches == [[OCCUPANT], [SIBLING, VICTIM]])


async def before_write(scene: Scene) -> None:
    scene.net.step(2)
    await until(lambda: len(scene.net.batches) == 2)
    await asyncio.sleep(0.05)  # its answer is on its way to the writer


Go = Callable[[Scene], Awaitable[None]]
WAYS = [cancel, wait_for_the_deadline, close, half_close, kill]


@pytest.mark.parametrize("go", WAYS)
@pytest.mark.parametrize("point", [unread, queued, in_batch, before_write])
async def test_a_caller_that_goes_leaves_nothing_and_harms_nobody(
    point: Go, go: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    async with scene(monkeypatch) as at, grpc.aio.insecure_channel(at.target) as channel:
        stub: Any = FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        occupant, sibling = stub.Embed(), stub.Embed()
        await occupant.write(pb.EmbedRequest.FromString(message(OCCUPANT)))
        await until(lambda: at.net.batches == [[OCCUPANT]])
        shades = [VICTIM, UNREAD] if point is unread else [VICTIM]
        await send(at, go, [message(shade) for shade in shades], tmp_path)
        await sibling.write(pb.EmbedRequest.FromString(message(SIBLING)))
        await until(lambda: at.counts.accepted_items == 3)
        await point(at)
        await go(at)
        if go is not half_close:
            await until(lambda: at.counts.streams == 2)
            assert (at.counts.items_in_flight, at.counts.abandoned_items) == (2, 1)
        at.net.step(100)
        at.writes.set()
        if go is half_close:
            assert [answer.id async for answer in at.victim] == shades
            assert await at.victim.code() is grpc.StatusCode.OK
        for call, shade in ((occupant, OCCUPANT), (sibling, SIBLING)):
            vector = np.frombuffer((await call.read()).results[0].embedding.vector, "<f4")
            np.testing.assert_array_equal(vector, embed(crop(shade, shade, shade)[None])[0][0])
            await call.done_writing()
        await until(lambda: at.counts.streams == 0)
        ran = {shade for batch in at.net.batches for shade in batch}
        left_early = go is not half_close and point in (unread, queued)
        assert ran == {OCCUPANT, SIBLING} | (set() if left_early else set(shades))
        assert at.counts.items_in_flight == at.counts.bytes_in_flight == 0
        assert at.counts.accepted_items == at.counts.answered_items + at.counts.abandoned_items


@pytest.mark.parametrize("go", WAYS)
async def test_a_caller_that_goes_while_its_image_is_searched_leaves_nothing(
    go: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    searched, search_on, pnet = threading.Event(), threading.Event(), nets.pnet

    def held(levels: np.ndarray) -> Any:
        searched.set()
        assert search_on.wait(10)
        return pnet(levels)

    monkeypatch.setattr(nets, "pnet", held)
    async with scene(monkeypatch) as at, grpc.aio.insecure_channel(at.target) as channel:
        at.net.step(100)
        at.writes.set()
        await send(at, go, [picture()], tmp_path)
        assert await asyncio.to_thread(searched.wait, 10)
        await go(at)
        if go is not half_close:
            await until(lambda: at.counts.streams == 0)
            assert at.counts.abandoned_items == 1
        search_on.set()
        if go is half_close:
            assert [len(answer.results[0].detection.faces) async for answer in at.victim] == [1]
        stub: Any = FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        other = stub.Embed()
        await other.write(pb.EmbedRequest.FromString(picture()))
        assert len((await other.read()).results[0].detection.faces) == 1
        await other.done_writing()
        await until(lambda: at.counts.streams == 0)
        assert at.counts.items_in_flight == at.counts.bytes_in_flight == 0
        assert len(at.net.batches) == (2 if go is half_close else 1)
