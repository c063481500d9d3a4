"""What a streaming method is: its messages, who answers them, where and within what bounds."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from facenet_server import wire
from facenet_server.backlog import Work
from facenet_server.crop_room import Crops
from facenet_server.seats import Seats

IMAGES, CROPS, VECTORS = "images to be searched", "ready crops", "embeddings"  # the kinds of work


class Place(NamedTuple):
    """Where a message's images are worked on: as whose, in which seats of its stream, until when (on the loop's
    clock; None: for ever), with what room for their crops, and what is told of its items' seats."""

    caller: str
    seats: Seats
    deadline: float | None
    crops: Crops
    work: Work


class Method(NamedTuple):
    """A streaming method: its request and response messages, the field that holds the batch, who answers; and what kind
    of work it is, where an item has an image that is to be searched, by which fields it is reached, and where not."""

    request: type[Any]
    response: type[Any]
    batch_field: str
    answer: Callable[[Any, Place], Coroutine[Any, Any, Message]]
    to_images: Sequence[Sequence[str]] = ()
    without_images: str = IMAGES

    def fields(self) -> wire.Fields:
        """Where in a request's bytes is what must be known of it. Raises KeyError where a name is none of its
        fields."""
        request = self.request.DESCRIPTOR
        number, items, timeout_ms = (request.fields_by_name[name] for name in ("id", self.batch_field, "timeout_ms"))
        item, to_images = items.message_type, []
        for names in self.to_images:
            fields = [item.fields_by_name[name] for name in names]
            to_images.append([field.number for field in fields])
            item = fields[0].message_type
        return wire.Fields(number.number, items.number, timeout_ms.number, to_images)

    def kind(self, outline: wire.Outline) -> str:
        """The kind of work that such a request is."""
        return IMAGES if outline.has_images else self.without_images


class StreamLimits(NamedTuple):
    """What bounds one stream: messages read and not answered, items of a message, images worked on at once, seconds
    that its caller may let an answer lie."""

    max_messages: int
    max_items_per_message: int
    max_images: int
    max_write_stall_s: float
