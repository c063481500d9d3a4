"""Images read one by one: from files, and from archives as they pass by."""

import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from facenet_client.cli.files import portable
from facenet_client.cli.photos import SUFFIXES

from facenet_bulk.sources import UNREADABLE, Entry, Source, Status, Unreadable, opened, parquet, status_of

CHANGED, TOO_LARGE = "SOURCE_CHANGED", "IMAGE_TOO_LARGE"
_ROWS_A_READ = 64


class Item(NamedTuple):
    """An image under the name that its rows have. ``read`` returns its bytes; it raises Unreadable, and blocks."""

    source: str
    read: Callable[[], bytes]


def items(entry: Entry, source: Source, max_bytes: int) -> Iterator[Item]:
    """The images of an entry, each of which reads by itself; an archive's pass by as they are asked for.

    An archive that breaks off ends with an item that raises Unreadable.
    """
    name = portable(os.fsdecode(entry.path))
    if source.kind == "photos":
        yield Item(name, partial(_bytes_of, entry, max_bytes))
        return
    members = _members if source.kind == "tar" else _rows
    try:
        _check_unchanged(entry, status_of(entry.path))
        for key, read in members(entry, source, max_bytes):
            yield Item(f"{name}#{key}", read)
    except Unreadable as error:
        yield Item(name, partial(_fail, error))
    except (OSError, EOFError, tarfile.TarError, pa.ArrowException) as error:
        yield Item(name, partial(_fail, Unreadable(UNREADABLE, f"the archive cannot be read on: {_said(error)}")))


def _held(data: bytes | None, max_bytes: int) -> bytes:
    """Bytes that are there."""
    if data is None:
        raise Unreadable("EMPTY", "the row has no image")
    _check_size(len(data), max_bytes)
    return data


def _fail(error: Unreadable) -> bytes:
    raise error


def _bytes_of(entry: Entry, max_bytes: int) -> bytes:
    """A photo's file. Raises Unreadable."""
    try:
        _check_unchanged(entry, status_of(entry.path))
        _check_size(entry.size, max_bytes)
        with opened(entry.path) as file:
            most = max_bytes + 1 if entry.size < 0 else entry.size  # where nobody tells it before
            return _held(file.read(most), max_bytes)
    except (OSError, ValueError) as error:
        raise Unreadable(UNREADABLE, f"cannot be read: {_said(error)}") from error


def _members(entry: Entry, source: Source, max_bytes: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The images of a tar file, in WebDataset's layout or any other: members with a photo's suffix."""
    with opened(entry.path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            name = Path(member.name)
            if member.isfile() and name.suffix.lower() in SUFFIXES and not name.name.startswith("."):
                is_small = member.size <= max_bytes
                content = archive.extractfile(member) if is_small else None
                data = content.read() if content else None
                if is_small and (data is None or len(data) < member.size):
                    raise EOFError("it ends within a file")
                too_large = partial(_fail, _too_large(member.size, max_bytes))
                yield portable(member.name), partial(_held, data, max_bytes) if is_small else too_large


def _rows(entry: Entry, source: Source, max_bytes: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The images of a row group; each is named by the number of its row in the file."""
    with parquet(entry.path) as file:
        before = (file.metadata.row_group(number).num_rows for number in range(entry.row_group))
        number = sum(before)
        for batch in file.iter_batches(_ROWS_A_READ, row_groups=[entry.row_group], columns=[source.column]):
            for value in batch.column(0):
                image = value.as_py()
                data = image.get("bytes") if isinstance(image, dict) else image
                yield str(number), partial(_held, data, max_bytes)
                number += 1


def _check_unchanged(entry: Entry, now: Status) -> None:
    if (entry.size, entry.modified_ns) != now:
        raise Unreadable(CHANGED, "the file has changed since it was listed: its size, or when it was modified")


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise _too_large(size, max_bytes)


def _too_large(size: int, max_bytes: int) -> Unreadable:
    return Unreadable(TOO_LARGE, f"the image has {size:,} bytes; the limit is {max_bytes:,}")


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
