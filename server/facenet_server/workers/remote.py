"""The pipeline's work, done by worker processes: images, ready crops, and the embedders' batches.

What a worker had when it ended runs once more elsewhere, each row of a batch by itself. What crashes two workers, is
there when three are killed, or takes longer than its limit, is given up, and its bytes are refused for a while.
"""

import asyncio
import hashlib
import itertools
import signal
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from facenet_server.errors import DeviceLost, InternalError
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.batcher import Outputs, Part, Run, Runner, drop_abandoned
from facenet_server.serving.image_task import FoundFaces, ImageTask, ReadyCrop
from facenet_server.telemetry.counters import Stage, Stats
from facenet_server.telemetry.error_id import log_error
from facenet_server.vision.sources import DecodeLimits, Encoded
from facenet_server.workers import wire
from facenet_server.workers.channel import Header, arrays_of
from facenet_server.workers.pool import EXIT_LOST, WorkerPool
from facenet_server.workers.worker import Job, WorkerDied

JOB_LIMIT_S, _LIMIT_S_A_ROW = 10.0, 0.5  # some ten times what they take
_OPENING_LIMIT_S = 60.0  # of an embedder that a worker has not opened
_REFUSED_S, _MOST_REFUSED = 600.0, 1024
_IN_THREAD_BYTES = 1 << 20  # more are hashed off the event loop


class Refusals:
    """Bytes that ended workers: refused for ten minutes. Only their SHA-256 is kept, and nothing of it is told."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[int, bytes], tuple[float, str]] = OrderedDict()  # with the error's id

    def __len__(self) -> int:
        return len(self._until)

    async def add(self, data: Any, error_id: str) -> None:
        """Refuse these from now on."""
        self._until[await _key(data)] = time.monotonic() + _REFUSED_S, error_id
        while len(self._until) > _MOST_REFUSED:
            self._until.popitem(last=False)

    async def check(self, data: Any) -> None:
        """Raises InternalError, of the id that was told at first, where they are refused."""
        now = time.monotonic()
        while self._until and next(iter(self._until.values()))[0] < now:
            self._until.popitem(last=False)
        n_bytes = memoryview(data).nbytes
        if any(size == n_bytes for size, _ in self._until) and (known := self._until.get(await _key(data))):
            raise InternalError(known[1])


async def _key(data: Any) -> tuple[int, bytes]:
    n_bytes = memoryview(data).nbytes

    def digest() -> bytes:
        return hashlib.sha256(data).digest()

    return n_bytes, digest() if n_bytes <= _IN_THREAD_BYTES else await asyncio.to_thread(digest)


class RemoteWorkers:
    """Images and files of ready crops, as jobs of worker processes. ``n_attempts``: how many workers may end with a job
    until it is given up; ``limit_s``: how long a job may take, and as long again for each ten megapixels."""

    def __init__(
        self,
        pool: WorkerPool,
        stats: Stats,
        refusals: Refusals,
        n_attempts: int = 2,
        limit_s: float = JOB_LIMIT_S,
    ) -> None:
        self._limit_s = limit_s
        self._pool = pool
        self._stage: Stage = stats.stage("decode")
        self._refusals = refusals
        self._n_attempts = n_attempts

    async def find(self, task: ImageTask, barrier: BatchBarrier) -> FoundFaces:
        """The image's faces. Raises ItemError subclasses."""
        header = {"op": "find", "pixels": barrier.pixels, **wire.task_header(task)}
        return wire.found_of(*await self._done(header, wire.bytes_of(task.image), barrier.pixels))

    async def decode_crop(self, crop: Encoded, limits: DecodeLimits) -> ReadyCrop:
        """The pixels of a ready crop's file. Raises ItemError subclasses."""
        header = {"op": "decode", "image": wire.image_header(crop), "limits": wire.limits_header(limits)}
        return wire.crop_of(*await self._done(header, crop.data, 0))

    def crops_ahead(self, count: int) -> AbstractContextManager[None]:
        """Nothing to do: batches go before images that have not begun."""
        return nullcontext()

    async def _done(self, header: Header, data: bytes, pixels: int) -> tuple[Header, Any]:
        await self._refusals.check(data)
        limit_s, since_ns = self._limit_s * (1 + pixels / 1e7), time.monotonic_ns()
        with self._stage.at_work():
            for n_ended in itertools.count():
                job = await self._pool.reserve(begins=not n_ended, pixels=pixels)
                self._stage.queue_ns += 0 if n_ended else time.monotonic_ns() - since_ns
                try:
                    return await self._pool.ask(job, header, [data], limit_s)
                except WorkerDied as died:
                    if not runs_again(died, n_ended + 1, self._n_attempts):
                        raise await given_up(self._pool, self._refusals, data, died) from None
                self._pool.counts.jobs_run_again += 1
        raise AssertionError("a job ends")


class RemoteRunner(Runner):
    """Batches of one embedder, whose file has this SHA-256, as jobs of worker processes."""

    def __init__(self, pool: WorkerPool, file: str, refusals: Refusals, n_attempts: int = 2) -> None:
        self._pool = pool
        self._file = file
        self._refusals = refusals
        self._n_attempts = n_attempts

    async def reserve(self) -> Job:
        """A place in the next free worker."""
        return await self._pool.reserve()

    def give_back(self, place: Job | None) -> None:
        """Not needed."""
        if place is not None:
            place.worker.give_up(place)

    async def run(self, place: Job, batch: list[Part]) -> Run:
        """In its place; again, each row in one of its own, where the worker ends."""
        drop_abandoned(batch)
        rows = [np.ascontiguousarray(part.inputs[0]) for part in batch]
        refused = await self._refused(rows) if len(self._refusals) else {}
        left = [some for number, some in enumerate(rows) if number not in refused]
        found, compute_ns = list[Outputs | Exception](), 0
        if not left:
            self.give_back(place)
        else:
            try:
                found, compute_ns = await self._embed(place, left)
            except WorkerDied as died:
                since_ns = time.monotonic_ns()
                found = list(await asyncio.gather(*(self._row_by_row(some, died) for some in left)))
                compute_ns = time.monotonic_ns() - since_ns
        answers = iter(found)
        outcomes = [refused[number] if number in refused else next(answers) for number in range(len(rows))]
        end_ns = time.monotonic_ns()
        return Run(outcomes, end_ns - compute_ns, end_ns)

    async def _refused(self, rows: Sequence[Any]) -> dict[int, Exception]:
        refused: dict[int, Exception] = {}
        for number, some in enumerate(rows):
            try:
                for row in some:
                    await self._refusals.check(row)
            except InternalError as error:
                refused[number] = error
        return refused

    async def _embed(self, place: Job, calls: Sequence[Any]) -> tuple[list[Outputs | Exception], int]:
        counts = [len(rows) for rows in calls]
        shape = (sum(counts), *calls[0].shape[1:])
        header = {"op": "embed", "file": self._file, "counts": counts, "arrays": [(calls[0].dtype.str, shape)]}
        limit_s = JOB_LIMIT_S + sum(counts) * _LIMIT_S_A_ROW
        if self._file not in place.worker.files:
            limit_s += _OPENING_LIMIT_S
        answer, payload = await self._pool.ask(place, header, calls, limit_s)
        place.worker.files.add(self._file)
        vectors = iter(arrays_of(payload, answer["arrays"]))
        errors = {int(number): wire.error_of(error) for number, error in answer["errors"].items()}
        found: list[Outputs | Exception] = [
            errors[number] if number in errors else (next(vectors),) for number in range(len(calls))
        ]
        return found, answer["compute_ns"]

    async def _row_by_row(self, rows: Any, died: WorkerDied) -> Outputs | Exception:
        """One call's rows, each by itself, after the worker that had them ended."""
        found = await asyncio.gather(*(self._row(row[np.newaxis], died) for row in rows), return_exceptions=True)
        vectors = list[Any]()
        for one in found:
            if isinstance(one, Exception):
                return one
            vectors.append(one)
        return (np.concatenate(vectors),)

    async def _row(self, row: Any, died: WorkerDied) -> Any:
        n_ended = 1
        while runs_again(died, n_ended, self._n_attempts):
            self._pool.counts.jobs_run_again += 1
            try:
                (outcome,), _ = await self._embed(await self._pool.reserve(), [row])
            except WorkerDied as error:
                died, n_ended = error, n_ended + 1
            else:
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome[0]
        raise await given_up(self._pool, self._refusals, row, died)


def runs_again(died: WorkerDied, n_ended: int, n_attempts: int) -> bool:
    """Whether a job with which so many workers have ended runs once more. A worker that was killed, not crashed, is a
    weaker sign: the job may have taken its memory, or have nothing to do with it."""
    was_killed = died.exit_code == -signal.SIGKILL
    return not died.was_slow and n_ended < n_attempts + was_killed


async def given_up(pool: WorkerPool, refusals: Refusals, data: Any, died: WorkerDied) -> Exception:
    """What to tell of a job that workers ended with."""
    if died.exit_code == EXIT_LOST:
        return DeviceLost()
    pool.counts.jobs_given_up += 1
    how = "took longer than its limit" if died.was_slow else "ended the workers that had it"
    error_id = log_error(f"a job {how}: its bytes are refused for {_REFUSED_S:g} s", died)
    await refusals.add(data, error_id)
    return InternalError(error_id)
