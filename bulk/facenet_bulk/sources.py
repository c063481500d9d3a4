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
                    batches = file.iter_batches(columns=[self.column])
                    yield from _looked_up(
                        str(name) for batch in batches for name in batch.column(0).to_pylist() if name
                    )
            return
        with opened(os.fsencode(self.place)) as file:
            yield from _looked_up(os.fsdecode(line.rstrip(b"\r\n")) for line in file if line.strip())

    def _row_groups(self, archive: Entry) -> Iterator[Entry]:
        with parquet(archive.path) as file:
            for number in range(file.num_row_groups):
                yield archive._replace(row_group=number, n_images=file.metadata.row_group(number).num_rows)


def find(place: str, column: str = "") -> Source:
    """What a SOURCE is, by its name and what is there. Raises BulkError."""
    where = place if is_url(place) else os.path.abspath(place)
    if _is_folder(where) or "*" in where:
        archives: tuple[Kind, ...] = ("tar", "parquet")
        kinds = [each for each in archives if next(_archives(where, each), None)]
        has_photos = bool(kinds) and ("*" not in where and next(_photos(where, Walk()), None) is not None)
        if len(kinds) + has_photos > 1:
            raise BulkError(f"{place} holds photos and archives: name one kind, as '{place.rstrip('/')}/*.{kinds[0]}'")
        kind: Kind = kinds[0] if kinds else "photos"
    else:
        if not _is_there(where):
            raise BulkError(f"no such file or folder: {place}")
        found = next((each for suffix, each in _ARCHIVES.items() if where.lower().endswith(suffix)), None)
        if found is None and not where.lower().endswith(_LISTS):
            raise BulkError(
                f"{place} is no folder, .tar or .parquet, nor a list of paths ({', '.join(_LISTS)}); a single photo "
                "needs no bulk run"
            )
        kind = found or "photos"
        if found is None:
            return Source(where, "photos", is_list=True)
    if kind != "parquet":
        return Source(where, kind)
    column, is_list = _image_column(next(_archives(where, "parquet")), column)
    return Source(where, "photos" if is_list else "parquet", is_list, column)


def is_url(place: str) -> bool:
    """Whether fsspec reads it."""
    return bool(_URL.match(place))


# ---- listing ----


class Status(NamedTuple):
    size: int
    modified_ns: int


def _photos(place: str, walk: Walk) -> Iterator[Entry]:
    """The photos below a folder."""
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
    files, path = fsspec.core.url_to_fs(place)
    if "*" in place:
        found = files.glob(path)
    else:
        found = [path] if files.isfile(path) else [os.path.join(path, name) for name in _names(files, path)]
    for each in sorted(found):
        if each.lower().endswith(suffixes):
            url = files.unstrip_protocol(each) if is_url(place) else each
            yield Entry(os.fsencode(url), *status_of(os.fsencode(url)), n_images=-1)


def _names(files: Any, folder: str) -> list[str]:
    return [each.rstrip("/").rpartition("/")[2] for each in files.ls(folder, detail=False)]


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
        opened: IO[bytes] = fsspec.open(name, "rb").open()
        return opened
    return open(path, "rb")
