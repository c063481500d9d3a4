"""The parts of an image file, one after the other: a JPEG's segments and scans, chunks of PNG and RIFF files, boxes.

Every walk ends after a bounded number of steps, each of which is a part.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from facenet_server.errors import InvalidInput
from facenet_server.vision.jit import compiled

MAX_STEPS = 16_384
ANY = 1 << 30  # steps, for a file that was walked before

_PNG_SIGNATURE_BYTES = 8
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers of a JPEG without a length
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_IN_A_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # the next marker after a scan's data
_PNG_CHUNK, _RIFF_CHUNK = struct.Struct(">I4s"), struct.Struct("<4sI")

Chunk = tuple[bytes, int, int]
"""A chunk of a PNG or of a RIFF file, or a box: its kind, and where its content begins and ends."""


class Steps:
    """How many more a walk may take. Raises InvalidInput, reason TOO_COMPLEX, beyond."""

    def __init__(self, most: int) -> None:
        self.most = self._left = most

    def check(self, count: int) -> None:
        """Whether so many could be taken."""
        if count > self.most:
            raise InvalidInput("TOO_COMPLEX", f"the image's header has over {self.most:,} parts")

    def take(self, count: int = 1) -> None:
        """Take so many."""
        self._left -= count
        if self._left < 0:
            self.check(self.most + 1)


def warm_up() -> None:
    """Have the compiled code ready."""
    for kind in ("JPEG", "PNG"):
        check(bytes(20), kind, Steps(1))


def check(data: bytes, kind: str, steps: Steps) -> None:
    """Refuse a header of too many parts by compiled code, in microseconds and without Python's lock."""
    pixels = np.frombuffer(data, np.uint8)
    if kind == "JPEG":
        steps.check(_jpeg_parts(pixels, steps.most))
    elif kind == "PNG":
        steps.check(_chunks(pixels, 8, 4, False, steps.most))
    elif kind == "WEBP":
        steps.check(_chunks(pixels[: 8 + int.from_bytes(data[4:8], "little")], 12, 0, True, steps.most))


@compiled
def _jpeg_parts(data: Any, most: int) -> int:
    """The segments before the first scan's data, and sixteenths of the bytes that fill the space between them; no more
    than one more than ``most``."""
    parts = fill = 0
    at, size = 2, len(data)
    while at + 3 < size and parts + fill // 16 <= most:
        if data[at] != 0xFF:
            at += 1
        elif data[at + 1] == 0xFF:
            at += 1
            fill += 1
        else:
            parts += 1
            marker = data[at + 1]
            if marker == 0xDA or marker == 0xD9:
                break
            alone = marker == 0 or marker == 1 or (marker >= 0xD0 and marker <= 0xD8)
            at += 2 if alone else 2 + max(2, 256 * data[at + 2] + data[at + 3])
    return parts + fill // 16


@compiled
def _chunks(data: Any, at: int, overhead: int, is_little: bool, most: int) -> int:
    """The chunks from a place on, of a PNG, whose checksums are ``overhead``, or of a RIFF file; as above."""
    parts, size = 0, len(data)
    while at + 8 <= size and parts <= most:
        parts += 1
        length = 0
        for place in range(4):
            length = 256 * length + data[at + 7 - place if is_little else at + place]
        is_end = (
            not is_little and data[at + 4] == 73 and data[at + 5] == 69 and data[at + 6] == 78 and data[at + 7] == 68
        )
        if is_end:  # IEND: what follows is no part of it
            break
        at += 8 + overhead + length + (length % 2 if is_little else 0)
    return parts


def jpeg_segments(data: bytes, steps: Steps) -> Iterator[tuple[int, int, int]]:
    """The segments up to the first scan's, that one included: each one's marker, and where its content begins and ends.
    Bytes between them are skipped, as libjpeg does."""
    at = 2
    while True:
        steps.take()
        while data[at] != 0xFF or data[at + 1] == 0xFF:  # bytes between, or fill bytes
            at = data.index(b"\xff", at + (data[at] == 0xFF))
        kind = data[at + 1]
        at += 2
        if kind == 0 or kind in _ALONE:
            continue
        if kind in (_SOI, _EOI):
            raise InvalidInput("CORRUPT", "the JPEG file ends, or begins again, before its image")
        length = data[at] << 8 | data[at + 1]
        if length < 2:
            raise InvalidInput("CORRUPT", "a segment of the JPEG file has no length")
        yield kind, at + 2, at + length
        at += length
        if kind == _SOS:
            return


def count_scans(data: bytes, at: int, steps: Steps, most: int) -> int:
    """How many there are, the one before ``at`` included; as many as seem to be where those are not too many."""
    seem = 1 + data.count(b"\xff\xda", at)
    if seem <= most:
        return seem
    scans = 1
    while scans <= most and (found := _IN_A_SCAN.search(data, at)):
        steps.take()
        marker = data[found.end() - 1]
        if marker == _EOI:
            break
        scans += marker == _SOS
        at = (
            found.end()
            if marker in _ALONE or marker == _SOI
            else found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
        )
    return scans


def samsung_trailer_at(data: bytes) -> int:
    """Where the trailer begins that Samsung's panoramas have in place of an end marker; the file's end where there is
    none. Its directory lies last: its length and "SEFT" are the last eight bytes, and each entry has a block's distance
    before it."""
    if not data.endswith(b"SEFT"):
        return len(data)
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if at < 0 or data[at : at + 4] != b"SEFH":
        return len(data)
    count = min(int.from_bytes(data[at + 8 : at + 12], "little"), MAX_STEPS)
    entries = (at + 12 + 12 * number for number in range(count))
    start = at - max((int.from_bytes(data[each + 4 : each + 8], "little") for each in entries), default=0)
    return start if start > 0 else len(data)


def has_all_scans(data: bytes) -> bool:
    """Whether the scans of a progressive JPEG bring every coefficient of every component to its last bit; true of other
    ones, of which the decoder misses what is not there. ITU-T T.81, G.1."""
    left: dict[int, list[int]] = {}  # of each component: of each coefficient, the bits that are to come
    at = 2
    for marker, start, _end in jpeg_segments(data, Steps(ANY)):
        if marker in (0xC2, 0xCA):
            left = {data[start + 6 + 3 * n]: [16] * 64 for n in range(data[start + 5])}
        at = start
    if not left:
        return True
    while True:
        count = data[at]
        first, last, bits = data[at + 1 + 2 * count : at + 4 + 2 * count]
        for n in range(count):
            coefficients = left.get(data[at + 1 + 2 * n], [0] * 64)
            coefficients[first : last + 1] = [bits & 0x0F] * (last + 1 - first)
        found = _IN_A_SCAN.search(data, at)
        while found and data[found.end() - 1] not in (_SOS, _EOI):
            found = _IN_A_SCAN.search(data, found.end())
        if not found or data[found.end() - 1] == _EOI:
            return not any(any(bits) for bits in left.values())
        at = found.end() + 2


def png_chunks(data: bytes, steps: Steps) -> Iterator[Chunk]:
    """The chunks up to IEND, or to the end of the bytes; the last one may be cut."""
    at = _PNG_SIGNATURE_BYTES
    while at + 8 <= len(data):
        steps.take()
        size, kind = _PNG_CHUNK.unpack_from(data, at)
        start, end = at + 8, at + 8 + size
        yield kind, start, min(end, len(data))
        if kind == b"IEND":
            return
        at = end + 4


def riff_chunks(data: bytes, steps: Steps, at: int = 12, end: int | None = None) -> Iterator[Chunk]:
    """The chunks of a RIFF file, or of one of its chunks; the last one may be cut."""
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little")) if end is None else end
    while at + 8 <= end:
        steps.take()
        kind, size = _RIFF_CHUNK.unpack_from(data, at)
        start = at + 8
        yield kind, start, min(start + size, end)
        at = start + size + size % 2


def boxes(data: bytes, steps: Steps, at: int, end: int) -> Iterator[Chunk]:
    """The boxes of an ISO base media file between two places."""
    while at + 8 <= end:
        steps.take()
        size, start = int.from_bytes(data[at : at + 4]), at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            start = at + 16
        stop = end if size == 0 else min(end, at + size)
        if stop < start:
            raise InvalidInput("CORRUPT", "a box of the file has no length")
        yield (data[at + 4 : at + 8], start, stop)
        at = stop
