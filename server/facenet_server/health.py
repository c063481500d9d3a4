"""Health as it is: ready while work makes progress, alive while the event loop turns."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from grpc_health.v1 import health_pb2

from facenet_server.stats import Stats

LIVENESS = "liveness"

_SAMPLES = 10  # of a stall's length
_STATUS = health_pb2.HealthCheckResponse


class Health:
    """The statuses that a gRPC health servicer tells: of ``services`` whether they are ready, of LIVENESS that the
    process lives. Ready turns to NOT_SERVING where a stage has something under way and nothing of it has ended for
    ``stall_s``, and back once something ends. Each is served from ``__aenter__`` to ``end``."""

    def __init__(self, servicer: Any, services: Iterable[str], stats: Stats, stall_s: float) -> None:
        self._servicer = servicer
        self._services = tuple(services)
        self._stats = stats
        self._stall_s = stall_s
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._servicer.set(LIVENESS, _STATUS.SERVING)
        await self._set(ready=True)
        self._watch = asyncio.create_task(self._watch_progress())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch

    async def end(self) -> None:
        """Nothing is served any more, whatever comes."""
        await self._servicer.enter_graceful_shutdown()

    async def _watch_progress(self) -> None:
        ready, ended, still = True, dict[str, int](), Counter[str]()  # samples in which a stage stood still
        while True:
            await asyncio.sleep(self._stall_s / _SAMPLES)
            for stage in self._stats:
                moves = not stage.under_way or stage.ended != ended.get(stage.name)
                still[stage.name] = 0 if moves else still[stage.name] + 1
                ended[stage.name] = stage.ended
            if ready != (max(still.values(), default=0) < _SAMPLES):
                ready = not ready
                await self._set(ready=ready)

    async def _set(self, *, ready: bool) -> None:
        for service in self._services:
            await self._servicer.set(service, _STATUS.SERVING if ready else _STATUS.NOT_SERVING)
