"""One stream's life: messages in, answers out in request order, from the door to whatever end it takes.

A stream has one reader task and one writer, the handler itself. The reader takes a message only with a credit for it,
and while the server has room; the credit returns when its answer is written. A caller that sends faster than it is
served, or does not read, is held back by its own connection. A read is never cancelled while its stream lives, since
grpc.aio would lose the message, and never free it.
"""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from facenet_server.admission.controller import Admission, Visit
from facenet_server.admission.crop_room import Crops
from facenet_server.admission.fair_semaphore import FairSemaphore
from facenet_server.admission.throughput import retry_s
from facenet_server.errors import OVERLOADED, ItemError, Overloaded, ProtocolError, Refused, TimedOut
from facenet_server.rpc import converters, prescan
from facenet_server.serving.micro_batch import WORK, RequestContext

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, Message]

_LINGER_S = 2.0  # how long a stream's end waits for its caller, who has been told, to close its side


Paths: TypeAlias = Mapping[str, "Paths"]  # fields of a message by name, as in wire


class Method(NamedTuple):
    """A streaming method: its request and response messages, the field that holds the batch, who answers; and what kind
    a message is: WORK where an item has the fields of a path (none: any item), else another."""

    request: type[Any]
    response: type[Any]
    batch_field: str
    answer: Callable[[Any, RequestContext], Coroutine[Any, Any, Message]]
    to_work: Paths
    else_kind: str = WORK

    def fields(self) -> prescan.Fields:
        """Where in a request's bytes is what must be known of it. Raises KeyError where a name is none of its
        fields."""
        names = self.request.DESCRIPTOR.fields_by_name
        items = names[self.batch_field]
        to_work, messages = _numbers(items.message_type, self.to_work), _messages(self.request.DESCRIPTOR)
        return prescan.Fields(names["id"].number, items.number, names["timeout_ms"].number, to_work, messages)

    def kinds(self, scanned: prescan.Prescan) -> dict[str, int]:
        """How many of such a request's items are of which kind. The first is the request's."""
        rest = scanned.n_items - scanned.n_work
        of_rest = {self.else_kind: rest} if rest or not scanned.n_work else {}
        return {WORK: scanned.n_work, **of_rest} if scanned.n_work else of_rest


def _numbers(message: Any, paths: Paths) -> prescan.Paths:
    fields = [(message.fields_by_name[name], inner) for name, inner in paths.items()]
    return {field.number: _numbers(field.message_type, inner) for field, inner in fields}


def _messages(message: Any) -> prescan.Messages:
    """The fields of a message that are messages."""
    return {field.number: _messages(field.message_type) for field in message.fields if field.message_type}


class StreamLimits(NamedTuple):
    """What bounds one stream: messages read and not answered, items of a message, images worked on at once, seconds
    that its caller may let an answer lie."""

    max_messages: int
    max_items_per_message: int
    max_images: int
    max_write_stall_s: float


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
        self._seats = FairSemaphore(limits.max_images)
        self._credits = asyncio.Semaphore(limits.max_messages)
        self._accepted: _Accepted = asyncio.Queue()  # bounded by the credits
        self._reader: asyncio.Task[None] | None = None  # None: there is none any more
        self._leaving: Crops | None = None  # of the answer that is being written
        self._late: asyncio.Handle  # of the write
        self._is_stalled = False  # the caller takes no answers

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
            finally:
                if self._is_stalled and self._leaving is not None:
                    self._leaving.gone()

    async def _answer(self, visit: Visit, admission: Admission) -> End | None:
        async with asyncio.TaskGroup() as tasks:
            self._reader = tasks.create_task(self._read(visit, admission, tasks))
            while isinstance(pending := await self._accepted.get(), _Pending):
                answer, n_items, n_bytes, crops, free_at_s = pending
                del pending
                message: Any = await answer if isinstance(answer, asyncio.Task) else answer()
                del answer
                if any(result.error.reason == OVERLOADED for result in message.results):
                    message.retry_after_ms = round(1000 * _retry_after_s(free_at_s, admission))
                self._leaving = crops
                if not await self._write(message, visit):
                    return _STALLED
                self._leaving = None
                visit.answered(n_items, n_bytes, crops)
                self._credits.release()
                del message
            if pending is _DRAINING:
                if not await self._write(self._method.response(draining=True), visit):
                    return _STALLED
                assert self._reader is not None
                # A caller that still writes when its call ends may lose answers that it has not read.
                await asyncio.wait({self._reader}, timeout=_LINGER_S)
                self._reader.cancel()
        return pending

    async def _write(self, message: Message, visit: Visit) -> bool:
        """Write, however long it takes. False where the caller took nothing for too long, and the stream is stalled."""
        self._late = asyncio.get_running_loop().call_later(self._limits.max_write_stall_s, self._is_late, visit)
        try:
            await self._context.write(message)
        except grpc.aio.BaseError:  # the caller has gone: gRPC is about to cancel this
            self._late.cancel()
            await asyncio.sleep(_LINGER_S)
            raise
        finally:
            self._late.cancel()
        return not self._is_stalled

    def _is_late(self, visit: Visit) -> None:
        """What was taken while the loop itself stood still is told in the same turn, behind this."""
        self._late = asyncio.get_running_loop().call_soon(self._stall, visit)

    def _stall(self, visit: Visit) -> None:
        """Accept no more, and give up the answers behind the one that lies: the stream ends once that is taken, since
        its end cannot be told before."""
        self._is_stalled = True
        while not self._accepted.empty():
            pending = self._accepted.get_nowait()
            if isinstance(pending, _Pending) and isinstance(pending.answer, asyncio.Task):
                pending.answer.cancel()
        reader, self._reader = self._reader, None  # as long as it is there, so is the message that it had
        assert reader is not None
        if reader.done():
            visit.stall(self._leaving)
        else:
            reader.add_done_callback(lambda _: visit.stall(self._leaving))  # once it waits for no room
            reader.cancel()

    async def _read(self, visit: Visit, admission: Admission, tasks: asyncio.TaskGroup) -> None:
        """Accept messages, each for a credit and while there is room, until there are no more to accept; what comes
        while the server drains is discarded."""
        draining = asyncio.create_task(self._draining.wait())
        draining.add_done_callback(self._drain)
        try:
            while (data := await self._next(visit, draining)) is not grpc.aio.EOF:
                if not draining.done():
                    pending = await self._accept(data, visit, admission, tasks, draining)
                    if pending is not None:
                        self._accepted.put_nowait(pending)
                    del pending
                del data  # an idle stream keeps nothing of its last message
            if not draining.done():
                visit.expect_no_more()
                self._accepted.put_nowait(None)
        except ProtocolError as error:
            self._accepted.put_nowait(End(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
        finally:
            draining.cancel()

    def _drain(self, draining: asyncio.Task[Any]) -> None:
        """The server drains: nothing more is accepted."""
        if not draining.cancelled():
            self._accepted.put_nowait(_DRAINING)

    async def _next(self, visit: Visit, draining: asyncio.Task[Any]) -> Any:
        """The caller's next message, or its end: once there is a credit for it and room, or the server drains."""
        if not draining.done():
            await self._credits.acquire()
            await _turn(visit, 1, draining)
        if not draining.done():
            visit.expect()
        read = start_read(self._context)
        await asyncio.wait({read})
        return read.result()

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
        scanned = self._prescan(data)
        left_s, refuse = self._left_s(scanned.timeout_ms), partial(self._refusal, scanned)
        if not visit.hold(scanned.n_items, len(data)):
            return _Pending(partial(refuse, Overloaded("the server has no room for this message now")))
        kinds = self._method.kinds(scanned)
        kind = next(iter(kinds))
        back_in_s = admission.backlogs[kind].back_in_s(visit.caller, visit, kinds[kind], left_s)
        if back_in_s > 0:
            visit.refuse(scanned.n_items)
            no_time = Overloaded("this message would wait for too much of the time that it has")
            free_at_s = asyncio.get_running_loop().time() + back_in_s
            return _Pending(partial(refuse, no_time), n_bytes=len(data), free_at_s=free_at_s)
        return await self._begin(data, scanned, kinds, visit, admission, tasks, draining)

    async def _begin(
        self,
        data: bytes,
        scanned: prescan.Prescan,
        kinds: Mapping[str, int],
        visit: Visit,
        admission: Admission,
        tasks: asyncio.TaskGroup,
        draining: asyncio.Task[Any],
    ) -> _Pending | None:
        """The message that is held, once there is room for its items; its refusal where its time is up before. Others
        wait for it from now on."""
        loop = asyncio.get_running_loop()
        deadline = None if scanned.timeout_ms is None else loop.time() + scanned.timeout_ms / 1000
        works = {kind: admission.backlogs[kind].begin(visit.caller, visit, n) for kind, n in kinds.items()}
        with ExitStack() as unless_begun:
            for each in works.values():
                unless_begun.callback(each.over)
            await _turn(visit, scanned.n_items, draining, deadline)
            if draining.done():
                return None
            if not visit.has_room(scanned.n_items):
                visit.refuse(scanned.n_items)
                return _Pending(partial(self._refusal, scanned, TimedOut()), n_bytes=len(data))
            request = self._parsed(data)
            unless_begun.pop_all()
        crops = visit.accept(scanned.n_items)
        context = RequestContext(visit.caller, self._method.else_kind, self._seats, deadline, crops, works)

        def is_done(_: object) -> None:
            for each in works.values():
                each.over()
            crops.done()

        answer = tasks.create_task(self._method.answer(request, context))
        answer.add_done_callback(is_done)
        return _Pending(answer, scanned.n_items, len(data), crops)

    def _prescan(self, data: bytes) -> prescan.Prescan:
        """Raises ProtocolError where the bytes are no message, or one of too many items."""
        most = self._limits.max_items_per_message
        try:
            scanned = prescan.scan(data, self._fields, most)
        except DecodeError:
            raise self._no_message() from None
        if scanned.n_items > most:
            raise ProtocolError(f"the message holds too many items; the limit is {most}")
        return scanned

    def _parsed(self, data: bytes) -> Message:
        """Raises ProtocolError."""
        try:
            request: Message = self._method.request.FromString(data)
        except DecodeError:
            raise self._no_message() from None
        return request

    def _no_message(self) -> ProtocolError:
        return ProtocolError(f"the bytes are no {self._method.request.DESCRIPTOR.name}")

    def _refusal(self, scanned: prescan.Prescan, error: ItemError) -> Message:
        answer: Message = converters.refusal(self._method.response, scanned.id, scanned.n_items, error)
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


def start_read(context: grpc.aio.ServicerContext[bytes, Message]) -> asyncio.Future[Any]:
    """A read to be waited for with asyncio.wait, and never cancelled: grpc.aio would lose its message, and not free
    it."""
    read = asyncio.ensure_future(context.read())
    read.add_done_callback(_retrieve)
    return read


def _retrieve(done: asyncio.Future[Any]) -> None:
    """Look at the error of a read that nobody waits for once its call has ended."""
    if not done.cancelled():
        done.exception()
