"""OUT: the record of a run, its list, and a Parquet file a shard."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from facenet_client.cli.files import portable

from facenet_bulk import manifest
from facenet_bulk.errors import BulkError, OtherRun
from facenet_bulk.files import Files
from facenet_bulk.manifest import Manifest
from facenet_bulk.sources import Entry, Source
from facenet_bulk.table import Rows, Tally, counted

RECORD, LOCK = "_bulk/run.json", "_bulk/lock"
FORMAT = 1
_PART = re.compile(r"part-(\d{6,})\.parquet")
_RETRYABLE = {
    "UNREADABLE", "SOURCE_CHANGED", "INTERNAL", "OVERLOADED", "TIMED_OUT", "DEVICE_LOST", "WORKER_CRASHED",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An embedder, by its name and its ONNX file's SHA-256, and those of the detector's networks."""

    name: str
    onnx_sha256: str
    dimension: int
    detector_sha256s: Mapping[str, str]  # by the networks' names


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that shapes a run's rows. ``options`` are those of ``facenet embed``."""

    source: Source
    model: Model
    options: Mapping[str, Any]
    image_formats: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        told: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(self)}))
        return told

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Record":
        """What ``to_dict`` told."""
        values = {name: told[name] for name in ("options", "image_formats")}
        return cls(source=Source(**told["source"]), model=Model(**told["model"]), **values)

    @property
    def metadata(self) -> dict[str, str]:
        """What each part says of its making."""
        return {
            "facenet.model": self.model.name,
            "facenet.onnx_sha256": self.model.onnx_sha256,
            "facenet.detector_sha256s": json.dumps(dict(self.model.detector_sha256s)),
            "facenet.options": json.dumps(dict(self.options)),
            "facenet.source": portable(self.source.place),
        }


class Output:
    """The folder of a run."""

    def __init__(self, place: str) -> None:
        self.files = Files(place)

    def read_record(self) -> Record | None:
        """The record of the run that is there; None where none is. Raises BulkError."""
        try:
            with self.files.open(RECORD) as file:
                told = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise BulkError(f"{self.files.place}/{RECORD} cannot be read: {error}") from error
        if told.get("format") != FORMAT:
            raise BulkError(f"{self.files.place} was made by another version: give a new OUT")
        return Record.of(told)

    def check_place(self) -> None:
        """Raises BulkError where OUT holds something that is no run's."""
        names = self.files.names()
        if "_bulk" not in names and names:
            raise BulkError(f"{self.files.place} holds {min(names)}: give a new folder as OUT")

    def begin(self, record: Record, entries: Iterable[Entry], shard_images: int | None, n_workers: int) -> None:
        """Fix the list and the record of a new run, for so many workers. Raises BulkError."""
        if not manifest.write(self.files, entries, shard_images, n_workers):
            raise BulkError(f"there are no images at {record.source.place}")
        with self.files.written(RECORD) as file:
            file.write(json.dumps(record.to_dict(), indent=1).encode())

    def check(self, record: Record) -> None:
        """Raises OtherRun where the run that is there is another one."""
        if (before := self.read_record()) is None:
            return
        then, now = _flat(before.to_dict()), _flat(record.to_dict())
        other = [
            f"{name} {then.get(name)}, now {now.get(name)}"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]
        if other:
            raise OtherRun(f"{self.files.place} was made otherwise ({'; '.join(other)}): give a new OUT")

    def manifest(self) -> Manifest:
        """The list of the run."""
        return Manifest(self.files)

    def finished(self) -> set[int]:
        """The shards whose parts are there."""
        return {int(found[1]) for name in self.files.names() if (found := _PART.fullmatch(name))}

    def write(self, number: int, rows: Rows, record: Record) -> None:
        """Write a shard's part, whole or not at all."""
        table = rows.table({**record.metadata, "facenet.shard": str(number)})
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        with self.files.written(part_name(number)) as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=texts, row_group_size=max(1, len(table)))

    def tally(self, number: int) -> Tally:
        """What came of a part's images."""
        return counted(self._read(number, ["face_index", "reason"]))

    def failed(self, whole: Iterable[int]) -> set[int]:
        """Of whole parts those that have images which may succeed another time."""
        return {number for number in whole if self.tally(number).failed.keys() & _RETRYABLE}

    def hashes(self, number: int) -> list[tuple[str, str | None]]:
        """Source and SHA-256 of each image of a part, in order."""
        table = self._read(number, ["source", "image_index", "image_sha256"])
        rows = zip(*(table[name].to_pylist() for name in ("image_index", "source", "image_sha256")), strict=True)
        return [(source, sha256) for _, source, sha256 in sorted(set(rows))]

    def _read(self, number: int, columns: list[str]) -> pa.Table:
        with self.files.open(part_name(number)) as file:
            return pq.read_table(file, columns=columns)


def part_name(number: int) -> str:
    """The file of a shard."""
    return f"part-{number:06}.parquet"


def _flat(told: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in told.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
