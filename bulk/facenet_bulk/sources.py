"""What SOURCE holds, in an order that stays: photos, or archives of photos. Local, or by fsspec."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from facenet_client.cli.photos import SUFFIXES, Walk

from facenet_bulk.errors import BulkError

Kind = Literal["photos", "tar", "parquet"]
_ARCHIVES: dict[str, Kind] = {".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".parquet": "parquet"}
_LISTS = (".txt", ".lst", ".list")
_PATH_COLUMNS, _BYTES_COLUMNS = ("path", "file", "file_name", "filename", "url", "uri", "source"), ("image", "bytes")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(::|://)")

_LOOK_UPS, _A_TURN = 16, 1000

UNREADABLE = "UNREADABLE"


class Entry(NamedTuple):
    """A photo, or an archive that is read as a whole: a tar file, a row group of a Parquet file.

    ``path`` is a local path as the system has it, or a URL. ``size`` in bytes and ``modified_ns`` are -1 where nobody
    tells. ``n_images`` is -1 where only reading tells.
    """

    path: bytes
    size: int = -1
    modified_ns: int = -1
    row_group: int = -1
    n_images: int = 1


class Unreadable(Exception):
    """An image that cannot be had. ``reason`` is for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Source:
    """Where the images are: ``place`` is a local path, made absolute, or a URL. ``column`` holds the images of Parquet
    files. All that the images' order depends on is in its fields."""

    place: str
    kind: Kind
    is_list: bool = False
    column: str = ""

    def entries(self, walk: Walk) -> Iterator[Entry]:
        """Everything there is, in an order that stays. Raises BulkError."""
        with translated(self.place):
            yield from self._found(walk)

    def _found(self, walk: Walk) -> Iterator[Entry]:
        if self.kind == "photos":
            return self._listed() if self.is_list else _photos(self.place, walk)
        archives = list(_archives(self.place, self.kind))
        if self.kind == "tar":
            return iter(archives)
        return (entry for archive in archives for entry in self._row_groups(archive))

    def _listed(self) -> Iterator[Entry]:
        """The paths of a list: lines of a text, or a column of Parquet files. Relative ones start here."""
        if Path(self.place).suffix == ".parquet" or self.column:
            for archive in _archives(self.place, "parquet"):
                with parquet(archive.path) as file:
                    if self.column not in file.schema_arrow.names:
                        raise BulkError(f"{os.fsdecode(archive.path)} has no column {self.column}")
                    columns = (batch.column(0) for batch in file.iter_batches(columns=[self.column]))
                    yield from _looked_up(str(name) for column in columns for name in column.to_pylist() if name)
            return
        with opened(os.fsencode(self.place)) as file:
            yield from _looked_up(os.fsdecode(line.rstrip(b"\r\n")) for line in file if line.strip())

    def _row_groups(self, archive: Entry) -> Iterator[Entry]:
        with parquet(archive.path) as file:
            for number in range(file.num_row_groups):
                yield archive._replace(row_group=number, n_images=file.metadata.row_group(number).num_rows)


def find(place: str, column: str = "") -> Source:
    """What a SOURCE is, by its name and what is there. Raises BulkError."""
    with translated(place):
        where = place if is_url(place) else os.path.abspath(place)
        if "*" not in where and not _is_there(where):
            raise BulkError(f"no such file or folder: {place}")
        if where.lower().endswith(_LISTS):
            return Source(where, "photos", is_list=True)
        kind = _kind_of(where, place)
        if kind != "parquet":
            return Source(where, kind)
        column, is_list = _image_column(next(_archives(where, "parquet")), column)
        return Source(where, "photos" if is_list else "parquet", is_list, column)


def _kind_of(where: str, place: str) -> Kind:
    """By its suffix, or by what a folder holds, and what a pattern meets."""
    is_pattern = "*" in where
    if not is_pattern and not _is_folder(where):
        if found := next((kind for suffix, kind in _ARCHIVES.items() if where.lower().endswith(suffix)), None):
            return found
        raise BulkError(
            f"{place} is no folder, .tar or .parquet, nor a list of paths ({', '.join(_LISTS)}); a single photo needs "
            "no bulk run"
        )
    kinds: tuple[Kind, ...] = ("tar", "parquet")
    found_kinds = [kind for kind in kinds if next(_archives(where, kind), None)]
    has_photos = bool(found_kinds) and not is_pattern and next(_photos(where, Walk()), None) is not None
    if len(found_kinds) + has_photos > 1:
        folder = place.rstrip("/")
        raise BulkError(
            f"{place} holds photos and archives: name one kind by a pattern, as '{folder}/*.{found_kinds[0]}' or "
            f"'{folder}/*.jpg'"
        )
    return found_kinds[0] if found_kinds else "photos"


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Errors of listing a place as BulkError."""
    try:
        yield
    except BulkError:
        raise
    except ImportError as error:
        raise BulkError(f"{place} needs a package of its file system: {error}") from error
    except Exception as error:  # any, as of a file system of fsspec
        raise BulkError(f"cannot list {place}: {said(error)}") from error


def said(error: Exception) -> str:
    """What an error says, on one line."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def is_url(place: str) -> bool:
    """Whether fsspec reads it."""
    return bool(_URL.match(place))


# ---- listing ----


class Status(NamedTuple):
    size: int
    modified_ns: int


def _photos(place: str, walk: Walk) -> Iterator[Entry]:
    """The photos below a folder, or those that a pattern names."""
    if "*" in place:
        yield from _looked_up(os.fsdecode(path) for path in _files_at(place))
        return
    if not is_url(place):
        for path in walk.below(Path(place)):
            yield _listed_photo(str(path))
        return
    files, root = fsspec.core.url_to_fs(place)
    for path, info in sorted(files.find(root, detail=True).items()):
        if Path(path).suffix.lower() in SUFFIXES:
            yield Entry(files.unstrip_protocol(path).encode(), *_told(info))


def _archives(place: str, kind: Kind) -> Iterator[Entry]:
    """The archives of one kind that a file, a folder or a pattern names, in order."""
    suffixes = tuple(suffix for suffix, its_kind in _ARCHIVES.items() if its_kind == kind)
    for path in _files_at(place):
        if os.fsdecode(path).lower().endswith(suffixes):
            yield Entry(path, *status_of(path), n_images=-1)


def _files_at(place: str) -> list[bytes]:
    """The files, but no folders, that a file's name, a folder's or a pattern stands for, in order."""
    files, path = fsspec.core.url_to_fs(place)
    if "*" in place:
        found = files.glob(path, detail=True).values()
    else:
        found = [files.info(path)] if files.isfile(path) else files.ls(path, detail=True)
    names = sorted(each["name"] for each in found if each["type"] != "directory")
    return [os.fsencode(files.unstrip_protocol(name) if is_url(place) else name) for name in names]


def _looked_up(names: Iterator[str]) -> Iterator[Entry]:
    """Photos by name, in order; many are asked for at once, since each may be far away."""
    with ThreadPoolExecutor(_LOOK_UPS) as threads:
        while some := list(islice(names, _A_TURN)):
            yield from threads.map(_listed_photo, some)


def _listed_photo(name: str) -> Entry:
    path = os.fsencode(name if is_url(name) else os.path.abspath(name))
    try:
        return Entry(path, *status_of(path))
    except (OSError, ValueError, Unreadable):  # reading it tells why
        return Entry(path)


def status_of(path: bytes) -> Status:
    """Raises OSError, and Unreadable where it is no regular file: opening a pipe would never end."""
    name = os.fsdecode(path)
    if is_url(name):
        files, inner = fsspec.core.url_to_fs(name)
        return _told(files.info(inner))
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(UNREADABLE, "it is no regular file")
    return Status(status.st_size, status.st_mtime_ns)


def _told(info: dict[str, Any]) -> Status:
    """What a file system of fsspec tells of a file: their words for the time differ."""
    size = info.get("size")
    when = next(
        (info[key] for key in ("mtime", "LastModified", "last_modified", "modified", "created") if key in info), -1
    )
    if isinstance(when, datetime):
        when = when.timestamp()
    return Status(
        -1 if size is None else int(size), int(when * 1e9) if isinstance(when, int | float) and when >= 0 else -1
    )


def _is_folder(where: str) -> bool:
    if not is_url(where):
        return os.path.isdir(where)
    files, path = fsspec.core.url_to_fs(where)
    return bool(files.isdir(path))


def _is_there(where: str) -> bool:
    files, path = fsspec.core.url_to_fs(where)
    return bool(files.exists(path))


def _image_column(archive: Entry, wanted: str) -> tuple[str, bool]:
    """The column with the images, and whether it holds their paths. Raises BulkError."""
    with parquet(archive.path) as file:
        schema = file.schema_arrow
    with_bytes = [field.name for field in schema if _holds_bytes(field.type)]
    texts = [field.name for field in schema if _is_text(field.type)]
    known = [name for name in _BYTES_COLUMNS if name in with_bytes]
    candidates = [wanted] if wanted else known or with_bytes or [name for name in _PATH_COLUMNS if name in texts]
    if len(candidates) != 1 or candidates[0] not in (*with_bytes, *texts):
        there = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise BulkError(f"which column holds the images, as bytes or paths? --image-column says it; there is {there}")
    return candidates[0], candidates[0] in texts


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # as Hugging Face's data sets have images
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def known_total(entries: Iterable[int]) -> int | None:
    """The sum of the entries' images; None where only reading tells."""
    total = 0
    for n_images in entries:
        if n_images < 0:
            return None
        total += n_images
    return total


@contextmanager
def parquet(path: bytes) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read. Raises OSError and ArrowException."""
    with opened(path) as raw, closing(pq.ParquetFile(raw)) as file:
        yield file


def opened(path: bytes) -> IO[bytes]:
    """A file to read, local or by fsspec. Raises OSError."""
    name = os.fsdecode(path)
    if is_url(name):
        files, inner = fsspec.core.url_to_fs(name)
        opened: IO[bytes] = files.open(inner, "rb")
        return opened
    return open(path, "rb")
