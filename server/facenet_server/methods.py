"""What a streaming method is: its messages, who answers them, where and within what bounds."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import Message

from facenet_server import wire
from facenet_server.groups import WORK, Place

Paths: TypeAlias = Mapping[str, "Paths"]  # fields of a message by name, as in wire


class Method(NamedTuple):
    """A streaming method: its request and response messages, the field that holds the batch, who answers; and what kind
    a message is: WORK where an item has the fields of a path (none: any item), else another."""

    request: type[Any]
    response: type[Any]
    batch_field: str
    answer: Callable[[Any, Place], Coroutine[Any, Any, Message]]
    to_work: Paths
    else_kind: str = WORK

    def fields(self) -> wire.Fields:
        """Where in a request's bytes is what must be known of it. Raises KeyError where a name is none of its
        fields."""
        names = self.request.DESCRIPTOR.fields_by_name
        items = names[self.batch_field]
        return wire.Fields(
            names["id"].number, items.number, names["timeout_ms"].number, _numbers(items.message_type, self.to_work)
        )

    def kinds(self, outline: wire.Outline) -> dict[str, int]:
        """How many of such a request's items are of which kind. The first is the request's."""
        rest = outline.n_items - outline.n_work
        of_rest = {self.else_kind: rest} if rest or not outline.n_work else {}
        return {WORK: outline.n_work, **of_rest} if outline.n_work else of_rest


def _numbers(message: Any, paths: Paths) -> wire.Paths:
    fields = [(message.fields_by_name[name], inner) for name, inner in paths.items()]
    return {field.number: _numbers(field.message_type, inner) for field, inner in fields}


class StreamLimits(NamedTuple):
    """What bounds one stream: messages read and not answered, items of a message, images worked on at once, seconds
    that its caller may let an answer lie."""

    max_messages: int
    max_items_per_message: int
    max_images: int
    max_write_stall_s: float
