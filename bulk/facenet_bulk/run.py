"""A run: its list is fixed, and what is missing is done."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from facenet_client.cli.photos import Walk

from facenet_bulk.engines import Done, Engine, OnImage
from facenet_bulk.errors import OtherRun
from facenet_bulk.manifest import Manifest
from facenet_bulk.output import LOCK, Output, Record
from facenet_bulk.reading import Item, items
from facenet_bulk.sources import Source, Unreadable, known_total

_MOST_BYTES = 1 << 30  # of an image: what was answered was within its limit

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is to do.

    ``shard_images`` counts for a new run (None: as many as suits). ``as_listed``: do not look whether the source is
    still what was listed. ``verify``: read the images of whole parts again, and compare their SHA-256.
    ``redo_failed``: do parts again that have images which may succeed another time.
    """

    source: Source
    out: str
    options: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    precision: str | None = None
    shard_images: int | None = None
    as_listed: bool = False
    verify: bool = False
    redo_failed: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A run whose list is fixed: its shards, those that are missing, and their images, where that is known."""

    record: Record
    engine: Engine
    output: Output
    n_shards: int
    missing: Sequence[int]
    n_images: int | None

    def parts(self, on_image: OnImage) -> Iterator[Done]:
        """Do what is missing: each part once it is written. Raises BulkError."""
        if not self.missing:
            return iter(())
        return self.engine.shards(self.record, self.output.files.place, self.missing, on_image)


@contextmanager
def begun(plan: Plan, engine: Engine, walk: Walk, say: Say) -> Iterator[Run]:
    """A new run, or what another one left to do. Meanwhile no other of this machine has OUT. Raises BulkError."""
    output = Output(plan.out)
    output.check_place()
    with output.files.locked(LOCK):
        model = engine.model(plan.model, plan.precision)
        record = Record(source=plan.source, model=model, options=plan.options, image_formats=engine.image_formats)
        is_new = output.read_record() is None
        if is_new:
            say("listing the images")
            output.begin(record, plan.source.entries(walk), plan.shard_images, engine.n_workers)
        else:
            output.check(record)
        with closing(output.manifest()) as listed:
            if not is_new and not plan.as_listed:
                _check_source(plan.source, output, listed, walk, say)
            if plan.verify:
                _verify(plan.source, output, listed, say)
            finished, counts = output.finished(), listed.n_images()
            if plan.redo_failed:
                failed = output.failed(finished)
                say(f"doing {len(failed):,} parts again that have failed images")
                finished -= failed
            missing = [number for number in range(listed.n_shards) if number not in finished]
            total = known_total(counts[number] for number in missing)
            run = Run(record, engine, output, listed.n_shards, missing, total)
        yield run


def _check_source(source: Source, output: Output, listed: Manifest, walk: Walk, say: Say) -> None:
    """Raises OtherRun where the source is not what was listed."""
    say("comparing the source with the list of this run")
    if change := listed.difference(source.entries(walk)):
        raise OtherRun(
            f"{source.place} has changed since {output.files.place} was begun: {change}. Give a new OUT, or go on with "
            "what was listed (--as-listed): images that have changed since then fail"
        )


def _verify(source: Source, output: Output, listed: Manifest, say: Say) -> None:
    """Raises OtherRun where an image of a part is not the one that was answered."""
    finished = sorted(output.finished())
    say(f"reading the images of {len(finished):,} parts again")
    with ThreadPoolExecutor() as threads:
        for number in finished:
            images = (item for entry in listed.shard(number) for item in items(entry, source, _MOST_BYTES))
            then = output.hashes(number)
            side_by_side = threads.map if source.kind == "photos" else map  # an archive's images pass by
            are_same = side_by_side(_is_same, [sha256 for _, sha256 in then], images)
            count = 0
            for is_same, (name, _) in zip(are_same, then, strict=False):
                count += 1
                if not is_same:
                    raise OtherRun(f"{name} is not the image that was answered in part {number}: give a new OUT")
            if count < len(then) or next(images, None):
                raise OtherRun(f"{source.place} has not the images that were answered in part {number}: give a new OUT")


def _is_same(then: str | None, item: Item) -> bool:
    """Whether an image has this SHA-256. One that could not be read when it was answered is no other one."""
    try:
        return then is None or hashlib.sha256(item.read()).hexdigest() == then
    except Unreadable:
        return False
