"""The server's pipeline without a server around it: built as the server builds it, called from synchronous code."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from facenet_server.build import open_in_process
from facenet_server.config import Config
from facenet_server.models.contract import ModelInfo
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.pipeline import ByteBudget, Pipeline
from facenet_server.telemetry.counters import Stats
from facenet_server.vision.options import DetectOptions, EmbedOptions
from facenet_server.vision.sources import Encoded, Raw
from numpy.typing import NDArray

from benchmarks.workers.protocol import StageTimes

T = TypeVar("T")


class InProcess:
    """The pipeline of a configuration, on an event loop that runs while it is called."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stats = Stats()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._pipeline: Pipeline
        self._infos: Sequence[ModelInfo]

    def __enter__(self) -> Self:
        opened = self._run(self._stack.enter_async_context(open_in_process(self._config, self._stats)))
        self._pipeline, self._infos = opened.pipeline, opened.infos
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stack.aclose())
        self._runner.close()

    @property
    def embedders(self) -> Sequence[str]:
        """The embedders by name."""
        return [info.name for info in self._infos if info.kind == "embedder"]

    def detect(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """One image's faces, (N, 5) boxes and scores."""
        found = self._run(self._pipeline.detect(_raw(image), DetectOptions(), ByteBudget(0), BatchBarrier(1)))
        return np.column_stack([found.faces.boxes, found.faces.scores])

    def detect_encoded(self, photos: Sequence[bytes], at_once: int) -> None:
        """All the image files, so many on the way at a time."""
        self._run(self._detect_encoded(photos, at_once))

    def embed_encoded(self, photos: Sequence[bytes], at_once: int, model: str) -> None:
        """The same, with the embeddings of their faces."""
        self._run(self._embed_encoded(photos, at_once, EmbedOptions(model=model)))

    def embed(self, model: str, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, dimension) of ready crops, as one message brings them."""
        return self._run(self._embed(EmbedOptions(model=model), crops))

    def stages(self) -> StageTimes:
        """What the server counts of its stages so far."""
        return {stage.name: (stage.rows, stage.compute_ns) for stage in self._stats}

    async def _detect_encoded(self, photos: Sequence[bytes], at_once: int) -> None:
        left = iter(photos)

        async def work() -> None:
            for photo in left:
                await self._pipeline.detect(Encoded(photo), DetectOptions(), ByteBudget(0), BatchBarrier(1))

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def _embed_encoded(self, photos: Sequence[bytes], at_once: int, options: EmbedOptions) -> None:
        left = iter(photos)

        async def work() -> None:
            for photo in left:
                await self._pipeline.embed(Encoded(photo), options, ByteBudget(0), BatchBarrier(1))

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def _embed(self, options: EmbedOptions, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = await asyncio.gather(*(self._pipeline.embed_crop(_raw(crop), options) for crop in crops))
        return np.stack([answer.vector for answer in answers])

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.get_loop().run_until_complete(coroutine)


def _raw(pixels: NDArray[np.uint8]) -> Raw:
    """Pixels as a message brings them, but not copied."""
    height, width, _ = pixels.shape
    return Raw(memoryview(pixels).cast("B"), height, width)  # type: ignore[arg-type]  # numpy views it like bytes
