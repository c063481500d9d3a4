"""This machine: worker processes of the server's own serving code, one a core."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from facenet_server.models.contract import info_of
from facenet_server.telemetry import process_memory
from facenet_server.telemetry.cgroups import usable_cores

from facenet_bulk.engines import FORMATS, Done, OnImage, in_order, model_of
from facenet_bulk.engines.process import COMMAND, IMAGE_LIMIT_S, WorkerProcess
from facenet_bulk.engines.side_by_side import side_by_side
from facenet_bulk.output import Model, Record

_WORKER_BYTES = 500_000_000  # of memory


class LocalEngine:
    """``n_workers`` processes on the models of a folder. None: one a core, with a GPU three for four cores, as far as
    memory goes."""

    def __init__(
        self,
        models: Path,
        device: str = "auto",
        n_workers: int | None = None,
        image_formats: str = FORMATS,
        *,
        command: Sequence[str] = COMMAND,
        image_limit_s: float = IMAGE_LIMIT_S,
    ) -> None:
        cores, self._is_given = usable_cores(), n_workers is not None
        self.image_formats = in_order(image_formats.split(","))
        memory_bytes = process_memory.usable_bytes() or cores * 2 * _WORKER_BYTES
        self.n_workers = n_workers or max(1, min(cores, memory_bytes // 2 // _WORKER_BYTES))
        self._setup = {
            "models": str(models.absolute()),
            "device": device,
            "threads": max(1, cores // self.n_workers),
            "image_formats": self.image_formats,
        }
        self._command, self._image_limit_s = command, image_limit_s
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()

    def model(self, name: str | None, precision: str | None) -> Model:
        """The embedder of this name in this precision. Raises BulkError."""
        told = self._runner.run(about(self._setup, self._command))
        if not self._is_given and any(name.startswith("CUDA") for name in told["providers"]):
            self.n_workers = max(1, 3 * self.n_workers // 4)
        return model_of([info_of(info) for info in told["models"]], told["default"], name, precision)

    def shards(self, record: Record, out: str, numbers: Sequence[int], on_image: OnImage) -> Iterator[Done]:
        """Each of the shards once it is written, in any order. Raises BulkError."""
        setup = {**self._setup, "out": out, "record": record.to_dict()}
        workers = [WorkerProcess(setup, on_image, self._command, self._image_limit_s) for _ in range(self.n_workers)]
        try:
            yield from side_by_side(self._runner, numbers, [worker.shard for worker in workers])
        finally:
            self._runner.run(_end(workers))


async def _end(workers: Sequence[WorkerProcess]) -> None:
    await asyncio.gather(*(worker.end() for worker in workers))


async def about(setup: Mapping[str, Any], command: Sequence[str] = COMMAND) -> dict[str, Any]:
    """What a models folder holds, by a process that opens all of it. Raises BulkError."""
    worker = WorkerProcess(setup, command=command)
    try:
        return await worker.about()
    finally:
        await worker.end()
