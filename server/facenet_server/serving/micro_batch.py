"""How a message's items are answered: in micro-batches whose images go side by side, each in seats for its work."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from facenet_server.admission.controller import AdmissionController, ResponseBytes
from facenet_server.admission.fair_semaphore import FairSemaphore
from facenet_server.admission.wait_estimator import Ticket
from facenet_server.errors import InternalError, ItemError, Overloaded, TimedOut
from facenet_server.serving.barrier import BatchBarrier, micro_batches
from facenet_server.serving.pipeline import Pipeline
from facenet_server.telemetry.error_id import log_error
from facenet_server.vision.sources import Encoded, Raw

IMAGES, RAW_CROPS, EMBEDDINGS = (
    "images and files",
    "raw crops",
    "embeddings",
)  # what the items of a message wait for seats as

Item = TypeVar("Item")
Result = TypeVar("Result")


class RequestContext(NamedTuple):
    """Where a message's items are worked on: as whose; of what kind are items that are no work for threads; the images
    that its stream may have at work; until when (on the loop's clock; None: for ever); what their crops are charged to;
    and the tickets of each kind."""

    caller: str
    other_kind: str
    stream_images: FairSemaphore
    deadline: float | None
    crops: ResponseBytes
    tickets: Mapping[str, Ticket]


class ItemHandler(NamedTuple, Generic[Item, Result]):
    """How the items of one message are answered: each; its images to be searched, None for one without data; whether it
    is work for threads; its failure; and whether crops were asked for."""

    one: Callable[[Item, BatchBarrier], Awaitable[Result]]
    images: Callable[[Item], Sequence[Encoded | Raw | None]]
    needs_threads: Callable[[Item], bool]
    failed: Callable[[ItemError], Result]
    has_crops: bool = False


class MicroBatches:
    """Where the items of all callers are answered."""

    def __init__(self, pipeline: Pipeline, images_per_group: int, admission: AdmissionController) -> None:
        self._pipeline = pipeline
        self._images_per_group = images_per_group
        self._most_pixels = admission.limits.pixels // 2  # of a micro-batch, so that another caller's can be at work
        self._images = admission.images
        self._others = {RAW_CROPS: admission.raw_crops, EMBEDDINGS: admission.embeddings}

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
        seats_each = [n or handler.needs_threads(item) for n, item in zip(n_images, items, strict=True)]
        seated = self._seated(seats_each, sum(pixels), context)
        try:
            if handler.has_crops:
                context.crops.check()
            async with asyncio.timeout_at(context.deadline) as wait, seated:
                wait.reschedule(None)
                tickets = [context.tickets.get(IMAGES if n else context.other_kind) for n in seats_each]
                for ticket in context.tickets.values():
                    ticket.seated(tickets.count(ticket))
                dones = [ticket.done if ticket else _nothing for ticket in tickets]
                each = zip(items, n_images, dones, strict=True)
                return await _gathered([_answer(*one, handler, barrier) for one in each])
        except TimeoutError:
            return [handler.failed(TimedOut()) for _ in items]
        except Overloaded as error:
            return [handler.failed(error) for _ in items]

    @asynccontextmanager
    async def _seated(self, seats_each: Sequence[int], pixels: int, context: RequestContext) -> AsyncIterator[None]:
        """Seats for a micro-batch: of images, those of its stream, then the server's with their pixels."""
        if n_seats := sum(seats_each):
            async with (
                context.stream_images.acquired(context.caller, n_seats),
                self._images.acquired(context.caller, n_seats, pixels),
            ):
                yield
        else:
            async with self._others[context.other_kind].acquired(context.caller, len(seats_each)):
                yield


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
    except Exception:  # noqa: BLE001 (an item's failure is its own)
        return handler.failed(InternalError(log_error("an item failed")))
    finally:
        done()
        barrier.leave(n_images)


def _nothing() -> None:
    pass
