"""The worker processes: who gets the next job, and what becomes of them when one ends."""

import asyncio
import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Self

from facenet_server.config import Config
from facenet_server.errors import ItemError, StartError
from facenet_server.models.contract import ModelInfo, info_of
from facenet_server.telemetry.counters import Stats, WorkerCounts
from facenet_server.workers import wire
from facenet_server.workers.channel import Header
from facenet_server.workers.worker import Job, Worker, WorkerDied, shown_exit

COMMAND = (sys.executable, "-m", "facenet_server.workers.process")

_START_LIMIT_S = 180.0
_LOOK_S = 0.5  # at the workers' hearts
_NONE_S = 5.0  # without any worker
_END_S = 2.0
_YOUNG_S = 5.0
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.5, 30.0  # between starts, where workers end as soon as they are there
_LARGE_PIXELS = 2_000_000  # of an image: some tenth of a second's work
_LESS = 4  # times: what may be done beside something larger
_ON_CUDA_AT_ONCE = 4  # jobs of a worker: decoding goes on while the device computes

_log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """Whoever waits for a place: for a job on an image of so many pixels, and whether with nothing beside it."""

    place: "asyncio.Future[Job]"
    pixels: int
    is_alone: bool


class WorkerPool:
    """``n_workers`` processes that do jobs, and one that stands by for any of them that ends.

    A job goes to whoever is free; what goes on with something begun and what begins something take turns. A worker has
    one job, and a second where that is far smaller than an image that is large. The jobs share ``n_cores``: a lone one
    may use them all. ``command`` starts a worker; ``on_lost`` is called where every worker loses the device.
    """

    def __init__(
        self,
        config: Config,
        n_workers: int,
        n_cores: int,
        stats: Stats,
        *,
        command: Sequence[str] = COMMAND,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._config = config
        self.n_workers = n_workers
        self._n_cores = n_cores
        self._stats = stats
        self._command = command
        self._on_lost = on_lost
        self.counts = WorkerCounts()
        stats.workers, stats.worker_pids = self._counted, lambda: self.pids
        self.worker_bytes = 0  # of memory that one has for itself once it is ready: the most seen
        self._numbers = itertools.count(1)
        self._active: list[Worker] = []
        self._spare: Worker | None = None
        self._starting: dict[asyncio.Task[None], Worker | None] = {}
        self._files: Sequence[str] = ()  # that each worker opens at its start
        self._at_once = 1
        self._going_on: deque[_Waiting] = deque()
        self._beginning: deque[_Waiting] = deque()
        self._is_beginnings_turn = False  # where both wait
        self._young_ends = 0  # workers that ended as soon as they were there, since a job was last done
        self._lost = 0  # the same, for want of their device
        self._had_one_s = time.monotonic()
        self._is_closing = False
        self._hearts: asyncio.Task[None] | None = None

    # ---- its life ----

    async def verify(self) -> tuple[list[ModelInfo], list[str]]:
        """Start the workers, and have the first open every model: what they are, and ONNX Runtime's providers. Raises
        StartError."""
        try:
            for _ in range(self.n_workers):
                self._active.append(self._new())
        except OSError as error:
            raise StartError(
                f"cannot start {self.n_workers} worker processes: {error}; try fewer (--workers)"
            ) from error
        self._hearts = asyncio.create_task(self._watch_hearts())
        answer = await self._ask_at_start(self._active[0], {"op": "verify"})
        return [info_of(values) for values in answer["infos"]], answer["providers"]

    async def open(self, files: Iterable[str], n_workers: int, *, on_cuda: bool = False) -> None:
        """Have so many workers open the files of these SHA-256; the spare one starts. Raises StartError."""
        surplus, self._active = self._active[n_workers:], self._active[:n_workers]
        await asyncio.gather(*(worker.end(_END_S) for worker in surplus))
        self._files, self.n_workers = list(files), n_workers
        self._at_once = _ON_CUDA_AT_ONCE if on_cuda else 1
        await asyncio.gather(*(self._open(worker) for worker in self._active))
        self._refill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all workers. Nothing is asked of them any more."""
        self._is_closing = True
        workers = [*self._active, self._spare, *self._starting.values()]
        tasks = [task for task in (*self._starting, self._hearts) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(worker.end(_END_S) for worker in workers if worker is not None))
        for waiting in (*self._going_on, *self._beginning):
            waiting.place.cancel()

    def can_serve(self) -> bool:
        """Whether there is a worker, or was a moment ago."""
        return bool(self._active) or time.monotonic() - self._had_one_s < _NONE_S

    def _counted(self) -> WorkerCounts:
        return replace(self.counts, working=len(self._active), standing_by=int(self._spare is not None))

    @property
    def pids(self) -> list[int]:
        """Of all workers that work, and of the spare one."""
        return [worker.process.pid for worker in (*self._active, self._spare) if worker is not None]

    # ---- jobs ----

    async def reserve(self, *, begins: bool = False, pixels: int = 0, is_alone: bool = False) -> Job:
        """A place in the next free worker, for a job on an image of so many pixels, or on none; in one that has nothing
        else to do where the job ``is_alone``. Whoever gets it asks its worker, or gives it up."""
        place: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        (self._beginning if begins else self._going_on).append(_Waiting(place, pixels, is_alone))
        self._dispatch()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                job = place.result()
                job.worker.give_up(job)
            raise

    async def ask(self, job: Job, header: Header, pieces: Sequence[Any], limit_s: float) -> tuple[Header, Any]:
        """What its worker answers, whose ItemError is raised. Raises WorkerDied."""
        answer, payload = await job.worker.ask(job, header, pieces, limit_s=limit_s)
        self._young_ends = self._lost = 0
        return _checked(answer), payload

    def _dispatch(self) -> None:
        """Give places to those who wait for them. Where both wait, what goes on and what begins take turns: batches
        take all crops that wait, so that they keep up with the images, and a stream of crops holds up no image."""
        while self._going_on or self._beginning:
            begins = not self._going_on or (self._is_beginnings_turn and bool(self._beginning))
            if self._going_on and self._going_on[0].is_alone:
                begins = False  # or others would take each place before a worker has nothing else
            queue = self._beginning if begins else self._going_on
            if queue[0].place.done():
                queue.popleft()
            elif worker := self._free_for(queue[0]):
                self._is_beginnings_turn = not begins
                self._give(queue.popleft(), worker)
            else:
                self._dispatch_small()
                break
        self._share_threads()

    def _dispatch_small(self) -> None:
        """Where every worker is busy: what is far smaller than a large image can be done beside it."""
        for waiting in list(self._beginning):
            if not waiting.place.done() and (worker := self._free_for(waiting, beside=True)):
                self._beginning.remove(waiting)
                self._give(waiting, worker)

    def _give(self, waiting: "_Waiting", worker: Worker) -> None:
        job = Job(worker, waiting.pixels, is_alone=waiting.is_alone)
        worker.jobs.add(job)
        waiting.place.set_result(job)

    def _free_for(self, waiting: "_Waiting", *, beside: bool = False) -> Worker | None:
        """A worker for a job; ``beside``: only one that has a large image."""
        open_to_others = [worker for worker in self._active if not any(job.is_alone for job in worker.jobs)]
        idlest = min(open_to_others, key=lambda worker: len(worker.jobs), default=None)
        if idlest is None or waiting.is_alone:
            return None if idlest is None or idlest.jobs else idlest
        if not beside and len(idlest.jobs) < self._at_once:
            return idlest
        for worker in open_to_others:
            pixels = [job.pixels for job in worker.jobs]
            if len(pixels) == 1 and pixels[0] >= max(_LARGE_PIXELS, _LESS * waiting.pixels):
                return worker
        return None

    def _share_threads(self) -> None:
        """Tell the workers how many threads a job may use: those that no other job is there for."""
        busy = [worker for worker in self._active if worker.jobs]
        n_jobs = sum(len(worker.jobs) for worker in busy) + len(self._going_on) + len(self._beginning)
        for worker in busy:
            worker.board.n_threads = max(1, self._n_cores - n_jobs + 1)

    def _on_idle(self, answer: Header) -> None:
        self._stats.add(answer.get("stages", ()))
        self._dispatch()

    # ---- starts and ends ----

    def _new(self) -> Worker:
        return Worker(next(self._numbers), self._command, self._on_idle, self._on_end)

    async def _ask_at_start(self, worker: Worker, header: Header) -> Header:
        """Raises StartError, also where the worker ends."""
        job = Job(worker)
        worker.jobs.add(job)
        header = {**header, "config": wire.config_header(self._config)}
        try:
            answer, _ = await worker.ask(job, header, limit_s=_START_LIMIT_S)
            return _checked(answer)
        except WorkerDied as died:
            raise StartError(f"a worker process ended while it started ({died}); the log may tell why") from died
        except ItemError as error:
            raise StartError(f"a worker process cannot start: {error}") from error

    async def _open(self, worker: Worker) -> None:
        answer = await self._ask_at_start(worker, {"op": "open", "files": self._files})
        worker.ready_s = time.monotonic()
        worker.files.update(self._files)
        self.worker_bytes = max(self.worker_bytes, answer["private_bytes"])

    def _on_end(self, worker: Worker, exit_code: int) -> None:
        """A worker has gone, unasked: the spare one takes its place, and another one starts."""
        if self._is_closing:
            return
        self.counts.ended += 1
        self._young_ends += worker.ready_s is not None and worker.age_s < _YOUNG_S
        self._lost = self._lost + 1 if exit_code == wire.EXIT_LOST else 0
        _log.warning("worker %d ended (%s) with %d jobs", worker.number, shown_exit(exit_code), len(worker.jobs))
        if worker is self._spare:
            self._spare = None
        elif worker in self._active and self._files:
            self._active.remove(worker)
            self._had_one_s = time.monotonic()
            if self._spare is not None:
                self._active.append(self._spare)
                self._spare = None
        if self._lost > self.n_workers:
            self._on_lost()
        if self._files:
            self._refill()
            self._dispatch()

    def _refill(self) -> None:
        """Start as many workers as are missing."""
        there = len(self._active) + (self._spare is not None) + len(self._starting)
        for _ in range(self.n_workers + 1 - there):
            task = asyncio.create_task(self._start_one())
            self._starting[task] = None
            task.add_done_callback(self._started)

    async def _start_one(self) -> None:
        """Another worker, after a pause where workers end as soon as they are there."""
        if (ends := self._young_ends - self.n_workers) > 0:
            await asyncio.sleep(min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(ends, 10)))
        task = asyncio.current_task()
        assert task is not None
        worker = self._starting[task] = self._new()
        try:
            await self._open(worker)
        except StartError as error:
            self._young_ends += 1
            _log.error("a worker cannot start: %s", error)
            await worker.end(0)
            return
        self._starting[task] = None
        if len(self._active) < self.n_workers:
            self._active.append(worker)
            self._dispatch()
        else:
            self._spare = worker

    def _started(self, task: "asyncio.Task[None]") -> None:
        del self._starting[task]
        if not self._is_closing and not task.cancelled():
            if error := task.exception():
                _log.error("a worker cannot start: %r", error)
                self._young_ends += 1
            self._refill()

    async def _watch_hearts(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for worker in (*self._active, self._spare, *self._starting.values()):
                if worker is not None:
                    with suppress(ValueError):  # it has just been cleared away
                        worker.check_heart()


def _checked(answer: Header) -> Header:
    """Raises what it says of itself: an ItemError, or StartError."""
    if "error" in answer:
        raise wire.error_of(answer["error"])
    if "start_error" in answer:
        raise StartError(answer["start_error"])
    return answer
