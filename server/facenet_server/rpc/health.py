"""Health as it is: ready while work makes progress, alive while the event loop turns."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2

from facenet_server.errors import shown
from facenet_server.rpc.auth import Callers
from facenet_server.rpc.unary import UnaryCalls
from facenet_server.telemetry.counters import Stats

LIVENESS = "liveness"

_SAMPLES = 10  # of a stall's length
_STRANGER_S = 3.0  # how long a watch lasts whose caller has not shown who it is: its connection is soon idle again
_Status = health_pb2.HealthCheckResponse


class Health:
    """gRPC's health service (its "Health Checking Protocol"): of ``services`` whether they are ready, of LIVENESS that
    the process lives.

    Ready turns to NOT_SERVING where a stage has something under way and nothing of it has ended for ``stall_s``. So it
    does where ``can_serve`` says no. It turns back once that is over. From ``end`` on nothing is ready, but the process
    lives while it answers.

    Not gRPC's own servicer: there a watcher who leaves cuts the others off, and one who stays holds up a drain.
    """

    def __init__(
        self,
        services: Iterable[str],
        stats: Stats,
        stall_s: float,
        callers: Callers | None = None,
        can_serve: Callable[[], bool] = lambda: True,
    ) -> None:
        self._can_serve = can_serve
        self._callers = callers or Callers()
        self._services = tuple(services)
        self._stats = stats
        self._stall_s = stall_s
        self._told: dict[str, int] = {}
        self._changed = asyncio.Event()  # a new one with each change
        self._has_ended = False
        self._progress: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._set(ready=True)
        self._progress = asyncio.create_task(self._follow_progress())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.cancel()
            await asyncio.wait({self._progress})

    def end(self) -> None:
        """Nothing is ready any more, whatever comes. Who watches is told so, and let go."""
        self._has_ended = True
        self._set(ready=False)

    def handlers(self, unary_calls: UnaryCalls) -> grpc.GenericRpcHandler:
        """What a grpc.aio server is given."""
        methods = {
            name: unary_calls.handler(health_pb2.HealthCheckRequest, answer)
            for name, answer in (("Check", self.check), ("Watch", self.watch))
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    async def check(self, request: Any, context: Any) -> Any:
        """The status of a service; NOT_FOUND where there is none of that name."""
        if request.service not in self._told:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {shown(request.service)} here")
        return _Status(status=self._told[request.service])

    async def watch(self, request: Any, context: Any) -> None:
        """The status of a service now and whenever it changes, SERVICE_UNKNOWN where there is none of that name. A
        stranger's watch ends after some seconds."""
        end_s = None if self._callers.knows(context) else asyncio.get_running_loop().time() + _STRANGER_S
        last = None
        while True:
            changed, is_last = self._changed, self._has_ended
            status = self._told.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != last:
                await context.write(_Status(status=status))
                last = status
            if is_last:
                return
            try:
                async with asyncio.timeout_at(end_s):
                    await changed.wait()
            except TimeoutError:
                return

    async def _follow_progress(self) -> None:
        ready, ended, still = True, dict[str, int](), Counter[str]()  # samples in which a stage stood still
        while True:
            await asyncio.sleep(self._stall_s / _SAMPLES)
            for stage in self._stats:
                moves = not stage.under_way or stage.ended != ended.get(stage.name)
                still[stage.name] = 0 if moves else still[stage.name] + 1
                ended[stage.name] = stage.ended
            if ready != (max(still.values(), default=0) < _SAMPLES and self._can_serve()):
                ready = not ready
                self._set(ready=ready)

    def _set(self, *, ready: bool) -> None:
        status = _Status.SERVING if ready and not self._has_ended else _Status.NOT_SERVING
        self._told = dict.fromkeys(self._services, status) | {LIVENESS: _Status.SERVING}
        self._changed.set()
        self._changed = asyncio.Event()
