"""A worker process as the one who starts it sees it: shards in, tallies out, whatever becomes of the process."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from facenet_bulk.engines import OnImage
from facenet_bulk.errors import BulkError
from facenet_bulk.table import Tally

COMMAND = (sys.executable, "-m", "facenet_bulk.worker")
IMAGE_LIMIT_S = 60.0  # some hundred times what one takes
_END_S, _LONGEST_LINE = 5.0, 1 << 24  # bytes: what models say of themselves
START_LIMIT_S = 600.0
_FRUITLESS, _MOST_ATTEMPTS = 3, 100  # processes that may end without an image in a row, and in all, over a shard


class WorkerProcess:
    """One process. Where it ends, or takes too long over an image, another one does the shard again. There the images
    that it had are alone, one by one: so the one that ends processes is found, and is refused."""

    def __init__(
        self,
        setup: Mapping[str, Any],
        on_image: OnImage = lambda count, reason: None,
        command: Sequence[str] = COMMAND,
        image_limit_s: float = IMAGE_LIMIT_S,
    ) -> None:
        self._setup, self._on_image, self._command, self._limit_s = setup, on_image, command, image_limit_s
        self._process: Process | None = None

    async def about(self) -> dict[str, Any]:
        """What the models folder holds. Raises BulkError."""
        try:
            await self._start()
            return await self._told(START_LIMIT_S)
        except (EOFError, OSError, TimeoutError) as error:
            raise BulkError("the process that opens the models ended, or never answered: its log is above") from error

    async def shard(self, number: int) -> Tally:
        """Do a shard, and write its part. Raises BulkError."""
        suspected, refused, fruitless = set[str](), set[str](), 0
        for _ in range(_MOST_ATTEMPTS):
            attempt = _Attempt(self._on_image)
            job = {"shard": number, "suspected": sorted(suspected), "refused": sorted(refused)}
            tally = await self._attempt(attempt, job)
            if tally is not None:
                return tally
            attempt.take_back()
            fruitless = 0 if attempt.in_flight else fruitless + 1
            if fruitless == _FRUITLESS:
                break
            refused |= suspected.intersection(attempt.in_flight)  # it had the process for itself
            suspected.update(attempt.in_flight)
        raise BulkError(f"shard {number}: worker processes end again and again; their log is above")

    async def end(self) -> None:
        """End the process."""
        if (process := self._process) is None:
            return
        self._process = None
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        reading = asyncio.create_task(process.stdout.read())  # to its end, which is the process's
        await asyncio.wait({reading}, timeout=_END_S)
        if process.returncode is None and not reading.done():
            with suppress(ProcessLookupError):
                process.kill()
        await reading
        await process.wait()

    async def _attempt(self, attempt: "_Attempt", job: Mapping[str, Any]) -> Tally | None:
        """None where the process ended, or had to be ended."""
        try:
            if self._process is None:
                await self._start()
                await self._told(START_LIMIT_S)  # that it is ready
            self._send(job)
            while True:
                told = await self._told(self._limit_s if attempt.in_flight else None)
                if "done" in told:
                    return Tally(**told["tally"])
                attempt.take(told)
        except (EOFError, OSError, TimeoutError):
            if self._process and self._process.returncode is None:
                with suppress(ProcessLookupError):
                    self._process.kill()
            await self.end()
            return None

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, limit=_LONGEST_LINE
        )
        self._send(self._setup)

    def _send(self, line: Mapping[str, Any]) -> None:
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _told(self, limit_s: float | None) -> dict[str, Any]:
        """Its next line. Raises EOFError where it has ended, TimeoutError where it says nothing for so long."""
        assert self._process
        assert self._process.stdout
        reading = asyncio.create_task(self._process.stdout.readline())
        try:
            await asyncio.wait({reading}, timeout=limit_s)
        finally:
            is_late = not reading.done()
            if is_late:
                reading.cancel()
                await asyncio.wait({reading})
        if is_late:
            raise TimeoutError
        line = reading.result()
        if not line.endswith(b"\n"):
            raise EOFError
        told: dict[str, Any] = json.loads(line)
        if "cannot" in told:
            raise BulkError(told["cannot"])
        return told


class _Attempt:
    """What a process has told of a shard's images so far."""

    def __init__(self, on_image: OnImage) -> None:
        self.in_flight: list[str] = []  # by SHA-256; twins twice
        self._on_image = on_image
        self._ended = Counter[str]()  # by reason

    def take(self, told: Mapping[str, Any]) -> None:
        """A line about an image."""
        if "begun" in told:
            self.in_flight.append(told["begun"])
            return
        if "ended" in told:
            self.in_flight.remove(told["ended"])
        reason = told.get("failed", "")
        self._ended[reason] += 1
        self._on_image(1, reason)

    def take_back(self) -> None:
        """They are done again."""
        for reason, count in self._ended.items():
            self._on_image(-count, reason)
