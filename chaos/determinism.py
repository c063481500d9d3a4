"""An item's answer, whatever company it has: alone, in messages of many, beside other callers, after a restart."""

import asyncio
import random
import signal
from collections.abc import Sequence
from typing import NamedTuple

import grpc
import numpy as np
from facenet_proto.v1 import face_pb2 as pb

from chaos.drivers import channels, one_message, read
from chaos.process import Server
from chaos.real import generated_crop, generated_image
from chaos.report import Report
from chaos.stub import Behaviour

_CALLERS = 32
_MOST_ITEMS = 32  # of a message
_OPTIONS = pb.EmbedOptions(detect=pb.DetectOptions(min_face_px=40))


class _Answer(NamedTuple):
    """An item's boxes (N, 4), px, and embeddings (N, D); a crop has one embedding and no box."""

    boxes: np.ndarray
    embeddings: np.ndarray


class _Off(NamedTuple):
    """How far answers are from those alone, at most; and how many are no such answers at all."""

    embedding: float
    box_px: float
    others: int


async def same_in_company(*, crops: int, images: int, models: str = "") -> Report:
    """T28: generated crops and images, each alone, then in messages of 1 to 32, then from 32 callers at once, and in
    messages again once the server was restarted."""
    report, items = Report(), [_item(n, n < images) for n in range(crops + images)]
    order = list(range(len(items)))
    async with Server(Behaviour({"max_batch_rows": 64}, models, batch_s=0.001, core=-1, photos=True)) as server:
        alone = await _ask(server, items, [[[n] for n in order]])
        random.shuffle(order)
        batched = await _ask(server, items, [_cut(order)])
        shares = [order[n::_CALLERS] for n in range(_CALLERS)]
        crowded = await _ask(server, items, [[[n] for n in share] for share in shares])
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait, 30)
        await asyncio.to_thread(server.start)
        random.shuffle(order)
        restarted = await _ask(server, items, [_cut(order[n::4]) for n in range(4)])
    faces = sum(len(answer.boxes) for answer in alone.values())
    report.note = f"{crops} crops, {images} images with {faces} faces"
    report.least("answered alone", len(alone), len(items))
    if models:
        report.least("faces", faces, images)
    for name, answers in (("in messages", batched), ("32 callers", crowded), ("after a restart", restarted)):
        off = _off(alone, answers)
        report.most(f"{name}: embeddings off by, at most", off.embedding, 1e-5)
        report.most(f"{name}: boxes off by, px at most", off.box_px, 0.01)
        report.most(f"{name}: not answered, or other faces", off.others, 0)
    return report


def _item(number: int, is_image: bool) -> pb.EmbedItem:
    pixels = generated_image(number) if is_image else generated_crop(number)
    image = pb.Image(raw=pb.RawImage(rgb=pixels.tobytes(), height=pixels.shape[0], width=pixels.shape[1]))
    return pb.EmbedItem(image=image) if is_image else pb.EmbedItem(crop=image)


def _cut(order: Sequence[int]) -> list[list[int]]:
    """Into messages of 1 to 32 items."""
    messages, start = [], 0
    while start < len(order):
        size = random.randint(1, _MOST_ITEMS)
        messages.append(list(order[start : start + size]))
        start += size
    return messages


async def _ask(
    server: Server, items: Sequence[pb.EmbedItem], callers: Sequence[Sequence[Sequence[int]]]
) -> dict[int, _Answer]:
    """The answers, by item, to callers who each send their messages one after the other."""
    answers: dict[int, _Answer] = {}

    async def call(channel: grpc.aio.Channel, messages: Sequence[Sequence[int]]) -> None:
        method = one_message(channel)
        for message in messages:
            request = pb.EmbedRequest(items=[items[n] for n in message], options=_OPTIONS)
            response = await read(method(request.SerializeToString(), timeout=120))
            for number, result in zip(message, response.results if response is not grpc.aio.EOF else [], strict=False):
                if not result.HasField("error"):
                    answers[number] = _answer(result)

    async with channels(server.address, 4) as opened:
        await asyncio.gather(*(call(opened[n % 4], messages) for n, messages in enumerate(callers)))
    return answers


def _answer(result: pb.EmbedResult) -> _Answer:
    if result.HasField("embedding"):
        return _Answer(np.empty((0, 4)), np.frombuffer(result.embedding.vector, "<f4")[None])
    faces = result.detection.faces
    boxes = [(face.box.x1, face.box.y1, face.box.x2, face.box.y2) for face in faces]
    vectors = [np.frombuffer(face.embedding.vector, "<f4") for face in faces]
    return _Answer(np.array(boxes).reshape(-1, 4), np.array(vectors))


def _off(alone: dict[int, _Answer], answers: dict[int, _Answer]) -> _Off:
    """Not a number where nothing could be compared, or what was compared has one that is none."""
    same = [n for n in alone if n in answers and _shapes(answers[n]) == _shapes(alone[n])]
    embedding = _most([(answers[n].embeddings, alone[n].embeddings) for n in same])
    box_px = _most([(answers[n].boxes, alone[n].boxes) for n in same])
    return _Off(embedding, box_px, len(alone) - len(same))


def _shapes(answer: _Answer) -> list[tuple[int, ...]]:
    return [values.shape for values in answer]


def _most(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    off = [np.abs(a - b).max() if a.size else 0.0 for a, b in pairs]
    return float(np.max(off or [np.nan]))  # Python's own max passes over what is not a number
