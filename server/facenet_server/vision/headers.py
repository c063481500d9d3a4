"""What the bytes of an image file say of it before anything is decoded: format, size, what decoding will cost.

No metadata is decompressed, and of EXIF only the orientation is read. How a file is walked is in ``file_parts``.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from facenet_server.errors import InvalidInput
from facenet_server.vision import file_parts
from facenet_server.vision.file_parts import MAX_STEPS, Steps

_ORIENTATION_TAG = 0x0112
_MOST_ENTRIES = 1000  # of EXIF data
_PNG, _RIFF = b"\x89PNG\r\n\x1a\n", b"RIFF"
_AVIF, _HEIF = (b"avif", b"avis"), (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a JPEG's frame header
_APP1, _COM = 0xE1, 0xFE


@dataclass(frozen=True, slots=True)
class Header:
    """``format`` by Pillow's name; width and height as stored, px; bits of a channel; frames of an animation, where
    they can be told; scans of a JPEG; bytes of metadata; the EXIF orientation, 1…8."""

    format: str
    width: int
    height: int
    bits: int = 8
    frames: int = 1
    scans: int = 1
    metadata_bytes: int = 0
    orientation: int = 1


def parse(data: bytes, max_steps: int = MAX_STEPS, max_scans: int = 100) -> Header:
    """The header of an encoded image. A JPEG's scans are counted only as far as one more than ``max_scans``.

    Raises InvalidInput: UNSUPPORTED_FORMAT for what is no image of a format that is known here; CORRUPT for a broken
    header, TRUNCATED for one that ends too early, TOO_COMPLEX for one of more than ``max_steps`` parts.
    """
    kind = format_of(data)
    if kind is None:
        raise InvalidInput("UNSUPPORTED_FORMAT", "not an image in a format that is known here")
    steps = Steps(max_steps)
    file_parts.check(data, kind, steps)
    try:
        header = _READERS[kind](data, steps, max_scans)
        if header.width and header.height:
            return header
    except (struct.error, IndexError, OverflowError, ValueError):
        raise InvalidInput("TRUNCATED", f"the {kind} file ends within its header") from None
    raise InvalidInput("CORRUPT", f"the {kind} file has no size")


def format_of(data: bytes) -> str | None:
    """The format by its first bytes, by Pillow's name; None for none that is known here."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(_RIFF) and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data[4:8] == b"ftyp":
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(len(data), _uint32(data, 0), 80), 4))]
        if any(each in _AVIF for each in brands):
            return "AVIF"
        return "HEIF" if any(each in _HEIF for each in brands) else None
    return "BMP" if data.startswith(b"BM") else None


def _uint32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4])


# ---- JPEG ----


def _jpeg(data: bytes, steps: Steps, max_scans: int) -> Header:
    size, metadata_bytes, orientation, scans_at = None, 0, 0, 0
    for marker, start, end in file_parts.jpeg_segments(data, steps):
        if marker in _SOF:
            bits, height, width = struct.unpack_from(">BHH", data, start)
            if size is not None or not height or not width:
                raise InvalidInput("CORRUPT", "the JPEG file has two sizes, or none")
            size = bits, height, width
        elif 0xE0 <= marker <= 0xEF or marker == _COM:
            metadata_bytes += end - start
            if marker == _APP1 and not orientation and data.startswith(b"Exif\0", start):  # the first counts
                orientation = exif_orientation(data[start + 6 : end])
        scans_at = end
    if size is None:
        raise InvalidInput("CORRUPT", "the JPEG file has no size before its first scan")
    bits, height, width = size
    scans = file_parts.count_scans(data, scans_at, steps, max_scans)
    return Header("JPEG", width, height, bits, 1, scans, metadata_bytes, orientation or 1)


def exif_orientation(exif: bytes) -> int:
    """The orientation (1…8) of a TIFF block of EXIF data; 1 where it says none, or is damaged."""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (entries_at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, entries_at)
        for entry in range(entries_at + 2, entries_at + 2 + 12 * min(count, _MOST_ENTRIES), 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _ORIENTATION_TAG:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error, OverflowError):
        pass
    return 1


# ---- PNG ----


def _png(data: bytes, steps: Steps, _: int) -> Header:
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    if data[8:16] != b"\0\0\0\x0dIHDR" or not width or not height:
        raise InvalidInput("CORRUPT", "the PNG file does not begin with its size")
    frames, metadata_bytes, orientation = 1, 0, 1
    for kind, start, end in file_parts.png_chunks(data, steps):
        if kind[0] & 0x20:  # ancillary
            metadata_bytes += end - start
            if kind == b"acTL":
                frames = max(1, _uint32(data, start))
            elif kind == b"eXIf":
                orientation = exif_orientation(data[start:end])
    return Header("PNG", width, height, bits, frames, 1, metadata_bytes, orientation)


# ---- WebP ----


_WEBP_CHUNKS = {b"VP8X", b"ANMF", b"VP8 ", b"VP8L", b"EXIF", b"XMP ", b"ICCP"}


def _webp(data: bytes, steps: Steps, _: int) -> Header:
    sizes, frames, metadata_bytes, orientation = list[tuple[int, int]](), 0, 0, 1
    for kind, start, end in file_parts.riff_chunks(data, steps):
        if kind not in _WEBP_CHUNKS:
            continue
        if kind == b"VP8X":
            sizes.append((1 + _uint24(data, start + 4), 1 + _uint24(data, start + 7)))
        elif kind == b"ANMF":
            sizes.append((1 + _uint24(data, start + 6), 1 + _uint24(data, start + 9)))
            frames += 1
        elif kind in (b"VP8 ", b"VP8L"):
            sizes.append(_webp_frame_size(data, kind, start))
        else:
            metadata_bytes += end - start
            if kind == b"EXIF":
                exif = data[start:end].removeprefix(b"Exif\0\0")
                orientation = exif_orientation(exif)
    if not sizes:
        raise InvalidInput("TRUNCATED", "the WebP file ends before its image")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header("WEBP", width, height, 8, max(1, frames), 1, metadata_bytes, orientation)


def _webp_frame_size(data: bytes, kind: bytes, start: int) -> tuple[int, int]:
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, start + 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, start + 6)
    return width & 0x3FFF, height & 0x3FFF


def _uint24(data: bytes, at: int) -> int:
    if at + 3 > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + 3], "little")


# ---- the others ----


def _bmp(data: bytes, _: Steps, __: int) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _planes, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _planes, bits = struct.unpack_from("<iiHH", data, 18)
    return Header("BMP", abs(width), abs(height), bits)


def _gif(data: bytes, steps: Steps, _: int) -> Header:
    """Of the screen, or of the first frame where that is larger."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at] == 0x21:  # an extension
        steps.take()
        at += 2
        while data[at]:  # its blocks
            steps.take()
            at += 1 + data[at]
        at += 1
    if data[at] != 0x2C:
        raise InvalidInput("CORRUPT", "the GIF file has no frame where one must begin")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    return Header("GIF", width, height)


def _tiff(data: bytes, steps: Steps, _: int) -> Header:
    """Of the first image, as its first entries say."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    count, at = (struct.unpack_from(order + ("Q" if is_big else "H"), data, at)[0], at + (8 if is_big else 2))
    entry_size, value_at = (20, 12) if is_big else (12, 8)
    values = {256: 0, 257: 0, 258: 8, 322: 0, 323: 0, _ORIENTATION_TAG: 1}  # 322 and 323: a tile's sides
    for entry in range(at, at + entry_size * count, entry_size):
        steps.take()
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag == _ORIENTATION_TAG and kind not in (1, 3, 4):
            raise InvalidInput("CORRUPT", "the orientation of the TIFF file is no number")
        if tag in values and kind in (1, 3, 4):
            (number,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, entry + 4)
            if number == 1:
                code = {1: "B", 3: "H", 4: "I"}[kind]
                (values[tag],) = struct.unpack_from(order + code, data, entry + value_at)
    orientation = values[_ORIENTATION_TAG]
    width, height = values[256], values[257]
    if width and height:
        width, height = max(width, values[322]), max(height, values[323])
    return Header("TIFF", width, height, values[258], orientation=orientation if 1 <= orientation <= 8 else 1)


def _iso(kind: str) -> Callable[[bytes, Steps, int], Header]:
    def read(data: bytes, steps: Steps, _: int) -> Header:
        """The largest of the images: a grid's, where there is one."""
        sizes = [(0, 0)]
        places = [(0, len(data))]
        while places:
            for box, start, end in file_parts.boxes(data, steps, *places.pop()):
                if box == b"ispe":
                    sizes.append(struct.unpack_from(">II", data, start + 4))
                elif box in (b"iloc", b"iinf", b"ipma", b"iref"):  # each item's entries: decoders compare all with all
                    steps.take((end - start) // 64)
                elif box == b"moov":
                    raise InvalidInput("UNSUPPORTED_FORMAT", f"the {kind} file is a sequence: give one picture of it")
                elif box in (b"meta", b"iprp", b"ipco"):
                    places.append((start + 4 * (box == b"meta"), end))
        width, height = max(sizes, key=lambda size: size[0] * size[1])
        if not width * height:
            raise InvalidInput("CORRUPT", f"the {kind} file says no size")
        return Header(kind, width, height)

    return read


_READERS: dict[str, Callable[[bytes, Steps, int], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "BMP": _bmp,
    "GIF": _gif,
    "TIFF": _tiff,
    "AVIF": _iso("AVIF"),
    "HEIF": _iso("HEIF"),
}
