"""The list of a run, fixed before its work starts: which images there are, and which of them a shard has."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from facenet_client.cli.files import portable

from facenet_bulk.files import Files
from facenet_bulk.sources import Entry

NAME = "_bulk/manifest.parquet"
_LEAST, _MOST = 32, 10_000  # images of a shard
_SHARDS, _SHARDS_A_WORKER = 64, 8  # of a run, at least: so that all workers end at nearly the same time
_SCHEMA = pa.schema(
    [
        ("path", pa.binary()),
        ("size", pa.int64()),
        ("modified_ns", pa.int64()),
        ("row_group", pa.int32()),
        ("n_images", pa.int64()),
    ]
)


class Change(NamedTuple):
    """The first place where a list differs from what it was: what was there, and what is there now."""

    then: Entry | None
    now: Entry | None

    def __str__(self) -> str:
        if self.then is None or self.now is None or self.then.path != self.now.path:
            return f"where {_name(self.then)} was, there is {_name(self.now)} now"
        return f"{_name(self.now)} has changed: its size, or when it was modified"


class Manifest:
    """The list of a run in its folder: a Parquet file, a row group a shard."""

    def __init__(self, files: Files) -> None:
        self._raw = files.open(NAME)
        self._file = pq.ParquetFile(self._raw)

    @property
    def n_shards(self) -> int:
        """How many shards there are."""
        return int(self._file.num_row_groups)

    def shard(self, number: int) -> list[Entry]:
        """The entries of a shard, in order."""
        return [Entry(**row) for row in self._file.read_row_group(number).to_pylist()]

    def n_images(self) -> list[int]:
        """Of each shard; -1 where only reading tells."""
        each, at, counts = self._file.read(columns=["n_images"]).column(0).to_numpy(), 0, list[int]()
        for number in range(self.n_shards):
            some = each[at : (at := at + self._file.metadata.row_group(number).num_rows)]
            counts.append(-1 if (some < 0).any() else int(some.sum()))
        return counts

    def difference(self, entries: Iterable[Entry]) -> Change | None:
        """The first place where the entries are not those of the manifest."""
        then = (entry for number in range(self.n_shards) for entry in self.shard(number))
        pairs = (Change(*pair) for pair in zip_longest(then, entries))
        return next((pair for pair in pairs if pair.then != pair.now), None)

    def close(self) -> None:
        """Close its file."""
        self._file.close()
        self._raw.close()


def write(files: Files, entries: Iterable[Entry], shard_images: int | None, n_workers: int = 1) -> int:
    """Fix the list; returns how many entries it has. ``shard_images`` go into a shard; None: as many as suits so many
    workers, for which all entries are held in memory first."""
    count = 0
    if shard_images is None:
        total, entries = _spooled(entries)
        shard_images = min(_MOST, max(_LEAST, -(-total // max(_SHARDS, _SHARDS_A_WORKER * n_workers))))
    with files.written(NAME) as out, pq.ParquetWriter(out, _SCHEMA, compression="zstd") as writer:
        for shard in _shards(iter(entries), shard_images):
            writer.write_table(_table(shard), row_group_size=len(shard))
            count += len(shard)
    return count


def _spooled(entries: Iterable[Entry]) -> tuple[int, Iterator[Entry]]:
    """How many entries there are, and they themselves: meanwhile Arrow's columns, which take a tenth of lists."""
    tables, left = list[pa.Table](), iter(entries)
    while some := list(islice(left, _MOST)):
        tables.append(_table(some))
    return sum(map(len, tables)), (Entry(**row) for table in tables for row in table.to_pylist())


def _shards(entries: Iterator[Entry], size: int) -> Iterator[Sequence[Entry]]:
    """Archives are a shard each."""
    for first in entries:
        yield [first] if first.n_images < 0 or first.row_group >= 0 else [first, *islice(entries, size - 1)]


def _table(entries: Sequence[Entry]) -> pa.Table:
    columns = zip(*entries, strict=True) if entries else ((),) * len(_SCHEMA)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )


def _name(entry: Entry | None) -> str:
    return "nothing" if entry is None else portable(os.fsdecode(entry.path))
