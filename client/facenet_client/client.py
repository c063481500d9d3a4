"""The synchronous client: the asynchronous one, run on an event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, Unpack

import grpc

from facenet_client import _loops, _process, _wire
from facenet_client._session import Session
from facenet_client.aio import AsyncClient
from facenet_client.errors import CallError
from facenet_client.stats import ServerStats
from facenet_client.types import (
    CallOptions,
    CompareOptions,
    Comparison,
    CropOptions,
    Detection,
    DetectOptions,
    Embedding,
    EmbedOptions,
    ImageLike,
    ServerInfo,
    Side,
)

T = TypeVar("T")
InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")


class Client:
    """A connection to a FaceNet Serve server.

    ``target`` is a gRPC target as "127.0.0.1:50051", or several: a list, or "host:50051,host:50052". The client spreads
    the messages of each stream, and single small calls, over all servers; the servers must run the same models.
    ``connections`` is the number of connections to each server. ``credentials`` are gRPC's, for TLS and tokens (None:
    plain text). ``timeout_s`` limits the wait for each message's answer (None: no limit). Each call may set its own; a
    stream as a whole has no deadline. If a server is away or not up yet, a call waits for it, up to ``timeout_s``
    (None: a minute), unless ``retry=False``. Methods take any iterable, of any length, split it into messages by the
    server's limits, and give results in input order. An error of one item is its result's ``error``; an error of the
    whole call is raised as a CallError.

    A worker thread reads the iterable, ahead of the results. A client may be used from several threads.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        timeout_s: float | None = 30.0,
        connections: int = 1,
        retry: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._client = AsyncClient(
            target, timeout_s=timeout_s, connections=connections, retry=retry, credentials=credentials
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._leaving: set[asyncio.Future[None]] = set()  # a loop keeps only weak references to its tasks
        self._lock = threading.RLock()  # between giving work to the loop and taking the loop away

    def __enter__(self) -> Self:
        self.open()
        return self

    def open(self) -> None:
        """Open the client, as ``with`` does; no effect if it is open. Raises RuntimeError if gevent has replaced this
        process's threads. If this process was forked after another client was opened, later calls raise it."""
        if _process.is_forked():  # raised by calls: a pool would restart for ever workers that fail at their start
            return
        _process.check_usable()
        with self._lock:
            if self._loop is None:
                self._loop = _loops.take()
                self._thread = threading.Thread(target=self._loop.run_forever, name="facenet-client", daemon=True)
                self._thread.start()
                self._wait(self._client.open())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the client, as the end of ``with`` does: running calls end with a CallError. No effect on a closed
        client, or on a client of the process that this process was forked from."""
        if _process.is_forked():  # the lock may be held for ever
            return
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        _loops.give_back(loop)

    async def _close(self) -> None:
        """Close the client, and let no other thread wait for ever: all work that was given to this loop is a task by
        now."""
        await self._client.__aexit__(None, None, None)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def __repr__(self) -> str:
        return repr(self._client).removeprefix("Async")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client cannot be pickled or copied: it is a connection, open one in each process")

    def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Wait until a server says that it is ready. Raises ServerUnavailable if none is ready in time (None: waits for
        ever). Where waiting does not help, raises another CallError at once."""
        self._wait(self._client.wait_until_ready(timeout_s))

    def is_ready(self, timeout_s: float = 1.0) -> bool:
        """Whether a server is ready now. Use it in a service's own health check."""
        return self._wait(self._client.is_ready(timeout_s))

    def server_info(self, **options: Unpack[CallOptions]) -> ServerInfo:
        """The server's models, providers and limits. With several servers, each limit is the smallest of theirs."""
        return self._wait(self._client.server_info(**options))

    def server_stats(self, **options: Unpack[CallOptions]) -> ServerStats:
        """What the server has done so far. With several servers, the sum over all."""
        return self._wait(self._client.server_stats(**options))

    def detect(self, images: Iterable[ImageLike], **options: Unpack[DetectOptions]) -> list[Detection]:
        """Find the faces of each image."""
        return list(self.detect_stream(images, **options))

    def detect_stream(self, images: Iterable[ImageLike], **options: Unpack[DetectOptions]) -> Iterator[Detection]:
        """``detect`` over unbounded input, result by result."""
        return self._results(_wire.detect(options), images)

    def embed(self, images: Iterable[ImageLike], **options: Unpack[EmbedOptions]) -> list[Detection]:
        """Find the faces of each image and embed them: ``Face.embedding`` is set."""
        return list(self.embed_stream(images, **options))

    def embed_stream(self, images: Iterable[ImageLike], **options: Unpack[EmbedOptions]) -> Iterator[Detection]:
        """``embed`` over unbounded input, result by result."""
        return self._results(_wire.embed(options), images)

    def embed_crops(self, crops: Iterable[ImageLike], **options: Unpack[CropOptions]) -> list[Embedding]:
        """Embed ready crops of 160×160 pixels, each one face."""
        return list(self.embed_crops_stream(crops, **options))

    def embed_crops_stream(self, crops: Iterable[ImageLike], **options: Unpack[CropOptions]) -> Iterator[Embedding]:
        """``embed_crops`` over unbounded input, result by result."""
        return self._results(_wire.embed_crops(options), crops)

    def compare(self, pairs: Iterable[tuple[Side, Side]], **options: Unpack[CompareOptions]) -> list[Comparison]:
        """Give the distance between the two faces of each pair, and whether they are of the same person."""
        return list(self.compare_stream(pairs, **options))

    def compare_stream(
        self, pairs: Iterable[tuple[Side, Side]], **options: Unpack[CompareOptions]
    ) -> Iterator[Comparison]:
        """``compare`` over unbounded input, result by result."""
        return self._results(_wire.compare(options), pairs)

    def _results(self, exchange: _wire.Exchange[InputT, ResultT], inputs: Iterable[InputT]) -> Iterator[ResultT]:
        _wire.check_inputs(exchange, inputs)
        return self._iterate(exchange, inputs)

    def _iterate(self, exchange: _wire.Exchange[InputT, ResultT], inputs: Iterable[InputT]) -> Iterator[ResultT]:
        session = self._wait(self._client.open_session(exchange, inputs))
        self._wait(session.__aenter__())
        try:
            while (results := self._wait(session.next_results())) is not None:
                yield from results
        finally:
            self._end(session)

    def _end(self, session: Session[Any, Any]) -> None:
        if threading.current_thread() is self._thread:  # an abandoned generator, garbage-collected on the loop's thread
            leaving = asyncio.ensure_future(session.__aexit__(None, None, None))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            return
        with suppress(CallError):  # the client was closed, which ended the session
            self._wait(session.__aexit__(None, None, None))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop, and wait for it here."""
        if _process.is_forked():  # the loop's thread does not exist here, and the lock may be held for ever
            work.close()
            _process.check_not_forked()
        with self._lock:
            if self._loop is None:
                work.close()
                if self._thread is None:
                    raise RuntimeError("the client is not open: use it as `with Client(...)`, or call open() first")
                raise CallError("the client was closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise CallError("the client was closed") from None
        except BaseException:
            future.cancel()  # for an interrupt of this thread; no effect if the coroutine itself raised
            raise
