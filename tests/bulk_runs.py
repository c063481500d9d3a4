"""Bulk runs for the tests: photos to work on, engines on the stand-in networks, and what a run leaves."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import ROOT
from facenet_bulk.engines import Done, OnImage, model_of
from facenet_bulk.engines.local import LocalEngine
from facenet_bulk.output import Model, Output, Record
from facenet_bulk.run import Plan, begun
from facenet_bulk.shard import Image, rows_of
from facenet_bulk.sources import find
from facenet_bulk.table import Answer, Tally
from facenet_client.cli.photos import Walk
from nets import fake_networks, square
from PIL import Image as Pillow

COMMAND = (sys.executable, str(ROOT / "tests" / "fake_bulk_worker.py"))
OPTIONS: dict[str, Any] = {"apply_exif_orientation": True, "faces": "all"}


def photo(path: Path, left: int = 50, ending: bytes = b"") -> Path:
    """A photo with one face, to the stand-in networks, further to the right or to the left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(square(left=left, top=left // 3)).save(path, "PNG")
    path.write_bytes(path.read_bytes() + ending)
    return path


def photos(folder: Path, count: int) -> Path:
    """A folder of photos, no two alike."""
    for number in range(count):
        photo(folder / f"{number:03}.png", 20 + number % 100)
    return folder


def blank(path: Path) -> Path:
    """A photo without a face."""
    Pillow.fromarray(np.zeros((120, 160, 3), np.uint8)).save(path)
    return path


MODEL = model_of([network.info for network in fake_networks().values()], "colour", None, None)


class InstantEngine:
    """An engine that looks at no image: each PNG has one face, whose embedding is made of its SHA-256."""

    n_workers = 1
    image_formats = "JPEG,PNG,WEBP"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def model(self, name: str | None, precision: str | None) -> Model:
        """The stand-in embedder of this name."""
        return replace(MODEL, name=name or MODEL.name)

    def shards(self, record: Record, out: str, numbers: Sequence[int], on_image: OnImage) -> Iterator[Done]:
        """Each of the shards, one after the other."""
        output = Output(out)
        with closing(output.manifest()) as listed:
            for number in numbers:
                made = asyncio.run(rows_of(listed.shard(number), record.source, self._embed, 4, 1_000_000))
                output.write(number, made, record)
                yield Done(number, made.tally)

    async def _embed(self, images: AsyncIterator[Image]) -> AsyncGenerator[tuple[Image, Answer]]:
        async for image in images:
            answer = image.failure or Answer(reason="UNSUPPORTED_FORMAT", message="no PNG")
            if image.data.startswith(b"\x89PNG"):
                vector = np.frombuffer(bytes.fromhex(image.sha256 or "")[:16], np.uint8).reshape(1, 16)[:, ::4]
                one = np.ones((1, 4), np.float32), np.ones(1, np.float32), np.ones((1, 5, 2), np.float32)
                answer = Answer(120, 160, 1, False, *one, vector.astype(np.float32))
            yield image, answer


class FakeEngine(LocalEngine):
    """The local engine, worker processes and all, on the stand-in networks."""

    def model(self, name: str | None, precision: str | None) -> Model:
        return MODEL


def fake_engine(n_workers: int = 1, image_limit_s: float = 60.0) -> LocalEngine:
    """It, with so many workers."""
    return FakeEngine(Path("models"), "cpu", n_workers, command=COMMAND, image_limit_s=image_limit_s)


def run(source: Path | str, out: Path | str, engine: Any = None, *, column: str = "", **plan: Any) -> Tally:
    """A run to its end, by the instant engine unless there is another; what came of its images."""
    tally, where = Tally(), find(str(source), column)
    settings: dict[str, Any] = {"source": where, "out": str(out), "options": OPTIONS, "shard_images": 4, **plan}
    chosen: Any = engine or InstantEngine()
    with chosen as opened, begun(Plan(**settings), opened, Walk(), lambda _: None) as begun_run:
        for part in begun_run.parts(lambda count, reason: None):
            tally.update(part.tally)
    return tally


def parts(out: Path) -> list[Path]:
    """The parts of a run, in order."""
    return sorted(out.glob("part-*.parquet"))


def rows(out: Path) -> list[dict[str, Any]]:
    """All rows of a run, in order."""
    found: list[dict[str, Any]] = pa.concat_tables(map(pq.read_table, parts(out))).to_pylist()
    return found


def names(found: Sequence[dict[str, Any]]) -> list[str]:
    """The files of rows."""
    return [Path(row["source"]).name for row in found]
