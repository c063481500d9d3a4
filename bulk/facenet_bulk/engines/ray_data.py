"""A Ray cluster: shards by number go to a pool of actors of Ray Data, each with a worker process beside it.

Photos are read where they are worked on, and parts are written there: what travels is a number, and a tally back.
"""

import asyncio
import atexit
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from facenet_server.models.contract import info_of

from facenet_bulk.engines import FORMATS, Done, OnImage, in_order, model_of
from facenet_bulk.engines.local import about
from facenet_bulk.engines.process import WorkerProcess
from facenet_bulk.errors import BulkError
from facenet_bulk.output import Model, Record
from facenet_bulk.table import Tally


class RayEngine:
    """Actors of a CPU each on the cluster at ``address`` (None: RAY_ADDRESS, one that runs here, or a new one), at most
    ``n_workers`` (None: as many as the cluster has CPUs), each with ``gpus`` of a GPU. Models, source and OUT have the
    same paths on all nodes."""

    def __init__(
        self,
        models: Path,
        device: str = "auto",
        n_workers: int | None = None,
        image_formats: str = FORMATS,
        *,
        address: str | None = None,
        gpus: float = 0.0,
    ) -> None:
        if device == "cuda" and not gpus:
            raise BulkError("--device cuda needs --gpus-per-worker: Ray gives an actor no GPU that it does not ask for")
        self.image_formats = in_order(image_formats.split(","))
        self._setup = {
            "models": str(models.absolute()),
            "device": device if gpus else "cpu",
            "threads": 1,
            "image_formats": self.image_formats,
        }
        self._address, self._wanted, self._gpus = address, n_workers, gpus
        self.n_workers = 0
        self._is_ours = False

    def __enter__(self) -> Self:
        if not ray.is_initialized():
            ray.init(address=self._address, log_to_driver=True, logging_level="WARNING")
            self._is_ours = True
        there = ray.cluster_resources()
        most = there.get("GPU", 0.0) / self._gpus if self._gpus else there.get("CPU", 1.0)
        self.n_workers = self._wanted or max(1, int(min(most, there.get("CPU", 1.0))))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # the run has its own
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours:
            ray.shutdown()

    def model(self, name: str | None, precision: str | None) -> Model:
        """The embedder of this name in this precision. Raises BulkError."""
        told = ray.get(ray.remote(num_cpus=1)(_about).remote({**self._setup, "device": "cpu"}))
        if "error" in told:
            raise BulkError(told["error"])
        return model_of([info_of(info) for info in told["models"]], told["default"], name, precision)

    def shards(self, record: Record, out: str, numbers: Sequence[int], on_image: OnImage) -> Iterator[Done]:
        """Each of the shards once it is written, in any order. Raises BulkError."""
        setup = {**self._setup, "out": out, "record": record.to_dict()}
        listed = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
        pool = ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=self.n_workers,
            initial_size=min(self.n_workers, len(numbers)),
            max_tasks_in_flight_per_actor=1,  # or a shard would wait behind another one while others are idle
        )
        done = listed.map_batches(
            ShardActor,
            fn_constructor_args=(setup,),
            batch_size=1,
            compute=pool,
            num_cpus=1,
            num_gpus=self._gpus,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise BulkError(row["error"])
            tally = Tally(**json.loads(row["tally"]))
            on_image(tally.images - tally.n_failed, "")
            for reason, count in tally.failed.items():
                on_image(count, reason)
            yield Done(int(row["shard"]), tally)


class ShardActor:
    """An actor: Ray makes it again where its node goes, and its worker process ends with it."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self._runner = asyncio.Runner()
        self._worker = WorkerProcess(setup)
        atexit.register(self._end)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do the shards of these numbers. A run that cannot go on is told, not raised: Ray would try again."""
        told: dict[str, list[Any]] = {"shard": [], "tally": [], "error": []}
        for number in map(int, batch["shard"]):
            error, tally = "", Tally()
            try:
                tally = self._runner.run(self._worker.shard(number))
            except BulkError as failed:
                error = str(failed)
            for name, value in (("shard", number), ("tally", json.dumps(asdict(tally))), ("error", error)):
                told[name].append(value)
        return told

    def _end(self) -> None:
        self._runner.run(self._worker.end())
        self._runner.close()


def _about(setup: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return asyncio.run(about(setup))
    except BulkError as error:
        return {"error": str(error)}
