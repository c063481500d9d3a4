"""Images read one by one: from files, and from archives as they pass by."""

import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tarfile import HeaderError, ReadError
from typing import Any, NamedTuple, Self

from facenet_client.cli.files import portable
from facenet_client.cli.photos import SUFFIXES

from facenet_bulk.sources import UNREADABLE, Entry, Source, Status, Unreadable, opened, parquet, said, status_of

CHANGED, TOO_LARGE = "SOURCE_CHANGED", "IMAGE_TOO_LARGE"
_ROWS_A_READ = 64


class Item(NamedTuple):
    """An image under the name that its rows have. ``read`` returns its bytes; it raises Unreadable, and blocks."""

    source: str
    read: Callable[[], bytes]


def items(entry: Entry, source: Source, max_bytes: int) -> Iterator[Item]:
    """The images of an entry, each of which reads by itself; an archive's pass by as they are asked for.

    An archive that cannot be read to its end ends with an item of its own name that raises Unreadable.
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
    except Exception as error:  # noqa: BLE001 (any, as of a file system of fsspec)
        yield Item(name, partial(_fail, Unreadable(UNREADABLE, f"the archive cannot be read on: {said(error)}")))


def _bytes_of(entry: Entry, max_bytes: int) -> bytes:
    """A photo's file. Raises Unreadable."""
    try:
        _check_unchanged(entry, status_of(entry.path))
        _check_size(entry.size, max_bytes)
        with opened(entry.path) as file:
            most = max_bytes + 1 if entry.size < 0 else entry.size  # where nobody tells it before
            return _held(file.read(most), max_bytes)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(UNREADABLE, f"cannot be read: {said(error)}") from error


def _held(data: Any, max_bytes: int) -> bytes:
    """Bytes that are there. Raises Unreadable."""
    if data is None:
        raise Unreadable("EMPTY", "the row has no image")
    if not isinstance(data, bytes):
        raise Unreadable(UNREADABLE, f"the row has no bytes, but {type(data).__name__}")
    _check_size(len(data), max_bytes)
    return data


def _fail(error: Unreadable) -> bytes:
    raise error


# ---- archives ----

_Members = Iterator[tuple[str, Callable[[], bytes]]]  # each image's name in the archive, and what reads it


class _StrictTarInfo(tarfile.TarInfo):
    """A damaged header, or a file without its end mark, is an error: tarfile itself takes both for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the end mark
                raise
            raise ReadError(f"{error} after {tarfile.offset:,} bytes") from error


def _members(entry: Entry, source: Source, max_bytes: int) -> _Members:
    """The images of a tar file, in WebDataset's layout or any other: members with a photo's suffix."""
    with (
        opened(entry.path) as file,
        tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictTarInfo) as archive,
    ):
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # or it would keep all that have passed by
            name = Path(member.name)
            if name.suffix.lower() in SUFFIXES and not name.name.startswith(".") and not member.isdir():
                yield portable(member.name), _content(archive, member, max_bytes)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> Callable[[], bytes]:
    """What reads a member, whose bytes pass by now. Raises EOFError where they are cut off."""
    if not member.isfile():
        return partial(_fail, Unreadable(UNREADABLE, "it is a link within the tar file, or no regular file"))
    if member.size > max_bytes:
        return partial(_fail, _too_large(member.size, max_bytes))
    content = archive.extractfile(member)
    data = content.read() if content else b""
    if len(data) < member.size:
        raise EOFError("it ends within a file")
    return partial(_held, data, max_bytes)


def _rows(entry: Entry, source: Source, max_bytes: int) -> _Members:
    """The images of a row group; each is named by the number of its row in the file."""
    with parquet(entry.path) as file:
        if source.column not in file.schema_arrow.names:
            raise Unreadable(UNREADABLE, f"it has no column {source.column}")
        number = sum(file.metadata.row_group(before).num_rows for before in range(entry.row_group))
        for batch in file.iter_batches(_ROWS_A_READ, row_groups=[entry.row_group], columns=[source.column]):
            for value in batch.column(0):
                image = value.as_py()
                data = image.get("bytes") if isinstance(image, dict) else image
                yield str(number), partial(_held, data, max_bytes)
                number += 1


# ---- checks ----


def _check_unchanged(entry: Entry, now: Status) -> None:
    if (entry.size, entry.modified_ns) != now:
        raise Unreadable(CHANGED, "the file has changed since it was listed: its size, or when it was modified")


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise _too_large(size, max_bytes)


def _too_large(size: int, max_bytes: int) -> Unreadable:
    return Unreadable(TOO_LARGE, f"the image has {size:,} bytes; the limit is {max_bytes:,}")
