"""The pipeline's work, done by worker processes: images, ready crops, and the embedders' batches.

What a worker had when it ended runs once more elsewhere, each row of a batch by itself. What crashes two workers, is
there when three are killed, or takes longer than its limit, is given up, and its bytes are refused for a while.
"""

import asyncio
import hashlib
import signal
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import numpy as np

from facenet_server.errors import DeviceLost, InternalError, TimedOut
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.batcher import Outputs, Part, Run, Runner, drop_abandoned
from facenet_server.serving.image_task import FoundFaces, ImageTask, ReadyCrop
from facenet_server.telemetry.counters import Stage, Stats
from facenet_server.telemetry.error_id import log_error
from facenet_server.vision.sources import DecodeLimits, Encoded
from facenet_server.workers import wire
from facenet_server.workers.channel import Header, arrays_of
from facenet_server.workers.pool import WorkerPool
from facenet_server.workers.worker import Job, WorkerDied

JOB_LIMIT_S, _LIMIT_S_A_ROW = 10.0, 0.5  # some ten times what they take
_OPENING_LIMIT_S = 60.0  # of an embedder that a worker has not opened
_REFUSED_S, _MOST_REFUSED = 600.0, 1024
_IN_THREAD_BYTES = 1 << 20  # more are hashed off the event loop


class Refusals:
    """Bytes that ended workers: refused for ten minutes. Only their SHA-256 is kept, and nothing of it is told.

    Those that ended one worker are under suspicion until they have run again: others that are alike wait for that.
    """

    def __init__(self) -> None:
        self._until: OrderedDict[_Key, tuple[float, str]] = OrderedDict()  # with the error's id
        self._suspects: dict[_Key, asyncio.Event] = {}

    def __bool__(self) -> bool:
        return bool(self._until or self._suspects)

    async def add(self, data: Any, error_id: str) -> None:
        """Refuse these from now on."""
        self._until[await _key(data)] = time.monotonic() + _REFUSED_S, error_id
        while len(self._until) > _MOST_REFUSED:
            self._until.popitem(last=False)

    async def check(self, data: Any) -> None:
        """Raises InternalError, of the id that was told at first, where they are refused; waits while they are under
        suspicion."""
        while await self.concern(data):
            key = await _key(data)
            if known := self._until.get(key):
                raise InternalError(known[1])
            if suspect := self._suspects.get(key):
                await suspect.wait()

    async def concern(self, data: Any) -> bool:
        """Whether they are refused, or under suspicion."""
        now = time.monotonic()
        while self._until and next(iter(self._until.values()))[0] < now:
            self._until.popitem(last=False)
        n_bytes = memoryview(data).nbytes
        if not any(size == n_bytes for size, _ in (*self._until, *self._suspects)):
            return False
        key = await _key(data)
        return key in self._until or key in self._suspects

    @asynccontextmanager
    async def suspected(self, data: Any) -> AsyncIterator[None]:
        """Meanwhile they run again."""
        key = await _key(data)
        while suspect := self._suspects.get(key):  # others that are alike, in a worker that ended, too
            await suspect.wait()
        if known := self._until.get(key):
            raise InternalError(known[1])
        self._suspects[key] = asyncio.Event()
        try:
            yield
        finally:
            self._suspects.pop(key).set()


_Key = tuple[int, bytes]  # how many bytes, and their SHA-256


async def _key(data: Any) -> _Key:
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
        self._blaming: set[asyncio.Future[Exception]] = set()
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
        """Nothing to do: batches take turns with images that have not begun."""
        return nullcontext()

    async def _done(self, header: Header, data: bytes, pixels: int) -> tuple[Header, Any]:
        limit_s, since_ns = self._limit_s * (1 + pixels / 1e7), time.monotonic_ns()
        while True:  # until it is not refused once there is a place for it
            await self._refusals.check(data)
            job = await self._pool.reserve(begins=True, pixels=pixels)
            if not (self._refusals and await self._refusals.concern(data)):
                break
            job.worker.give_up(job)
        self._stage.queue_ns += time.monotonic_ns() - since_ns
        try:
            return await self._once(job, header, data, limit_s)
        except WorkerDied as error:
            died = error
        async with self._refusals.suspected(data):
            n_ended = 1
            while runs_again(died, n_ended, self._n_attempts):
                self._pool.counts.jobs_run_again += 1
                try:
                    return await self._once(await self._pool.reserve(is_alone=True), header, data, limit_s)
                except WorkerDied as error:
                    died, n_ended = error, n_ended + 1
            raise await given_up(self._pool, self._refusals, data, died)

    async def _once(self, job: Job, header: Header, data: bytes, limit_s: float) -> tuple[Header, Any]:
        """In one worker. It is under way until the worker says so, or ends, whether the caller waits for it or not."""
        self._stage.begin()
        job.answer.add_done_callback(lambda _: self._stage.end())
        try:
            return await self._pool.ask(job, header, [data], limit_s)
        except asyncio.CancelledError:
            job.answer.add_done_callback(lambda _: self._blame(job, data))
            raise

    def _blame(self, job: Job, data: bytes) -> None:
        """Refuse what nobody waits for any more, where it took too long all the same."""
        if job.is_slow:
            slow = given_up(self._pool, self._refusals, data, WorkerDied(0, was_slow=True))
            self._blaming.add(task := asyncio.ensure_future(slow))
            task.add_done_callback(self._blaming.discard)


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
        refused: dict[int, Exception] = {}
        if self._refusals and await self._concern(rows):
            self.give_back(place)  # whatever is under suspicion needs one to run again
            refused = await self._refused(rows)
            place = await self._pool.reserve()
        left = [some for number, some in enumerate(rows) if number not in refused]
        found, compute_ns = list[Outputs | Exception](), 0
        if not left:
            self.give_back(place)
        else:
            try:
                found, compute_ns = await self._embed(place, left)
            except WorkerDied as died:
                since_ns = time.monotonic_ns()
                parts = [part for number, part in enumerate(batch) if number not in refused]
                found = list(await asyncio.gather(*(self._row_by_row(part, died) for part in parts)))
                compute_ns = time.monotonic_ns() - since_ns
        answers = iter(found)
        outcomes = [refused[number] if number in refused else next(answers) for number in range(len(rows))]
        end_ns = time.monotonic_ns()
        return Run(outcomes, end_ns - compute_ns, end_ns)

    async def _concern(self, rows: Sequence[Any]) -> bool:
        return any([await self._refusals.concern(row) for some in rows for row in some])

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

    async def _row_by_row(self, part: Part, died: WorkerDied) -> Outputs | Exception:
        """One call's rows, each by itself, after the worker that had them ended."""
        rows = part.inputs[0]
        found = await asyncio.gather(*(self._row(row, part, died) for row in rows), return_exceptions=True)
        vectors = list[Any]()
        for one in found:
            if isinstance(one, Exception):
                return one
            vectors.append(one)
        return (np.concatenate(vectors),)

    async def _row(self, row: Any, part: Part, died: WorkerDied) -> Any:
        row = np.ascontiguousarray(row)
        async with self._refusals.suspected(row):
            n_ended = 1
            while runs_again(died, n_ended, self._n_attempts):
                place = await self._pool.reserve(is_alone=True)
                if part.outputs.done() or part.deadline < asyncio.get_running_loop().time():
                    self.give_back(place)
                    raise TimedOut
                self._pool.counts.jobs_run_again += 1
                try:
                    (outcome,), _ = await self._embed(place, [row[np.newaxis]])
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
    if died.exit_code == wire.EXIT_LOST:
        return DeviceLost()
    pool.counts.jobs_given_up += 1
    how = "took longer than its limit" if died.was_slow else "ended the workers that had it"
    error_id = log_error(f"a job {how}: its bytes are refused for {_REFUSED_S:g} s", died)
    await refusals.add(data, error_id)
    return InternalError(error_id)
