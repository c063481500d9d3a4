"""A request's outline, from its bytes: what must be known before it is worth parsing.

Parsing makes some thirty times the memory of a message of empty items; walking over its fields makes none.
https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

_OTHER_FIELDS = 64  # more than any request has beside its items
_LOOKED_AT = 4  # fields of an item, from its first, and of what is in them

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Fields(NamedTuple):
    """The numbers of the fields that matter; of those that lead from an item to its images, one after the other."""

    id: int
    items: int
    timeout_ms: int
    to_images: Sequence[Collection[int]] = ()


class Outline(NamedTuple):
    """A request's id, how many items it holds, whether any of them has an image, and how long its answer is of use."""

    id: int
    n_items: int
    has_images: bool
    timeout_ms: int | None


def outline(data: bytes, fields: Fields, most: int) -> Outline:
    """Walk over the top-level fields, until there are more than ``most`` items.

    Raises DecodeError where the bytes are no message, or one of far more fields than a request has.
    """
    number = n_items = n_fields = at = 0
    has_images = False
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
                has_images = has_images or _leads(data, at, at + size, fields.to_images)
                n_items += 1
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise DecodeError(f"wire type {kind}")
        if at > len(data):
            raise DecodeError("the last field is cut off")
    return Outline(number, n_items, has_images, timeout_ms)


def _leads(data: bytes, at: int, end: int, path: Sequence[Collection[int]]) -> bool:
    """Whether the message in ``data[at:end]`` has fields along the path, as far as its first ones tell."""
    if not path:
        return True
    for _ in range(_LOOKED_AT):
        if at >= min(end, len(data)):
            break
        tag, at = _varint(data, at)
        if tag & 7 != _LENGTH:
            break
        size, at = _varint(data, at)
        if tag >> 3 in path[0] and _leads(data, at, min(at + size, end), path[1:]):
            return True
        at += size
    return False


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
