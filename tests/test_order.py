"""What began first ends first: embeddings of many callers, on networks that wait to be let go."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from calls import until
from facenet_server.config import Config
from facenet_server.inference import work_limits
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.batched_detector import BatchedDetector, Nets
from facenet_server.serving.batcher import Batcher
from facenet_server.serving.compute import Compute
from facenet_server.serving.per_image_detector import PerImageDetector
from facenet_server.serving.pipeline import ByteBudget, Embedder, Pipeline
from facenet_server.telemetry.counters import Stats
from facenet_server.vision.options import CompareOptions, DetectOptions, EmbedOptions
from facenet_server.vision.sources import DecodeLimits, Raw
from nets import embed, onet, pnet, rnet, square

IMAGES = 40
METHODS: dict[str, Callable[[Pipeline, Raw], Any]] = {
    "embed": lambda pipeline, image: pipeline.embed(
        image, EmbedOptions(DetectOptions()), ByteBudget(0), BatchBarrier(1)
    ),
    "crops": lambda pipeline, image: pipeline.embed(
        image, EmbedOptions(DetectOptions(return_crops=True)), ByteBudget(1 << 30), BatchBarrier(1)
    ),
    "compare": lambda pipeline, image: pipeline.compare(image, image, CompareOptions(DetectOptions()), BatchBarrier(2)),
}


PIXELS = square()
IMAGE = Raw(PIXELS.tobytes(), *PIXELS.shape[:2])


@asynccontextmanager
async def serving(proposals: Any, embedding: Any, *, shared: bool) -> AsyncIterator[tuple[Pipeline, Compute]]:
    """A pipeline with one thread, where two crops with the embedder hold back further images."""
    config, stats = Config(), Stats()
    with Compute(1, stats, max_held_s=60.0, most_crops_ahead=2) as compute:
        async with (
            Batcher(rnet, 8, threads=compute.threads) as shared_rnet,
            Batcher(onet, 8, threads=compute.threads) as shared_onet,
            Batcher(embedding, 8, stage=stats.stage("embedder")) as embedder,
        ):
            limits = work_limits(config)
            one_by_one = PerImageDetector(proposals, rnet, onet, limits, compute)
            by_steps = BatchedDetector(Nets(proposals, shared_rnet, shared_onet), limits, compute)
            embedders = {"colour": Embedder(embedder, 4, None)}
            detector = by_steps if shared else one_by_one
            yield Pipeline(detector, embedders, "colour", DecodeLimits.of(config)), compute


@pytest.mark.parametrize("shared", [False, True], ids=["an image is one job", "steps of their own"])
async def test_no_image_begins_while_crops_of_others_wait_for_the_embedder(shared: bool) -> None:
    begun, let = threading.Semaphore(0), threading.Event()

    def counting_pnet(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        if rows.shape[1] == 72:  # as above
            begun.release()
        return pnet(rows)

    def held(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        let.wait(10)
        return embed(rows)

    async with serving(counting_pnet, held, shared=shared) as (pipeline, compute):
        tasks = [asyncio.create_task(METHODS["embed"](pipeline, IMAGE)) for _ in range(IMAGES)]
        await until(lambda: compute.threads.n_ahead >= 2)
        for _ in range(IMAGES):  # what goes on does; the thread looks each time whether an image may begin
            await compute("other", int)
        let.set()
        n_begun = sum(begun.acquire(blocking=False) for _ in range(IMAGES))
        await asyncio.gather(*tasks)
    assert n_begun < IMAGES / 2  # those two, and what began before their crops were with the embedder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shared", [False, True], ids=["an image is one job", "steps of their own"])
async def test_the_first_images_are_answered_before_the_last_ones_begin(method: str, shared: bool) -> None:
    begun: list[int] = []  # how many had begun, each time that one was answered
    count, lock = 0, threading.Lock()

    def counting_pnet(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        nonlocal count
        if rows.shape[1] == 72:  # the largest level: an image's first
            with lock:
                count += 1
        return pnet(rows)

    async with serving(counting_pnet, embed, shared=shared) as (pipeline, _):

        async def answered() -> None:
            await METHODS[method](pipeline, IMAGE)
            begun.append(count)

        await asyncio.gather(*(answered() for _ in range(IMAGES)))
    per_image = 2 if method == "compare" else 1
    assert count == IMAGES * per_image
    assert begun[0] < IMAGES * per_image / 2  # were they answered last in, last out: all of them
    assert begun[IMAGES // 2] < IMAGES * per_image
