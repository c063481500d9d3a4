"""What a streaming method is: its messages, who answers them, where and within what bounds."""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from google.protobuf.message import Message

from facenet_server.crop_room import Crops
from facenet_server.seats import Seats


class Place(NamedTuple):
    """Where a message's images are worked on: as whose, in which seats of its stream, until when (on the loop's
    clock; None: for ever), with what room for their crops; each item that is answered is told."""

    caller: str
    seats: Seats
    deadline: float | None
    crops: Crops
    answered: Callable[[], object]


class Method(NamedTuple):
    """A streaming method: its request and response messages, the field that holds the batch, who answers."""

    request: type[Any]
    response: type[Any]
    batch_field: str
    answer: Callable[[Any, Place], Coroutine[Any, Any, Message]]


class StreamLimits(NamedTuple):
    """What bounds one stream: messages read and not answered, items of a message, images worked on at once, seconds
    that its caller may let an answer lie."""

    max_messages: int
    max_items_per_message: int
    max_images: int
    max_write_stall_s: float
