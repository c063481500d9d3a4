"""A request's outline, from its bytes: what must be known before it is worth parsing.

Parsing makes some thirty times the memory of a message of empty items; walking over its fields makes none.
https://protobuf.dev/programming-guides/encoding/
"""

from typing import NamedTuple

from google.protobuf.message import DecodeError

_OTHER_FIELDS = 64  # more than any request has beside its items

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Fields(NamedTuple):
    """The numbers of the fields that matter."""

    id: int
    items: int
    timeout_ms: int


class Outline(NamedTuple):
    """A request's id, how many items it holds, which of its fields the first of them begins with (0: none), and how
    long its answer is of use."""

    id: int
    n_items: int
    kind: int
    timeout_ms: int | None


def outline(data: bytes, fields: Fields, most: int) -> Outline:
    """Walk over the top-level fields, until there are more than ``most`` items.

    Raises DecodeError where the bytes are no message, or one of far more fields than a request has.
    """
    number = n_items = n_fields = item_kind = at = 0
    timeout_ms: int | None = None
    while at < len(data) and n_items <= most:
        n_fields += 1
        if n_fields > most + _OTHER_FIELDS:
            raise DecodeError("too many fields")
        tag, at = _varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            number = value & 0xFFFF_FFFF_FFFF_FFFF if field == fields.id else number
            timeout_ms = value & 0xFFFF_FFFF if field == fields.timeout_ms else timeout_ms
        elif kind == _LENGTH:
            size, at = _varint(data, at)
            if field == fields.items:
                item_kind = data[at] >> 3 if not n_items and size and at < len(data) else item_kind
                n_items += 1
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise DecodeError(f"wire type {kind}")
        if at > len(data):
            raise DecodeError("the last field is cut off")
    return Outline(number, n_items, item_kind, timeout_ms)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise DecodeError("a number is cut off or too long")
