"""A request's found, from its bytes: what must be known before it is worth parsing.

Parsing makes some thirty times the memory of a message of empty items; walking over its fields makes none.
https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

_OTHER_FIELDS = 64  # more than any request has beside its items
_LOOKED_AT = 4  # fields of an item, from its first, and of what is in them

_VARINT, _LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}


Paths: TypeAlias = Mapping[int, "Paths"]  # fields of a message, each with those of what it holds; none: any will do


class Fields(NamedTuple):
    """The numbers of the fields that matter; and those that lead from an item to what makes it work for threads."""

    id: int
    items: int
    timeout_ms: int
    to_work: Paths


class Prescan(NamedTuple):
    """A request's id, how many items it holds, how many of them are work for threads, and how long its answer is of
    use."""

    id: int
    n_items: int
    n_work: int
    timeout_ms: int | None


def scan(data: bytes, fields: Fields, most: int) -> Prescan:
    """Walk over the top-level fields, until there are more than ``most`` items.

    Raises DecodeError where the bytes are no message, or one of far more fields than a request has.
    """
    number = n_items = n_work = n_fields = at = 0
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
                n_work += _leads(data, at, at + size, fields.to_work)
                n_items += 1
            at += size
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            raise DecodeError(f"wire type {kind}")
        if at > len(data):
            raise DecodeError("the last field is cut off")
    return Prescan(number, n_items, n_work, timeout_ms)


def _leads(data: bytes, at: int, end: int, paths: Paths) -> bool:
    """Whether the message in ``data[at:end]`` has the fields of a path; also where it has more than a message of ours,
    so that nothing can hide behind them."""
    if not paths:
        return True
    end = min(end, len(data))
    for _ in range(_LOOKED_AT):
        if at >= end:
            return False
        tag, at = _varint(data, at)
        kind = tag & 7
        value, at = _varint(data, at) if kind in (_VARINT, _LENGTH) else (0, at)
        inner = paths.get(tag >> 3) if kind == _LENGTH else None
        if inner is not None and _leads(data, at, at + value, inner):
            return True
        at += value if kind == _LENGTH else _FIXED_BYTES.get(kind, 0)
    return at < end


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
