"""OUT as a folder of files that are whole or not there: local, or through fsspec."""

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec

from facenet_bulk.errors import BulkError
from facenet_bulk.sources import is_url

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ASIDE = ".bulk-unfinished-"
_SHOW_WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}  # file systems that have no half ones


class Files:
    """Files below one place: each is written aside and renamed, but where a store shows whole objects only."""

    def __init__(self, place: str) -> None:
        place = place.removeprefix("file://")
        self.place = place if is_url(place) else os.path.abspath(place)
        self._local = None if is_url(place) else Path(self.place)
        self._fs: Any = None
        self._root = ""
        if self._local is None:
            self._fs, self._root = fsspec.core.url_to_fs(place)

    def names(self, folder: str = "") -> set[str]:
        """The files of a folder below; none where it is not there."""
        if self._local:
            with suppress(FileNotFoundError):
                return set(os.listdir(self._local / folder))
            return set()
        with suppress(FileNotFoundError):
            listed = self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=False, refresh=True)
            return {each.rstrip("/").rpartition("/")[2] for each in listed}
        return set()

    def open(self, name: str) -> IO[bytes]:
        """A file to read. Raises FileNotFoundError."""
        if self._local:
            return open(self._local / name, "rb")
        opened: IO[bytes] = self._fs.open(f"{self._root}/{name}", "rb")
        return opened

    @contextmanager
    def written(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write, which takes its place at the end, if there was no error."""
        if self._local is None:
            data = io.BytesIO()
            yield data
            path = f"{self._root}/{name}"
            folder = path.rpartition("/")[0]
            self._fs.makedirs(folder, exist_ok=True)
            protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else {*self._fs.protocol}
            aside = path if protocols & _SHOW_WHOLE_OBJECTS else f"{folder}/{_ASIDE}{secrets.token_hex(4)}"
            self._fs.pipe_file(aside, data.getvalue())
            if aside != path:
                self._fs.mv(aside, path)
            return
        file_path = self._local / name
        file_path.parent.mkdir(parents=True, exist_ok=True)
        beside = file_path.with_name(f"{_ASIDE}{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(file_path)
        finally:
            beside.unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Meanwhile no other run of this machine has the folder; at the end, what was left unfinished goes. Raises
        BulkError where another run has it. Elsewhere nothing happens."""
        if self._local is None or fcntl is None:
            yield
            return
        path = self._local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BulkError(f"another run is at work on {self.place}") from None
            try:
                yield
            finally:
                for unfinished in (*self._local.glob(f"{_ASIDE}*"), *path.parent.glob(f"{_ASIDE}*")):
                    unfinished.unlink(missing_ok=True)
