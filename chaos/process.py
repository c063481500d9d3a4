"""Server processes of the rig: started, watched, ended by their own id."""

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from facenet_proto.v1 import face_pb2 as pb

from chaos.children import environment
from chaos.drivers import Send, channels, one_message, one_shot
from chaos.ledger import Ledger
from chaos.stub import COUNTS, TASKS, TELL, Behaviour

SERVER_CORE = 0
_START_S = 60.0  # at most, until it listens
_UNCOMPILED = str(Path(__file__).parent / "uncompiled")


class Usage:
    """What a process has of its machine, as of when it is asked; ``folder`` is where the system tells it."""

    def __init__(self, pid: int) -> None:
        self.folder = f"/proc/{pid}"

    @property
    def rss_mb(self) -> float:
        """Its resident memory."""
        with open(f"{self.folder}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def cpu_s(self) -> float:
        """What it has computed, on all cores."""
        with open(f"{self.folder}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def files(self) -> int:
        """Those that are open."""
        return len(os.listdir(f"{self.folder}/fd"))

    @property
    def threads(self) -> int:
        """How many it has."""
        return len(os.listdir(f"{self.folder}/task"))


@dataclass
class Growth:
    """The most that memory was over what it had been."""

    mb: float = 0.0


@contextmanager
def _any_core() -> Iterator[None]:
    """What this thread starts meanwhile may run anywhere, until it pins itself."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    mine = os.sched_getaffinity(0)
    with suppress(OSError):  # where cores are allotted otherwise
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


@asynccontextmanager
async def started(servers: Sequence["Server"]) -> AsyncIterator[None]:
    """Servers that start beside each other, and end."""
    async with AsyncExitStack() as stack:
        begun = await asyncio.gather(*map(stack.enter_async_context, servers), return_exceptions=True)
        for failed in begun:
            if isinstance(failed, BaseException):
                raise failed
        yield


class Server:
    """A server process of the given behaviour, on its own core. Entered: it listens, and is warm."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self._behaviour = behaviour or Behaviour()
        if self._behaviour.core is None:
            self._behaviour.core = SERVER_CORE
        self._process: subprocess.Popen[str] | None = None
        self._logging: threading.Thread | None = None
        self.address = ""
        self.log: list[str] = []

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            await asyncio.shield(starting)
        except BaseException:
            await asyncio.wait({starting})
            await asyncio.to_thread(self.end)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.end)

    def start(self) -> None:
        """Start it, on the port it had before if it had one."""
        if self.address:
            self._behaviour.config["listen"] = self.address
        command = [sys.executable, "-m", "chaos.stub", json.dumps(asdict(self._behaviour))]
        env = environment() if self._behaviour.finds_faces else environment(_UNCOMPILED)
        with _any_core():
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
        assert process.stderr is not None
        self._process, self.log = process, []
        too_late, found = threading.Timer(_START_S, process.kill), None
        too_late.start()
        for line in process.stderr:
            self.log.append(line)
            if found := re.search(r"listening on (\S+)", line):
                self.address = found[1]
                break
        too_late.cancel()
        self._logging = threading.Thread(target=self.log.extend, args=(process.stderr,), daemon=True)
        self._logging.start()
        if found is None:
            raise RuntimeError(f"the server did not start:\n{''.join(self.log)}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 60) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        if self._logging is not None and self._process.stderr is not None:
            self._logging.join()
            self._process.stderr.close()
        return code

    def end(self) -> None:
        """End it, however it is."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self.wait()

    @property
    def usage(self) -> Usage:
        """What it has of its machine."""
        assert self._process is not None
        return Usage(self._process.pid)

    async def tasks(self) -> int:
        """Its event loop's tasks, as it tells."""
        before = len(self._lines_of(TASKS))
        self.signal(TELL)
        async with asyncio.timeout(10):
            while len(told := self._lines_of(TASKS)) == before:  # noqa: ASYNC110 (a thread reads them)
                await asyncio.sleep(0.01)
        return int(told[-1])

    def _lines_of(self, name: str) -> list[str]:
        return [line.partition(f"{name}: ")[2] for line in self.log if f"{name}: " in line]

    @property
    def last_counts(self) -> dict[str, int]:
        """Items accepted, answered and abandoned, as the ended process told; nothing where it could not."""
        told = self._lines_of(COUNTS)
        return dict(json.loads(told[-1])) if told else {}

    @asynccontextmanager
    async def growth(self) -> AsyncIterator[Growth]:
        """How far its memory rises meanwhile."""
        grown, base_mb = Growth(), self.usage.rss_mb

        async def watch() -> None:
            while True:
                grown.mb = max(grown.mb, self.usage.rss_mb - base_mb)
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        try:
            yield grown
        finally:
            watching.cancel()
            await asyncio.wait({watching})
            if not watching.cancelled():
                watching.result()

    @asynccontextmanager
    async def probed(self) -> AsyncIterator[list[float]]:
        """How long its health took to answer meanwhile, ms, asked by another process; filled in at the end."""
        command = [sys.executable, "-m", "chaos.probe", self.address]
        env = environment()
        pipe = asyncio.subprocess.PIPE
        probe = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=env, limit=1 << 22)
        took_ms: list[float] = []
        try:
            assert probe.stdout is not None
            await probe.stdout.readline()
            yield took_ms
            told, _ = await probe.communicate(b"")  # its standard input ends
            took_ms += json.loads(told)
        finally:
            if probe.returncode is None:
                probe.kill()
                await probe.wait()

    async def stats(self) -> pb.GetServerStatsResponse:
        """What it says of itself."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            ask: Any = channel.unary_unary(
                "/facenet.v1.FaceService/GetServerStats", response_deserializer=pb.GetServerStatsResponse.FromString
            )
            response: pb.GetServerStatsResponse = await ask(b"", timeout=10)
            return response

    async def capacity(self, ledger: Ledger, seconds: float, callers: int = 12, send: Send = one_shot) -> float:
        """Items a second of so many callers who each wait for their answers: few enough that none is refused."""
        end, before = time.monotonic() + seconds, ledger.outcomes["answered"]

        async def call(method: Any, salt: int) -> None:
            number = 0
            while time.monotonic() < end:
                await send(method, ledger, ledger.crops.crop(number, salt), 30)
                number += 1

        async with channels(self.address, 4) as opened:
            start = time.monotonic()
            await asyncio.gather(*(call(one_message(opened[n % 4]), n) for n in range(callers)))
        return (ledger.outcomes["answered"] - before) / (time.monotonic() - start)

    async def quiet(self, within_s: float) -> pb.AdmissionStats:
        """Its admission counts once nothing is in flight, or when the time is up."""
        for _ in range(max(1, int(within_s / 0.1))):
            counts = (await self.stats()).admission
            if not counts.items_in_flight and not counts.streams:
                break
            await asyncio.sleep(0.1)
        return counts

    async def seconds_until_streams(
        self, are_so: Callable[[int], bool], within_s: float, every_s: float = 0.02
    ) -> float:
        """How long it takes until so many of its streams are open; for ever where it is more than ``within_s``."""
        start = time.monotonic()
        while (waited_s := time.monotonic() - start) < within_s:
            if are_so((await self.stats()).admission.streams):
                return waited_s
            await asyncio.sleep(every_s)
        return math.inf
