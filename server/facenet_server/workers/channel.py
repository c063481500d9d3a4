"""Messages between the server and a worker: a header of JSON, and bytes beside it, over a Unix socket.

Small payloads travel within the message, larger ones in memory without a name (memfd_create(2)), whose descriptor the
socket passes: written once by the sender, and read where they lie. What has no name cannot be left behind. Where the
system has no such memory, all payloads travel within. Nothing is pickled.
"""

import asyncio
import json
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Header = dict[str, Any]

_WITHIN_BYTES = 1 << 15  # a memfd costs a few system calls and page faults
_SLOW_BYTES = 1 << 20  # more are copied in a thread
_FRAME = struct.Struct("<IQ?")  # bytes of the header, bytes of the payload, whether that is passed memory
_READ_BYTES, _MOST_DESCRIPTORS = 1 << 18, 64
_MOST_PIECES = 512  # of one writev
_HAS_MEMORY = hasattr(os, "memfd_create") and hasattr(socket, "send_fds")


class Payload(NamedTuple):
    """Bytes to be sent: as they are, or as a descriptor of the memory that holds them."""

    data: bytes = b""
    descriptor: int | None = None
    n_bytes: int = 0


async def packed(pieces: Sequence[Any]) -> Payload:
    """Buffers one after the other, copied once; many bytes off the event loop."""
    pieces = [memoryview(piece).cast("B") for piece in pieces if memoryview(piece).nbytes]
    n_bytes = sum(piece.nbytes for piece in pieces)
    if n_bytes <= _WITHIN_BYTES or not _HAS_MEMORY:
        return Payload(b"".join(pieces), n_bytes=n_bytes)
    if n_bytes <= _SLOW_BYTES:
        return _in_memory(pieces, n_bytes)
    copying = asyncio.get_running_loop().run_in_executor(None, _in_memory, pieces, n_bytes)
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        copying.add_done_callback(_drop_copy)
        raise


def _in_memory(pieces: Iterable[memoryview], n_bytes: int) -> Payload:
    descriptor = os.memfd_create("facenet", os.MFD_CLOEXEC)
    try:
        left = deque(pieces)
        while left:
            written = os.writev(descriptor, [left[number] for number in range(min(len(left), _MOST_PIECES))])
            while left and written >= left[0].nbytes:
                written -= left.popleft().nbytes
            if written:
                left[0] = left[0][written:]
    except BaseException:
        os.close(descriptor)
        raise
    return Payload(descriptor=descriptor, n_bytes=n_bytes)


def drop(payload: Payload) -> None:
    """Free what will not be sent."""
    if payload.descriptor is not None:
        os.close(payload.descriptor)


def _drop_copy(copied: "asyncio.Future[Payload]") -> None:
    """Free what nobody waits for."""
    if not copied.cancelled() and copied.exception() is None:
        drop(copied.result())


def told(arrays: Sequence[NDArray[Any]]) -> list[tuple[str, tuple[int, ...]]]:
    """What a header says of arrays that lie one after the other in its payload."""
    return [(array.dtype.str, array.shape) for array in arrays]


def arrays_of(payload: Any, headers: Iterable[tuple[str, Sequence[int]]]) -> list[NDArray[Any]]:
    """The arrays, where they lie in the payload."""
    arrays, at = [], 0
    for dtype, shape in headers:
        count = int(np.prod(shape))
        arrays.append(np.frombuffer(payload, dtype, count, at).reshape(shape) if count else np.empty(shape, dtype))
        at += count * np.dtype(dtype).itemsize
    return arrays


class Channel:
    """One end of a socket, on an event loop. ``on_message`` is called with each header and its payload, ``on_end`` once
    where the other side has gone."""

    def __init__(
        self, end: socket.socket, on_message: Callable[[Header, Any], object], on_end: Callable[[], object]
    ) -> None:
        self._socket = end
        self._on_message, self._on_end = on_message, on_end
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, int | None]] = deque()  # bounded by the jobs under way
        self._is_open = True
        end.setblocking(False)
        self._loop.add_reader(end, self._read)

    def send(self, header: Header, payload: Payload = Payload()) -> None:  # noqa: B008 (a tuple)
        """Send a message as soon as the socket takes it. One to a side that has gone is dropped: ``on_end`` tells."""
        if not self._is_open:
            drop(payload)
            return
        text = json.dumps(header).encode()
        frame = _FRAME.pack(len(text), payload.n_bytes, payload.descriptor is not None)
        self._unsent.append((memoryview(frame + text + payload.data), payload.descriptor))
        if len(self._unsent) == 1:
            self._write()

    def close(self) -> None:
        """End it, which the other side sees. ``on_end`` is not called."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        for descriptor in self._descriptors:
            os.close(descriptor)
        for _, unsent in self._unsent:
            if unsent is not None:
                os.close(unsent)
        self._descriptors.clear()
        self._unsent.clear()
        self._socket.close()

    def _end(self) -> None:
        if self._is_open:
            self.close()
            self._on_end()

    def _finish(self) -> None:
        """Read what the other side sent before it went."""
        if self._is_open:
            self._read()
            self._end()

    def _write(self) -> None:
        try:
            while self._unsent:
                data, descriptor = self._unsent[0]
                if descriptor is None:
                    sent = self._socket.send(data)
                else:
                    sent = socket.send_fds(self._socket, [data], [descriptor])
                    os.close(descriptor)
                if sent < len(data):
                    self._unsent[0] = data[sent:], None
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._write)
        except OSError:
            self._loop.call_soon(self._finish)
        else:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            while self._is_open:
                if _HAS_MEMORY:
                    data, descriptors, _, _ = socket.recv_fds(self._socket, _READ_BYTES, _MOST_DESCRIPTORS)
                    self._descriptors.extend(descriptors)
                else:
                    data = self._socket.recv(_READ_BYTES)
                if not data:
                    self._end()
                    return
                self._received += data
                self._take_messages()
        except BlockingIOError:
            pass
        except OSError:
            self._end()

    def _take_messages(self) -> None:
        while self._is_open and len(self._received) >= _FRAME.size:
            n_header, n_payload, is_passed = _FRAME.unpack_from(self._received)
            n_within = 0 if is_passed else n_payload
            end = _FRAME.size + n_header + n_within
            if len(self._received) < end:
                return
            if is_passed and not self._descriptors:  # this process may open no more: it was lost on the way
                self._end()
                return
            header = json.loads(self._received[_FRAME.size : _FRAME.size + n_header])
            payload: Any = bytes(self._received[_FRAME.size + n_header : end])
            del self._received[:end]
            if is_passed:
                payload = _mapped(self._descriptors.popleft(), n_payload)
            self._on_message(header, payload)


def _mapped(descriptor: int, n_bytes: int) -> mmap.mmap:
    """Passed memory, to be read; it is freed with the last array on it."""
    try:
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        return mmap.mmap(descriptor, n_bytes, flags=flags, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
