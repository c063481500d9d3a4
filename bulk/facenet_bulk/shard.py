"""The work of a shard, the same for every engine: images are read, hashed and embedded, and become a table."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import NamedTuple, TypeVar

from facenet_bulk.errors import BulkError
from facenet_bulk.reading import Item, items
from facenet_bulk.sources import UNREADABLE, Entry, Source, Unreadable
from facenet_bulk.table import Answer, Rows

T = TypeVar("T")
R = TypeVar("R")

_READ_AHEAD = 16
_HARDLY_ALL = 20  # images: where a shard has more, and none can be read, the place where they lie is not there


class Image(NamedTuple):
    """An image that was read: its bytes and their SHA-256, or why there are none."""

    source: str
    data: bytes = b""
    sha256: str | None = None
    failure: Answer | None = None


Embed = Callable[[AsyncIterator[Image]], AsyncGenerator[tuple[Image, Answer]]]
"""What an engine is to a shard: each image with its answer, in order. An image with a failure keeps it."""


class NothingReadable(BulkError):
    """None of a shard's images can be read, though all were there when they were listed."""

    def __init__(self) -> None:
        super().__init__("none of the images of a shard can be read: is the place where they lie mounted?")


async def rows_of(shard: Sequence[Entry], source: Source, embed: Embed, dimension: int, max_bytes: int) -> Rows:
    """The rows of a shard's images, in order. Raises NothingReadable, and what ``embed`` raises."""
    rows = Rows(dimension)
    reading = ordered(_read, _items(shard, source, max_bytes), _READ_AHEAD)
    async with aclosing(reading) as images, aclosing(embed(images)) as answers:
        async for image, answer in answers:
            rows.add(image.source, image.sha256, answer)
    were_there = all(entry.size >= 0 for entry in shard)
    if were_there and rows.tally.images > _HARDLY_ALL and rows.tally.failed.get(UNREADABLE, 0) == rows.tally.images:
        raise NothingReadable
    return rows


async def ordered(function: Callable[[T], Awaitable[R]], inputs: AsyncIterator[T], at_once: int) -> AsyncGenerator[R]:
    """The function of each input, in their order, so many at a time."""
    running: deque[asyncio.Task[R]] = deque()
    try:
        async for each in inputs:
            running.append(asyncio.ensure_future(function(each)))
            if len(running) >= at_once:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _items(shard: Iterable[Entry], source: Source, max_bytes: int) -> AsyncIterator[Item]:
    """The images of a shard. An archive is read on in a thread."""
    listed: Iterator[Item] = (item for entry in shard for item in items(entry, source, max_bytes))
    if source.kind == "photos":  # nothing is read yet
        for item in listed:
            yield item
        return

    def following() -> list[Item]:
        return list(islice(listed, 1))

    while found := await asyncio.to_thread(following):
        yield found[0]


async def _read(item: Item) -> Image:
    def read() -> Image:
        try:
            data = item.read()
        except Unreadable as error:
            return Image(item.source, failure=Answer(reason=error.reason, message=str(error)))
        return Image(item.source, data, hashlib.sha256(data).hexdigest())

    return await asyncio.to_thread(read)
