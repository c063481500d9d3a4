"""One stream's life: messages in, answers out in request order, from the door to whatever end it takes.

A stream has one reader task and one writer, the handler itself. The reader takes a message only with a credit for it,
and while the server has room; the credit returns when its answer is written. A caller that sends faster than it is
served, or does not read, is held back by its own connection. A read is never cancelled while its stream lives, since
grpc.aio would lose the message.
"""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message

from facenet_server import messages, wire
from facenet_server.admission import Admission, Visit
from facenet_server.crop_room import Crops
from facenet_server.errors import OVERLOADED, ItemError, Overloaded, ProtocolError, Refused, TimedOut
from facenet_server.methods import Method, Place, StreamLimits
from facenet_server.pace import retry_s
from facenet_server.seats import Seats

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, Message]

_LINGER_S = 2.0  # how long a stream's end waits for its caller, who has been told, to close its side


class End(NamedTuple):
    """How a stream ends early, after the answers to everything that was accepted."""

    code: grpc.StatusCode
    details: str


class _Pending(NamedTuple):
    """An answer to come, or what refuses its message when its turn is there, and what that counts for at the door."""

    answer: asyncio.Task[Message] | Callable[[], Message]
    n_items: int = 0
    n_bytes: int = 0
    crops: Crops | None = None
    free_at_s: float | None = None  # on the loop's clock: when to come back, where its refusal knows


class _Stalled(Exception):
    """The caller takes no answers."""


_DRAINING = End(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
_STALLED = End(grpc.StatusCode.CANCELLED, "the answers were not taken in time")
_Accepted = asyncio.Queue[_Pending | End | None]  # None: the caller has no more


class Stream:
    """One open stream; ``serve`` runs it. ``draining`` set lets it finish what it accepted, then end."""

    def __init__(self, method: Method, context: Context, limits: StreamLimits, draining: asyncio.Event) -> None:
        self._method = method
        self._context = context
        self._limits = limits
        self._draining = draining
        self._fields = method.fields()
        self._seats = Seats(limits.max_images)
        self._credits = asyncio.Semaphore(limits.max_messages)
        self._accepted: _Accepted = asyncio.Queue()  # bounded by the credits
        self._unfinished: asyncio.Future[None] | None = None
        self._leaving: Crops | None = None  # of the answer that is being written

    async def serve(self, admission: Admission, caller: str) -> End | None:
        """Write the caller's answers, in request order, until it ends. Raises Refused where there is no room for
        it."""
        try:
            visit = admission.enter(caller, self._context.peer())
        except Refused:
            if self._draining.is_set():  # there is nothing to come back to
                return _DRAINING
            raise
        with visit:
            try:
                return await self._answer(visit, admission)
            except ExceptionGroup as failures:
                if failures.subgroup(_Stalled) is None:
                    raise
                visit.stall(self._leaving)
                del self._accepted  # the answers behind the one that lies are given up
            assert self._unfinished is not None
            try:
                await asyncio.wait({self._unfinished})  # its end can be told once the answer that lies is taken
            finally:
                if self._leaving is not None:
                    self._leaving.gone()
            return _STALLED

    async def _answer(self, visit: Visit, admission: Admission) -> End | None:
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(visit, admission, tasks))
            while isinstance(pending := await self._accepted.get(), _Pending):
                answer = pending.answer
                message: Any = await answer if isinstance(answer, asyncio.Task) else answer()
                if any(result.error.reason == OVERLOADED for result in message.results):
                    message.retry_after_ms = round(1000 * _retry_after_s(pending.free_at_s, admission))
                self._leaving = pending.crops
                await self._write(message)
                self._leaving = None
                visit.answered(pending.n_items, pending.n_bytes, pending.crops)
                self._credits.release()
                del answer, message, pending
            if pending is _DRAINING:
                await self._write(self._method.response(draining=True))
                # A caller that still writes when its call ends may lose answers that it has not read.
                await asyncio.wait({reader}, timeout=_LINGER_S)
                reader.cancel()
        return pending

    async def _write(self, message: Message) -> None:
        """Write. Raises _Stalled where the caller takes nothing for too long."""
        writing = asyncio.ensure_future(self._context.write(message))
        try:
            done, _ = await asyncio.wait({writing}, timeout=self._limits.max_write_stall_s)
        except asyncio.CancelledError:
            writing.cancel()
            raise
        if not done:
            writing.add_done_callback(_retrieve)
            self._unfinished = writing
            raise _Stalled
        writing.result()

    async def _read(self, visit: Visit, admission: Admission, tasks: asyncio.TaskGroup) -> None:
        """Accept messages, each for a credit and while there is room, until there are no more to accept."""
        draining = asyncio.create_task(self._draining.wait())
        try:
            while True:
                await self._credits.acquire()
                await _turn(visit, 1, draining)
                read = None if draining.done() else start_read(self._context)
                if read is not None:
                    visit.expect()
                    await asyncio.wait({read, draining}, return_when=asyncio.FIRST_COMPLETED)
                if read is None or draining.done():
                    break
                data = read.result()
                if data is grpc.aio.EOF:
                    visit.expect_no_more()
                    self._accepted.put_nowait(None)
                    return
                pending = await self._accept(data, visit, admission, tasks, draining)
                if pending is None:
                    break
                self._accepted.put_nowait(pending)
                read = None
                del data, pending  # an idle stream keeps nothing of its last message
            self._accepted.put_nowait(_DRAINING)
            await _discard(read or start_read(self._context), self._context)
        except ProtocolError as error:
            self._accepted.put_nowait(End(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
        finally:
            draining.cancel()

    async def _accept(
        self,
        data: bytes,
        visit: Visit,
        admission: Admission,
        tasks: asyncio.TaskGroup,
        draining: asyncio.Task[Any],
    ) -> _Pending | None:
        """A message, begun once there is room for its items; or its refusal, for which it is not even parsed. None
        where the server drains instead. Raises ProtocolError."""
        outline = self._outline(data)
        left_s, refuse = self._left_s(outline.timeout_ms), partial(self._refusal, outline)
        if not visit.hold(outline.n_items, len(data)):
            return _Pending(partial(refuse, Overloaded("the server has no room for this message now")))
        kinds = self._method.kinds(outline)
        kind = next(iter(kinds))
        back_in_s = admission.backlogs[kind].back_in_s(visit.caller, visit, kinds[kind], left_s)
        if back_in_s > 0:
            visit.refuse(outline.n_items)
            no_time = Overloaded("this message would wait for too much of the time that it has")
            free_at_s = asyncio.get_running_loop().time() + back_in_s
            return _Pending(partial(refuse, no_time), n_bytes=len(data), free_at_s=free_at_s)
        return await self._begin(data, outline, kinds, visit, admission, tasks, draining)

    async def _begin(
        self,
        data: bytes,
        outline: wire.Outline,
        kinds: Mapping[str, int],
        visit: Visit,
        admission: Admission,
        tasks: asyncio.TaskGroup,
        draining: asyncio.Task[Any],
    ) -> _Pending | None:
        """The message that is held, once there is room for its items; its refusal where its time is up before. Others
        wait for it from now on."""
        loop = asyncio.get_running_loop()
        deadline = None if outline.timeout_ms is None else loop.time() + outline.timeout_ms / 1000
        works = {kind: admission.backlogs[kind].begin(visit.caller, visit, n) for kind, n in kinds.items()}
        with ExitStack() as unless_begun:
            for each in works.values():
                unless_begun.callback(each.over)
            await _turn(visit, outline.n_items, draining, deadline)
            if draining.done():
                return None
            if not visit.has_room(outline.n_items):
                visit.refuse(outline.n_items)
                return _Pending(partial(self._refusal, outline, TimedOut()), n_bytes=len(data))
            request = self._parsed(data)
            unless_begun.pop_all()
        crops = visit.accept(outline.n_items)
        place = Place(visit.caller, self._method.else_kind, self._seats, deadline, crops, works)

        def is_done(_: object) -> None:
            for each in works.values():
                each.over()
            crops.done()

        answer = tasks.create_task(self._method.answer(request, place))
        answer.add_done_callback(is_done)
        return _Pending(answer, outline.n_items, len(data), crops)

    def _outline(self, data: bytes) -> wire.Outline:
        """Raises ProtocolError where the bytes are no message, or one of too many items."""
        most = self._limits.max_items_per_message
        try:
            outline = wire.outline(data, self._fields, most)
        except DecodeError:
            raise self._no_message() from None
        if outline.n_items > most:
            raise ProtocolError(f"the message holds too many items; the limit is {most}")
        return outline

    def _parsed(self, data: bytes) -> Message:
        """Raises ProtocolError."""
        try:
            request: Message = self._method.request.FromString(data)
        except DecodeError:
            raise self._no_message() from None
        return request

    def _no_message(self) -> ProtocolError:
        return ProtocolError(f"the bytes are no {self._method.request.DESCRIPTOR.name}")

    def _refusal(self, outline: wire.Outline, error: ItemError) -> Message:
        answer: Message = messages.refusal(self._method.response, outline.id, outline.n_items, error)
        return answer

    def _left_s(self, timeout_ms: int | None) -> float:
        """How long the answer to a message that has just come is of use: by its own time, and its stream's."""
        of_message, of_stream = None if timeout_ms is None else timeout_ms / 1000, self._context.time_remaining()
        return min(math.inf if left_s is None else left_s for left_s in (of_message, of_stream))


def _retry_after_s(free_at_s: float | None, admission: Admission) -> float:
    """When to come back, as of now: a refusal is told after its stream's earlier answers."""
    if free_at_s is None:
        return admission.retry_after_s()
    return retry_s(free_at_s - asyncio.get_running_loop().time())


def start_read(context: Context) -> asyncio.Future[Any]:
    """A read to be waited for with asyncio.wait: a read that is cancelled loses its message."""
    read = asyncio.ensure_future(context.read())
    read.add_done_callback(_retrieve)
    return read


async def _turn(visit: Visit, n_items: int, draining: asyncio.Task[Any], deadline: float | None = None) -> None:
    """Wait until there is room, the server drains, or the time is up. Where there was room there still is when it
    returns: others may have come between the turn and its end."""
    loop, left_s = asyncio.get_running_loop(), None
    while not visit.has_room(n_items) and not draining.done():
        if deadline is not None and (left_s := deadline - loop.time()) <= 0:
            return
        turn = asyncio.ensure_future(visit.turn(n_items))
        try:
            await asyncio.wait({turn, draining}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            turn.cancel()


async def _discard(read: asyncio.Future[Any], context: Context) -> None:
    """Read on to the caller's end."""
    await asyncio.wait({read})
    while read.result() is not grpc.aio.EOF:
        read = start_read(context)
        await asyncio.wait({read})


def _retrieve(done: asyncio.Future[Any]) -> None:
    """Look at the error of a read or a write that nobody waits for once its stream has ended."""
    if not done.cancelled():
        done.exception()
