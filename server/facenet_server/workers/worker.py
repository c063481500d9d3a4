"""One worker process as the server sees it: started, asked, listened to, and ended."""

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from facenet_server.workers.board import Board
from facenet_server.workers.channel import Channel, Header, Payload, packed

_SILENT_S = 2.0
_LINE_BYTES, _READ_BYTES, _LAST_READS = 1 << 16, 1 << 12, 32
_LEVELS = logging.getLevelNamesMapping()

_log = logging.getLogger("facenet_server.workers")


class WorkerDied(Exception):
    """A worker ended while it had a job. ``was_slow``: the job had taken longer than its limit; ``exit_code``: as
    ``subprocess`` tells it, a signal's number below 0."""

    def __init__(self, exit_code: int, *, was_slow: bool) -> None:
        super().__init__(shown_exit(exit_code))
        self.exit_code = exit_code
        self.was_slow = was_slow


class Job:
    """A place in a worker, and the answer that it is to give. ``pixels``: how large its image is; ``is_alone``: nothing
    is done beside it."""

    def __init__(self, worker: "Worker", pixels: int = 0, *, is_alone: bool = False) -> None:
        self.worker = worker
        self.pixels = pixels
        self.is_alone = is_alone
        self.is_slow = False
        # What came, or how its worker ended: no exception, which would hold the frames that it passes, and itself.
        self.answer: asyncio.Future[tuple[Header, Any] | int] = asyncio.get_running_loop().create_future()


class Worker:
    """A process started by ``command``, to which its descriptors and its parent are appended. ``on_idle`` is called
    each time that a job has ended, ``on_end`` once the process has, before its jobs are told."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        on_idle: Callable[[Header], object],
        on_end: Callable[["Worker", int], object],
    ) -> None:
        self.number = number
        self.jobs: set[Job] = set()  # that have a place
        self.files: set[str] = set()  # the SHA-256 of those that are open there
        self.ready_s: float | None = None  # when it had opened them
        self._asked: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._on_idle, self._on_end = on_idle, on_end
        self.board = Board()
        with ExitStack() as unless_started:
            unless_started.callback(self.board.close)
            ours, theirs = socket.socketpair()
            unless_started.enter_context(ours)
            lines, writes = os.pipe()
            unless_started.callback(os.close, lines)
            with theirs, open(writes, "wb") as output:
                self.process = self._started(command, theirs.fileno(), output)
            unless_started.pop_all()
        self._channel = Channel(ours, self._on_message, self._on_closed)
        self._lines = Lines(lines, number)
        self.exit_code: int | None = None
        self._reaping: asyncio.Task[None] | None = None
        self._signs: tuple[int, float] = (0, 0.0)  # of life
        self._since_s = time.monotonic()

    def _started(self, command: Sequence[str], end: int, output: Any) -> "subprocess.Popen[bytes]":
        descriptors = end, self.board.descriptor
        return subprocess.Popen(
            [*command, *map(str, descriptors), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    @property
    def age_s(self) -> float:
        """How long it has been ready."""
        return 0.0 if self.ready_s is None else time.monotonic() - self.ready_s

    async def ask(self, job: Job, header: Header, pieces: Sequence[Any] = (), *, limit_s: float) -> tuple[Header, Any]:
        """The answer to a job: its header and its payload. The job keeps its place until the answer is there, whether
        its caller waits or not. Raises WorkerDied."""
        if self.exit_code is not None:
            raise WorkerDied(self.exit_code, was_slow=False)
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        try:
            payload = await packed(pieces)
        except BaseException:
            self.give_up(job)
            raise
        limit = loop.call_later(limit_s, self._end_slow, job)
        job.answer.add_done_callback(lambda _: limit.cancel())
        self._asked[number] = job
        self._send({**header, "id": number}, payload)
        try:
            answer = await asyncio.shield(job.answer)
        except asyncio.CancelledError:
            self._send({"op": "cancel", "id": number})
            raise
        if isinstance(answer, int):
            raise WorkerDied(answer, was_slow=job.is_slow)
        return answer

    def give_up(self, job: Job) -> None:
        """A place that is not needed."""
        self.jobs.discard(job)
        job.answer.cancel()  # there will be none
        self._on_idle({})

    def check_heart(self) -> None:
        """End it where its heart has not beaten for a while, and it computes nothing: it is stopped, or stuck. One that
        computes is slow, which its job's limit is for."""
        beats, now_s = self.board.beats, time.monotonic()
        signs = beats, cpu_seconds(self.process.pid)
        if not beats:  # its start has a limit of its own
            self._since_s = now_s
        elif signs != self._signs:
            self._signs, self._since_s = signs, now_s
        elif now_s - self._since_s > _SILENT_S:
            _log.warning("worker %d has been silent for %g s: ending it", self.number, _SILENT_S)
            self.process.kill()
            self._since_s = now_s

    async def end(self, grace_s: float) -> None:
        """Have it end, within so long or by force."""
        self._channel.close()
        try:
            await asyncio.to_thread(self.process.wait, grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
        self._clear()

    def _send(self, header: Header, payload: Payload = Payload()) -> None:  # noqa: B008 (a tuple)
        self._channel.send(header, payload)

    def _end_slow(self, job: Job) -> None:
        _log.error("a job of worker %d takes longer than its limit: ending the worker", self.number)
        job.is_slow = True
        self.process.kill()

    def _on_message(self, header: Header, payload: Any) -> None:
        job = self._asked.pop(header["id"])
        self.jobs.discard(job)
        job.answer.set_result((header, payload))
        self._on_idle(header)

    def _on_closed(self) -> None:
        self._reaping = asyncio.create_task(self._reap())

    async def _reap(self) -> None:
        """It has gone, or closed its end, which is as good."""
        self.process.kill()
        self.exit_code = exit_code = await asyncio.to_thread(self.process.wait)
        self._on_end(self, exit_code)
        for job in self.jobs:
            if not job.answer.done():
                job.answer.set_result(exit_code)
        self.jobs.clear()
        self._clear()

    def _clear(self) -> None:
        self._asked.clear()
        self._lines.close()
        self.board.close()


class Lines:
    """What a worker writes, logged in whole lines."""

    def __init__(self, descriptor: int, number: int) -> None:
        self._descriptor: int | None = descriptor
        self._number = number
        self._rest = b""
        self._level = logging.WARNING  # of lines that say none, such as a native library's
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def close(self) -> None:
        """Log what is left, or some of it."""
        for _ in range(_LAST_READS):
            self._read()
        if self._descriptor is not None:
            self._end()

    def _end(self) -> None:
        assert self._descriptor is not None
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        if self._rest:
            self._tell(self._rest)

    def _read(self) -> None:
        """A little at a time: whoever writes without end holds up nobody."""
        if self._descriptor is None:
            return
        with suppress(BlockingIOError):
            data = os.read(self._descriptor, _READ_BYTES)
            if not data:
                self._end()
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._tell(line)
            if len(self._rest) > _LINE_BYTES:
                self._tell(self._rest)
                self._rest = b""

    def _tell(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        level, _, message = text.partition(" ")
        if level in _LEVELS:
            self._level, text = _LEVELS[level], message
        _log.log(self._level, "worker %d: %s", self._number, text)


def cpu_seconds(pid: int) -> float:
    """The time that a process has computed; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shown_exit(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
