"""A fleet of servers, through the SDK: this process reads the images and writes the parts."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self

import numpy as np
from facenet_client import AsyncClient, Detection, TemporaryError

from facenet_bulk.engines import Done, OnImage, in_order, model_of
from facenet_bulk.engines.side_by_side import side_by_side
from facenet_bulk.output import Model, Output, Record
from facenet_bulk.shard import Image, rows_of
from facenet_bulk.table import Answer, Rows, Tally

_SHARDS_A_SERVER = 2  # at once: one begins while the other ends
_START_S, _WAIT_S = 10.0, 600.0  # for a server: at first, and where it was there before
_TRIES = 4  # of an image that may succeed another time


class ServerEngine:
    """Servers at ``targets``, which run the same models. ``settings`` are an AsyncClient's."""

    def __init__(self, targets: Sequence[str], n_workers: int | None = None, **settings: Any) -> None:
        self._client, self.image_formats = AsyncClient(targets, **settings), ""
        self.n_workers = n_workers or _SHARDS_A_SERVER * len(targets)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.run(self._client.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    def model(self, name: str | None, precision: str | None) -> Model:
        """The embedder of this name in this precision. Raises BulkError and CallError."""
        self._runner.run(self._client.wait_until_ready(_START_S))
        info = self._runner.run(self._client.server_info())
        self.image_formats = in_order(info.image_formats)
        return model_of(info.models, info.default_embedder, name, precision)

    def shards(self, record: Record, out: str, numbers: Sequence[int], on_image: OnImage) -> Iterator[Done]:
        """Each of the shards once it is written, in any order. Raises BulkError and CallError."""
        output, max_bytes = Output(out), self._runner.run(self._client.server_info()).limits["max_image_bytes"]
        listed = output.manifest()

        async def shard(number: int) -> Tally:
            rows = await self._rows(record, listed.shard(number), max_bytes, on_image)
            await asyncio.to_thread(output.write, number, rows, record)
            return rows.tally

        with closing(listed):
            yield from side_by_side(self._runner, numbers, [shard] * self.n_workers)

    async def _rows(self, record: Record, shard: Sequence[Any], max_bytes: int, on_image: OnImage) -> Rows:
        """A shard's rows; anew, where all servers go away and one comes back."""
        for left in reversed(range(_TRIES)):
            counts = Tally()

            async def embed(images: AsyncIterator[Image]) -> AsyncGenerator[tuple[Image, Answer]]:
                async with aclosing(self._answers(images, record)) as answers:
                    async for image, answer in answers:
                        counts.add(answer)  # noqa: B023 (it ends within this turn)
                        on_image(1, answer.reason)
                        yield image, answer

            try:
                return await rows_of(shard, record.source, embed, record.model.dimension, max_bytes)
            except TemporaryError:
                if not left:
                    raise
                on_image(-(counts.images - counts.n_failed), "")
                for reason, count in counts.failed.items():
                    on_image(-count, reason)
                await self._client.wait_until_ready(_WAIT_S)
        raise AssertionError("a try returns, or the last one raises")

    async def _answers(self, images: AsyncIterator[Image], record: Record) -> AsyncGenerator[tuple[Image, Answer]]:
        waiting, options = deque[Image](), {**record.options, "model": record.model.name}

        async def sent() -> AsyncIterator[bytes]:
            async for image in images:
                waiting.append(image)
                if image.failure is None:
                    yield image.data

        async with aclosing(self._client.embed_stream(sent(), **options)) as detections:  # type: ignore[type-var]
            async for detection in detections:
                while failure := waiting[0].failure:
                    yield waiting.popleft(), failure
                image = waiting.popleft()
                yield image, _answer(await self._again(image, detection, options))
        while waiting:
            image = waiting.popleft()
            assert image.failure
            yield image, image.failure

    async def _again(self, image: Image, detection: Detection, options: dict[str, Any]) -> Detection:
        """The answer, or another one where the same again may succeed."""
        for number in range(1, _TRIES):
            if not isinstance(detection.error, TemporaryError):
                break
            await asyncio.sleep(number)
            (detection,) = await self._client.embed([image.data], **options)
        return detection


def _answer(found: Detection) -> Answer:
    if found.error is not None:
        return Answer(reason=found.error.reason, message=str(found.error.args[0]))
    boxes = np.array([face.box for face in found.faces], np.float32).reshape(-1, 4)
    scores = np.array([face.score for face in found.faces], np.float32)
    landmarks = np.array([face.landmarks for face in found.faces], np.float32).reshape(-1, 5, 2)
    vectors = [face.embedding.vector for face in found.faces if face.embedding]
    about = (found.height, found.width, found.exif_orientation, found.damaged)
    return Answer(*about, boxes, scores, landmarks, np.stack(vectors) if vectors else None)
