"""Unary calls: of the server's health, of what it is and does. No work, but not free either.

They are unary to their callers, and streams here: grpc.aio would read a unary call's message whole, however large, for
all calls at once, before anybody could refuse one.
"""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError, Message

from facenet_server.admission.fair_semaphore import FairSemaphore
from facenet_server.admission.limits import Headroom
from facenet_server.errors import Refused
from facenet_server.rpc.auth import Callers
from facenet_server.rpc.stream import start_read
from facenet_server.telemetry.error_id import log_error

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, Message]

_PUSHBACK = "grpc-retry-pushback-ms"  # gRFC A6's name for when to come back
_RETRY_S = 1.0
_READ_AT_ONCE = 8  # messages, any of which may be as long as a message may
_ACQUIRE_S, _READ_S = 5.0, 1.0  # until one may be read, and until it has come
_MOST_BYTES = 4096  # of one, since it lies here while its answers are given


class UnaryCalls:
    """The unary calls of one port: at most ``limit`` at once, with fair-share headroom; eight of their messages are
    read at a time."""

    def __init__(self, callers: Callers, limit: int) -> None:
        self._callers = callers
        self._calls = Headroom(limit)
        self._reads = FairSemaphore(_READ_AT_ONCE, passes=True)

    def handler(
        self, request: type[Message], answer: Callable[[Any, Context], Awaitable[Message | None]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A method of such requests, as grpc.aio calls it. ``answer`` gives the answer, or None where it wrote its
        answers itself."""

        async def handle(_: Any, context: Context) -> None:
            caller = self._callers.name(context)
            if not self._calls.has_room(caller):
                await refuse(context, Refused(_RETRY_S))
            self._calls.add(caller, 1)
            try:
                asked = await self._read(request, context, caller)
                if (told := await answer(asked, context)) is not None:
                    await context.write(told)
            except grpc.aio.BaseError:  # the call has ended
                raise
            except Exception:  # noqa: BLE001 (a call's failure is its own)
                await context.abort(grpc.StatusCode.INTERNAL, f"internal error {log_error('a unary call failed')}")
            finally:
                self._calls.add(caller, -1)

        return grpc.stream_stream_rpc_method_handler(handle, response_serializer=serialized)

    async def _read(self, request: type[Message], context: Context, caller: str) -> Message:
        async with AsyncExitStack() as seats:
            try:
                async with asyncio.timeout(_ACQUIRE_S):
                    await seats.enter_async_context(self._reads.acquired(caller, 1))
            except TimeoutError:
                await refuse(context, Refused(_RETRY_S))
            reading = start_read(context)
            await asyncio.wait({reading}, timeout=_READ_S)
            if not reading.done():
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no message came within {_READ_S:g} s")
            asked = _parsed(request, reading.result())
            del reading  # the error that ends a call keeps what is here, and that may be as large as any message
        if asked is None:
            told = f"a message {request.DESCRIPTOR.name} of at most {_MOST_BYTES} bytes is asked for"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, told)
        assert asked is not None
        return asked


def _parsed(request: type[Message], data: Any) -> Message | None:
    if data is grpc.aio.EOF or len(data) > _MOST_BYTES:
        return None
    try:
        return request.FromString(bytes(data))
    except DecodeError:
        return None


async def refuse(context: Context, refused: Refused) -> None:
    """End a call for which there is no room, and say when to come back."""
    pushback = ((_PUSHBACK, str(round(1000 * refused.retry_after_s))),)
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(refused), pushback)


def serialized(message: Message) -> bytes:
    """A message as its bytes."""
    return message.SerializeToString()
