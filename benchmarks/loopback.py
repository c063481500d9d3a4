"""A server of ours as a process on loopback, and what a load on it comes to."""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from facenet_client import AsyncClient, ServerInfo
from facenet_client.load import Plan as Load
from facenet_client.load import Report, Workload, run
from facenet_client.stats import ServerStats

from benchmarks.errors import BenchmarkError
from benchmarks.plan import Plan
from benchmarks.racing import Contender
from benchmarks.workers.protocol import Slice

T = TypeVar("T")

TIMEOUT_S = 120.0
WARM_UP_S = 0.3


class Server:
    """``facenet-server`` on a free port, or several of them on one each, with a client of its own. Synchronous: it is
    loaded while it is called."""

    def __init__(self, plan: Plan, *flags: str, processes: int = 1, module: str = "facenet_server") -> None:
        command = [sys.executable, "-m", module, "--listen", "127.0.0.1:0", "--device", plan.device, *flags]
        environment = {**os.environ, "FACENET_MODELS": str(plan.models)}
        self._processes = [
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(processes)
        ]
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._client = self._do(self._open([_address(process) for process in self._processes]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._client.__aexit__(None, None, None))
        self._runner.close()
        for process in self._processes:
            process.terminate()
            process.wait()

    @property
    def pids(self) -> list[int]:
        """Of its processes that accept calls."""
        return [process.pid for process in self._processes]

    def wait_for_spare(self) -> None:
        """Until all of its worker processes have started."""
        while not self.stats().workers.standing_by:
            time.sleep(0.1)

    def load(self, work: Workload, **how: Any) -> Report:
        """Send the work as facenet_client.load.Plan says; raises BenchmarkError where anything was not answered."""
        report = self._do(run(self._client, work, Load(**{"warm_up_s": WARM_UP_S, **how})))
        if not report.is_clean:
            raise BenchmarkError(f"the load was not answered: {report.errors} {report.failures} {report.first_failure}")
        return report

    def do(self, work: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
        """What the work gives, with the client."""
        return self._do(work(self._client))

    def stats(self) -> ServerStats:
        """What it has done so far."""
        return self._do(self._client.server_stats())

    def info(self) -> ServerInfo:
        """What it runs."""
        return self._do(self._client.server_info())

    def contender(self, work: Workload, **how: Any) -> Contender:
        """The load as one that races: seconds an item."""

        def slice_(seconds: float) -> Slice:
            report = self.load(work, duration_s=seconds, **how)
            return Slice([1 / report.items_per_s], np.array([]), {})

        return slice_

    async def _open(self, addresses: Sequence[str]) -> AsyncClient:
        return await AsyncClient(addresses, timeout_s=TIMEOUT_S).__aenter__()

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    log = ""
    for line in process.stderr:
        log += line
        if found := re.search(r"listening on (\S+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # so that its log never fills
            return found[1]
    raise BenchmarkError(f"the server did not start:\n{log}")
