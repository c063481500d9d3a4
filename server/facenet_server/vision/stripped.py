"""Image files without anything but their image, so that decoders look at nothing else.

Their headers were read before.
"""

import struct
import zlib

from facenet_server.errors import InvalidInput
from facenet_server.vision import file_parts
from facenet_server.vision.file_parts import ANY, Steps

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_WEBP_ALPHA_OR_ANIMATION = 0x12  # flags of VP8X
_EOI = b"\xff\xd9"
_NEEDED_BY_A_JPEG = {0xC4, 0xCC, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE, *range(0xC0, 0xD0)}  # E0 and EE tell its colours


def jpeg(data: bytes) -> bytes:
    """The file without metadata, bytes between its segments and a maker's trailer, and with an end marker."""
    parts, end = [data[:2]], 2
    last = file_parts.samsung_trailer_at(data)
    for marker, start, end in file_parts.jpeg_segments(data, Steps(ANY)):
        if marker in _NEEDED_BY_A_JPEG:
            parts.append(bytes([0xFF, marker]) + data[start - 2 : end])
    return b"".join([*parts, data[end:last], _EOI])


def png(data: bytes) -> tuple[bytes, bool]:
    """The file of its critical chunks, and whether a checksum of its pixels is wrong.

    Raises InvalidInput: CORRUPT where a checksum of its header is wrong, TRUNCATED where there are no pixels."""
    parts, pixels, damaged = [data[:8]], [], False
    for kind, start, end in file_parts.png_chunks(data, Steps(ANY)):
        if kind not in (b"IHDR", b"PLTE", b"IDAT"):
            continue
        content = memoryview(data)[start:end]
        told = data[end : end + 4]
        is_whole = end - start == int.from_bytes(data[start - 8 : start - 4]) and len(told) == 4
        is_right = not is_whole or zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(told)
        if kind == b"IDAT":
            pixels.append(content)
            damaged |= not is_right
        elif not (is_whole and is_right):
            raise InvalidInput("CORRUPT", "the image cannot be decoded: a checksum of its header is wrong")
        elif kind == b"IHDR" and len(parts) > 1:
            raise InvalidInput("CORRUPT", "the image cannot be decoded: it has two headers")
        else:
            parts.append(data[start - 8 : end + 4])
    if not pixels:
        raise InvalidInput("TRUNCATED", "the image cannot be decoded: it has no pixels")
    together = b"".join([b"IDAT", *pixels])
    parts += [struct.pack(">I", len(together) - 4), together, struct.pack(">I", zlib.crc32(together)), _PNG_END]
    return b"".join(parts), damaged


def webp(data: bytes) -> bytes:
    """The file of its picture, of an animation its first frame's. Raises InvalidInput, reason TRUNCATED."""
    parts, has_frame = [], False
    for kind, start, end in file_parts.riff_chunks(data, Steps(ANY)):
        is_picture = kind in (b"VP8 ", b"VP8L", b"ANMF")
        if kind not in (b"VP8X", b"ALPH", b"ANIM") and not (is_picture and not has_frame):
            continue
        content = data[start:end]
        if end - start < int.from_bytes(data[start - 4 : start], "little"):
            raise InvalidInput("TRUNCATED", "the image cannot be decoded: its data is truncated")
        if kind == b"VP8X":
            content = bytes([content[0] & _WEBP_ALPHA_OR_ANIMATION]) + content[1:]
        has_frame |= is_picture
        parts.append(data[start - 8 : start] + content + bytes(len(content) % 2))
    if not has_frame:
        raise InvalidInput("TRUNCATED", "the image cannot be decoded: it has no pixels")
    body = b"".join([b"WEBP", *parts])
    return b"RIFF" + struct.pack("<I", len(body)) + body
