"""A request's size and items, read from its bytes before it is parsed.

Parsing makes some thirty times the memory of a message of empty items, and takes long where fields are set again and
again. Walking over the fields makes no memory, and ends where there are more than a request has.
https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

_OTHER_FIELDS = 64  # more than any request has beside its items
_FIELDS_WITHIN = 64  # more than any item has, or the options, with all that is in them

_VARINT, _LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}


Paths: TypeAlias = Mapping[int, "Paths"]  # fields of a message, each with those of what it holds; none: any will do
Messages: TypeAlias = Mapping[int, "Messages"]  # a message's fields that are messages themselves, each with its own


class Fields(NamedTuple):
    """The numbers of the fields that matter; those that lead from an item to what makes it work for threads; and the
    request's fields that are messages."""

    id: int
    items: int
    timeout_ms: int
    to_images: Paths
    messages: Messages


class Prescan(NamedTuple):
    """A request's id, how many items it holds, how many of them are work for threads, and how long its answer is of
    use."""

    id: int
    n_items: int
    n_images: int
    timeout_ms: int | None


def scan(data: bytes, fields: Fields, most: int) -> Prescan:
    """Walk over the fields, until there are more than ``most`` items.

    Raises DecodeError where the bytes are no message, or one of far more fields than a request or an item has.
    """
    number = n_items = n_images = n_fields = at = 0
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
                n_images += _walk(data, at, at + size, fields.messages[field], fields.to_images, _FIELDS_WITHIN)[1]
                n_items += 1
            elif field in fields.messages:
                _walk(data, at, at + size, fields.messages[field], {}, _FIELDS_WITHIN)
            at += size
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            raise DecodeError(f"wire type {kind}")
        if at > len(data):
            raise DecodeError("the last field is cut off")
    return Prescan(number, n_items, n_images, timeout_ms)


def _walk(data: bytes, at: int, end: int, messages: Messages, paths: Paths, left: int) -> tuple[int, bool]:
    """How many of ``left`` fields are left after the message in ``data[at:end]``, and whether it has the fields of a
    path. Raises DecodeError where there are more fields."""
    end, leads = min(end, len(data)), not paths
    while at < end:
        if not left:
            raise DecodeError("too many fields within a field")
        left -= 1
        tag, at = _varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _LENGTH:
            size, at = _varint(data, at)
            inner = paths.get(field)
            if field in messages:
                left, found = _walk(data, at, min(at + size, end), messages[field], inner or {}, left)
                leads |= inner is not None and found
            else:
                leads |= inner is not None
            at += size
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            raise DecodeError(f"wire type {kind}")
    return left, leads


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
