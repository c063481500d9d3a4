"""How a message's items are answered: in batches whose images go side by side, each group in seats for its work."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from facenet_server.admission.crop_room import Crops
from facenet_server.admission.fair_semaphore import FairSemaphore
from facenet_server.admission.wait_estimator import Work
from facenet_server.config import Config
from facenet_server.errors import InternalError, ItemError, Overloaded, TimedOut
from facenet_server.serving.barrier import BatchBarrier, micro_batches
from facenet_server.serving.pipeline import Pipeline
from facenet_server.telemetry.error_id import log_error
from facenet_server.vision.decode import Encoded, Raw

WORK, CROPS, VECTORS = "images and files", "raw crops", "embeddings"  # what the items of a message wait for seats as
_VECTORS_AT_ONCE = 128  # pairs of embeddings: the event loop compares them itself

Item = TypeVar("Item")
Result = TypeVar("Result")


class RequestContext(NamedTuple):
    """Where a message's items are worked on: as whose; of what kind are items that are no work for threads; in which
    seats of its stream; until when (on the loop's clock; None: for ever); with what room for their crops; and what is
    told of the seats of each kind."""

    caller: str
    else_kind: str
    seats: FairSemaphore
    deadline: float | None
    crops: Crops
    works: Mapping[str, Work]


class ItemHandler(NamedTuple, Generic[Item, Result]):
    """How the items of one message are answered: each; its images to be searched, None for one without data; whether it
    is work for threads; its failure; and whether crops were asked for."""

    one: Callable[[Item, BatchBarrier], Awaitable[Result]]
    images: Callable[[Item], Sequence[Encoded | Raw | None]]
    is_work: Callable[[Item], bool]
    failed: Callable[[ItemError], Result]
    has_crops: bool = False


class MicroBatches:
    """Where the items of all callers are answered."""

    def __init__(self, pipeline: Pipeline, config: Config) -> None:
        self._pipeline = pipeline
        self._images_per_group = config.images_per_group
        most_pixels = config.max_megapixels_in_flight * 1_000_000
        self._most_pixels = most_pixels // 2  # of a group, so that another caller's can be at work
        # Half of the pixels stay for others: an image of 50 megapixels gives its own back late.
        caps = config.max_images_in_flight, most_pixels // 2
        self._images = FairSemaphore(config.max_images_in_flight, most_pixels, caps=caps)
        self._others = {  # of crops a batch that runs, and the next: callers take turns
            CROPS: FairSemaphore(2 * config.max_batch_rows),
            VECTORS: FairSemaphore(_VECTORS_AT_ONCE),
        }

    async def answer(
        self, items: Sequence[Item], handler: ItemHandler[Item, Result], context: RequestContext
    ) -> list[Result]:
        """The answers to a message's items, in their order; one that fails has its error."""
        if not items:
            return []
        images = [handler.images(item) for item in items]
        pixels = await self._pixels_of(images) if any(images) else [0] * len(items)
        batches = micro_batches(pixels, self._images_per_group, self._most_pixels)
        answers = [self._micro_batch(items[some], images[some], pixels[some], handler, context) for some in batches]
        results = await _gathered(answers)
        return results[0] if len(results) == 1 else [result for some in results for result in some]

    async def _pixels_of(self, images: Sequence[Sequence[Encoded | Raw | None]]) -> list[int]:
        """How many pixels the images of each item claim to have."""
        sources = [[image for image in some if image is not None] for some in images]
        claimed = iter(await self._pipeline.claimed_pixels([source for some in sources for source in some]))
        return [sum(islice(claimed, len(some))) for some in sources]

    async def _micro_batch(
        self,
        items: Sequence[Item],
        images: Sequence[Sequence[Encoded | Raw | None]],
        pixels: Sequence[int],
        handler: ItemHandler[Item, Result],
        context: RequestContext,
    ) -> list[Result]:
        n_images = [len(some) for some in images]
        barrier = BatchBarrier(sum(n_images), context.deadline, max(pixels))
        seats_each = [n or handler.is_work(item) for n, item in zip(n_images, items, strict=True)]
        seated = self._seated(seats_each, sum(pixels), context, has_crops=handler.has_crops)
        try:
            async with asyncio.timeout_at(context.deadline) as wait, seated:
                wait.reschedule(None)
                works = [context.works.get(WORK if n else context.else_kind) for n in seats_each]
                for work in context.works.values():
                    work.seated(works.count(work))
                dones = [work.done if work else _nothing for work in works]
                each = zip(items, n_images, dones, strict=True)
                return await _gathered([_answer(*one, handler, barrier) for one in each])
        except TimeoutError:
            return [handler.failed(TimedOut()) for _ in items]
        except Overloaded as error:
            return [handler.failed(error) for _ in items]

    def _seated(
        self, seats_each: Sequence[int], pixels: int, context: RequestContext, *, has_crops: bool
    ) -> AbstractAsyncContextManager[None]:
        """Room for a group, where it is work and where it is not."""
        if any(seats_each):
            return self._at_work(seats_each, pixels, context, has_crops=has_crops)
        return self._others[context.else_kind].acquired(context.caller, len(seats_each))

    @asynccontextmanager
    async def _at_work(
        self, seats_each: Sequence[int], pixels: int, context: RequestContext, *, has_crops: bool
    ) -> AsyncIterator[None]:
        """Its stream's share of the seats, then the server's seats with memory for its pixels, while there is room for
        the crops that were asked for."""
        n_seats = sum(seats_each)
        while True:
            if has_crops:  # without a seat, in nobody's way
                with (
                    context.works[WORK].aside(sum(n > 0 for n in seats_each))
                    if WORK in context.works
                    else nullcontext()
                ):
                    await context.crops.turn()
            async with (
                context.seats.acquired(context.caller, n_seats),
                self._images.acquired(context.caller, n_seats, pixels),
            ):
                if not has_crops or context.crops.has_room():
                    yield
                    return


async def _gathered(answers: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All side by side; one alone needs no task of its own, which costs a message of one crop a tenth."""
    return [await answers[0]] if len(answers) == 1 else list(await asyncio.gather(*answers))


async def _answer(
    item: Item, n_images: int, done: Callable[[], object], handler: ItemHandler[Item, Result], barrier: BatchBarrier
) -> Result:
    try:
        async with asyncio.timeout_at(barrier.deadline):
            return await handler.one(item, barrier)
    except TimeoutError:
        return handler.failed(TimedOut())
    except ItemError as error:
        return handler.failed(error)
    except Exception:
        return handler.failed(InternalError(log_error("an item failed")))
    finally:
        done()
        barrier.leave(n_images)


def _nothing() -> None:
    pass
