"""One stream's life: messages in, answers out in request order, from its opening to whatever end it takes.

A stream has one reader task and one writer, the handler itself. The reader takes a message only with a credit for it,
which returns when its answer is written, and under a reservation of bytes. A caller that sends faster than it is
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

from facenet_server.admission.controller import AdmissionController, ResponseBytes, StreamSession
from facenet_server.admission.fair_semaphore import FairSemaphore
from facenet_server.admission.wait_estimator import clamped_backoff_s
from facenet_server.errors import OVERLOADED, ItemError, Overloaded, ProtocolError, Refused, TimedOut
from facenet_server.rpc import converters, prescan
from facenet_server.serving.micro_batch import IMAGES, RequestContext

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[bytes, Message]

_LINGER_S = 2.0  # how long a stream's end waits for its caller, who has been told, to close its side


Paths: TypeAlias = Mapping[str, "Paths"]  # fields of a message by name, as prescan has them by number


class Method(NamedTuple):
    """A streaming method: its request and response messages, the field that holds the batch, who answers; and what kind
    a message is: IMAGES where an item has the fields of a path (none: any item), else another."""

    request: type[Any]
    response: type[Any]
    batch_field: str
    answer: Callable[[Any, RequestContext], Coroutine[Any, Any, Message]]
    to_images: Paths
    other_kind: str = IMAGES

    def fields(self) -> prescan.Fields:
        """Where in a request's bytes is what must be known of it. Raises KeyError where a name is none of its
        fields."""
        names = self.request.DESCRIPTOR.fields_by_name
        items = names[self.batch_field]
        to_images, messages = _numbers(items.message_type, self.to_images), _messages(self.request.DESCRIPTOR)
        return prescan.Fields(names["id"].number, items.number, names["timeout_ms"].number, to_images, messages)

    def kinds(self, scanned: prescan.Prescan) -> dict[str, int]:
        """How many of such a request's items are of which kind. The first is the request's."""
        rest = scanned.n_items - scanned.n_images
        of_rest = {self.other_kind: rest} if rest or not scanned.n_images else {}
        return {IMAGES: scanned.n_images, **of_rest} if scanned.n_images else of_rest


def _numbers(message: Any, paths: Paths) -> prescan.Paths:
    fields = [(message.fields_by_name[name], inner) for name, inner in paths.items()]
    return {field.number: _numbers(field.message_type, inner) for field, inner in fields}


def _messages(message: Any) -> prescan.Messages:
    """The fields of a message that are messages."""
    return {field.number: _messages(field.message_type) for field in message.fields if field.message_type}


class StreamLimits(NamedTuple):
    """What bounds one stream: messages read and not answered, items of a message, images worked on at once.

    ``max_write_stall_s``: how long its caller may leave an answer unread. ``first_message_s``: within what time its
    first message must be whole, once there is room for it.
    """

    max_messages: int
    max_items_per_message: int
    max_images: int
    max_write_stall_s: float
    first_message_s: float = 10.0


class End(NamedTuple):
    """How a stream ends early, after the answers to everything that was accepted."""

    code: grpc.StatusCode
    details: str


class _Pending(NamedTuple):
    """An answer to come, or what makes the refusal of its message, and what the message counts for in admission."""

    answer: asyncio.Task[Message] | Callable[[], Message]
    n_items: int = 0
    n_bytes: int = 0
    crops: ResponseBytes | None = None
    retry_at_s: float | None = None  # on the loop's clock: when to come back, where its refusal knows


_END_DRAINING = End(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
_END_SILENT = End(grpc.StatusCode.DEADLINE_EXCEEDED, "no first message came in time")
_END_STALLED = End(grpc.StatusCode.CANCELLED, "the answers were not taken in time")
_Accepted = asyncio.Queue[_Pending | End | None]  # None: the caller has no more


class Stream:
    """One open stream; ``serve`` runs it. ``draining`` set lets it finish what it accepted, then end."""

    _session: StreamSession
    _tasks: asyncio.TaskGroup
    _drain_watch: asyncio.Task[Any]  # ends once the server drains
    _late: asyncio.Handle  # of the write

    def __init__(
        self,
        method: Method,
        context: Context,
        limits: StreamLimits,
        admission: AdmissionController,
        draining: asyncio.Event,
        scan: Callable[[bytes, prescan.Fields, int], prescan.Prescan] = prescan.scan,
    ) -> None:
        self._method = method
        self._context = context
        self._limits = limits
        self._admission = admission
        self._draining = draining
        self._scan, self._fields = scan, method.fields()
        self._images = FairSemaphore(limits.max_images)
        self._credits = asyncio.Semaphore(limits.max_messages)
        self._accepted: _Accepted = asyncio.Queue()  # bounded by the credits
        self._reader: asyncio.Task[None] | None = None  # None: there is none any more
        self._leaving: ResponseBytes | None = None  # of the answer that is being written
        self._is_new = True  # no message was read yet
        self._is_stalled = False  # the caller takes no answers

    async def serve(self, caller: str) -> End | None:
        """Write the caller's answers, in request order, until it ends. Raises Refused where there is no room for
        it."""
        try:
            self._session = self._admission.open_stream(caller, self._context.peer())
        except Refused:
            if self._draining.is_set():  # there is nothing to come back to
                return _END_DRAINING
            raise
        with self._session:
            try:
                return await self._answer()
            finally:
                if self._is_stalled and self._leaving is not None:
                    self._leaving.release()

    async def _answer(self) -> End | None:
        async with asyncio.TaskGroup() as self._tasks:
            self._reader = self._tasks.create_task(self._read())
            while isinstance(pending := await self._accepted.get(), _Pending):
                answer, n_items, n_bytes, crops, retry_at_s = pending
                del pending
                message: Any = await answer if isinstance(answer, asyncio.Task) else answer()
                del answer
                if any(result.error.reason == OVERLOADED for result in message.results):
                    message.retry_after_ms = round(1000 * self._backoff_s(retry_at_s))
                self._leaving = crops
                if not await self._write(message):
                    return _END_STALLED
                self._leaving = None
                self._session.complete(n_items, n_bytes, crops)
                self._credits.release()
                del message
            if pending is _END_DRAINING:
                if not await self._write(self._method.response(draining=True)):
                    return _END_STALLED
                # A caller that still writes when its call ends may lose answers that it has not read.
                await asyncio.wait({self._reader}, timeout=_LINGER_S)
            self._reader.cancel()  # it waits for a message that nobody wants, if for anything
        return pending

    async def _write(self, message: Message) -> bool:
        """Write, however long it takes. False where the caller took nothing for too long, and the stream is stalled."""
        self._late = asyncio.get_running_loop().call_later(self._limits.max_write_stall_s, self._on_write_timeout)
        try:
            await self._context.write(message)
        except grpc.aio.BaseError:  # the caller has gone: gRPC is about to cancel this
            self._late.cancel()
            await asyncio.sleep(_LINGER_S)
            raise
        finally:
            self._late.cancel()
        return not self._is_stalled

    def _on_write_timeout(self) -> None:
        """Stall, unless the answer was taken while the loop itself stood still, which the loop tells behind this."""
        self._late = asyncio.get_running_loop().call_soon(self._stall)

    def _stall(self) -> None:
        """Accept no more, and give up the answers behind the one that lies: the stream ends once that is taken, since
        its end cannot be told before."""
        self._is_stalled = True
        while not self._accepted.empty():
            pending = self._accepted.get_nowait()
            if isinstance(pending, _Pending) and isinstance(pending.answer, asyncio.Task):
                pending.answer.cancel()
        reader, self._reader = self._reader, None  # as long as it is there, so is the message that it had
        assert reader is not None
        session = self._session
        if reader.done():
            session.stall(self._leaving)
        else:
            reader.add_done_callback(lambda _: session.stall(self._leaving))  # once it waits for no room
            reader.cancel()

    async def _read(self) -> None:
        """Accept messages, each for a credit and under a reservation, until there are no more to accept; what comes
        while the server drains is discarded."""
        self._drain_watch = asyncio.create_task(self._draining.wait())
        self._drain_watch.add_done_callback(self._begin_drain)
        try:
            while (data := await self._next()) is not grpc.aio.EOF:
                if not self._drain_watch.done():
                    pending = await self._accept(data)
                    if pending is not None:
                        self._accepted.put_nowait(pending)
                    del pending
                del data  # an idle stream keeps nothing of its last message
            if not self._drain_watch.done():
                self._session.cancel_reservation()
                self._accepted.put_nowait(None)
        except ProtocolError as error:
            self._accepted.put_nowait(End(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
        finally:
            self._drain_watch.cancel()

    def _begin_drain(self, drain: asyncio.Task[Any]) -> None:
        """The server drains: nothing more is accepted."""
        if not drain.cancelled():
            self._accepted.put_nowait(_END_DRAINING)

    async def _next(self) -> Any:
        """The caller's next message, or its end: once there is a credit for it and room, or the server drains."""
        session = self._session
        if not self._drain_watch.done():
            await self._credits.acquire()
        if not self._drain_watch.done():
            if session.reserves_at_once:
                await session.reserve_read()
            else:
                await self._unless_drained(session.reserve_read())
        if not self._drain_watch.done():
            session.start_read_timer()
        read = start_read(self._context)
        is_first, self._is_new = self._is_new, False
        await asyncio.wait({read}, timeout=self._limits.first_message_s if is_first else None)
        if not read.done():
            self._accepted.put_nowait(_END_SILENT)
            await asyncio.wait({read})
        return read.result()

    async def _unless_drained(self, wait: Coroutine[Any, Any, None], deadline: float | None = None) -> bool:
        """Whether a wait has ended before the server drained and the time was up; else it is cancelled."""
        remaining_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
        waiting = asyncio.ensure_future(wait)
        try:
            await asyncio.wait({waiting, self._drain_watch}, timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        await asyncio.wait({waiting})
        return not waiting.cancelled()

    async def _accept(self, data: bytes) -> _Pending | None:
        """A message, begun once there is room for its items; or its refusal, for which it is not even parsed. None
        where the server drains instead. Raises ProtocolError."""
        scanned, session = self._prescan(data), self._session
        if not session.charge_bytes(scanned.n_items, len(data)):
            return self._refused(scanned, Overloaded("the server has no room for this message now"))
        kinds = self._method.kinds(scanned)
        kind = next(iter(kinds))
        remaining_s = self._remaining_s(scanned.timeout_ms)
        wait_s = self._admission.estimators[kind].refused_for_s(session.caller, session, kinds[kind], remaining_s)
        if wait_s > 0:
            session.count_refused(scanned.n_items)
            no_time = Overloaded("this message would wait for too much of the time that it has")
            retry_at_s = asyncio.get_running_loop().time() + wait_s
            return self._refused(scanned, no_time, len(data), retry_at_s)
        return await self._begin(data, scanned, kinds)

    async def _begin(self, data: bytes, scanned: prescan.Prescan, kinds: Mapping[str, int]) -> _Pending | None:
        """The message that was read, once there is room for its items; its refusal where its time is up before. Others
        wait for it from now on."""
        session, n_items = self._session, scanned.n_items
        loop = asyncio.get_running_loop()
        deadline = None if scanned.timeout_ms is None else loop.time() + scanned.timeout_ms / 1000
        estimators = self._admission.estimators
        tickets = {kind: estimators[kind].begin(session.caller, session, n) for kind, n in kinds.items()}
        with ExitStack() as unless_begun:
            for each in tickets.values():
                unless_begun.callback(each.finished)
            if session.acquires_at_once(n_items):
                await session.acquire_items(n_items)
            elif (
                not await self._unless_drained(session.acquire_items(n_items), deadline)
                and not self._drain_watch.done()
            ):
                session.count_refused(n_items)
                return self._refused(scanned, TimedOut(), len(data))
            if self._drain_watch.done():
                return None
            request = self._parsed(data)
            unless_begun.pop_all()
        crops = session.admit()
        context = RequestContext(session.caller, self._method.other_kind, self._images, deadline, crops, tickets)
        answer = self._tasks.create_task(self._method.answer(request, context))
        for ticket in tickets.values():
            answer.add_done_callback(ticket.finished)
        return _Pending(answer, n_items, len(data), crops)

    def _prescan(self, data: bytes) -> prescan.Prescan:
        """Raises ProtocolError where the bytes are no message, or one of too many items."""
        most = self._limits.max_items_per_message
        try:
            scanned = self._scan(data, self._fields, most)
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

    def _refused(
        self, scanned: prescan.Prescan, error: ItemError, n_bytes: int = 0, retry_at_s: float | None = None
    ) -> _Pending:
        """The answer that refuses a message, made when its turn comes."""
        answer = partial(converters.refusal, self._method.response, scanned.id, scanned.n_items, error)
        return _Pending(answer, n_bytes=n_bytes, retry_at_s=retry_at_s)

    def _remaining_s(self, timeout_ms: int | None) -> float:
        """How long the answer to a message that has just come is of use: by its own time, and its stream's."""
        of_message, of_stream = None if timeout_ms is None else timeout_ms / 1000, self._context.time_remaining()
        return min(math.inf if each is None else each for each in (of_message, of_stream))

    def _backoff_s(self, retry_at_s: float | None) -> float:
        """When to come back, as of now: a refusal is told after its stream's earlier answers."""
        if retry_at_s is None:
            return self._admission.backoff_s()
        return clamped_backoff_s(retry_at_s - asyncio.get_running_loop().time())


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
