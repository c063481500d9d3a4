"""A few numbers that the server and one worker share: how many threads its job may use, and that it lives."""

import mmap
import os
import struct
import tempfile
import threading
import time

_BYTES = 4096
_NUMBER = struct.Struct("<Q")
_THREADS_AT, _BEATS_AT = 0, 8
_BEAT_S = 0.25


class Board:
    """Shared memory of a page, made by the server; the worker opens it by its inherited descriptor."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _unnamed() if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, _BYTES)

    @property
    def n_threads(self) -> int:
        """The threads that the worker's job may use now."""
        return int(_NUMBER.unpack_from(self._memory, _THREADS_AT)[0])

    @n_threads.setter
    def n_threads(self, count: int) -> None:
        _NUMBER.pack_into(self._memory, _THREADS_AT, count)

    @property
    def beats(self) -> int:
        """How often the worker's heart has beaten."""
        return int(_NUMBER.unpack_from(self._memory, _BEATS_AT)[0])

    def start_beating(self) -> None:
        """In the worker: a thread that beats, as long as threads get to run."""
        threading.Thread(target=self._beat, name="heart", daemon=True).start()

    def close(self) -> None:
        """Free it."""
        if not self._memory.closed:
            self._memory.close()
            os.close(self.descriptor)

    def _beat(self) -> None:
        while True:
            _NUMBER.pack_into(self._memory, _BEATS_AT, self.beats + 1)
            time.sleep(_BEAT_S)


def _unnamed() -> int:
    """A page of memory, or where there is no such thing of a file, without a name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("facenet-board", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, _BYTES)
    return descriptor
