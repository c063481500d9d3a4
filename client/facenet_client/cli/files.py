"""Files that commands write: names in them and of them, and files that are whole or not there."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MAX_NAME_BYTES = 255  # of the usual file systems


def portable(path: Path | str) -> str:
    """A path as files of text have it: bytes of its name that are no UTF-8 are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def fitting(stem: str, suffix: str) -> str:
    """``stem`` + ``suffix``; where a file system would refuse so long a name, the stem is cut and a digest of it added,
    the same for the same stem."""
    encoded, room = os.fsencode(stem), _MAX_NAME_BYTES - len(os.fsencode(suffix))
    if len(encoded) <= room:
        return stem + suffix
    digest = f"~{hashlib.sha256(encoded).hexdigest()[:8]}"
    cut = encoded[: room - len(digest)]
    while cut and encoded[len(cut)] & 0xC0 == 0x80:  # in the middle of a UTF-8 character
        cut = cut[:-1]
    return os.fsdecode(cut) + digest + suffix


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name to write to; the file takes its place at ``path`` at the end, if there was no error."""
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) RGB as a whole or not at all, so that a file that is there is complete."""
    with replaced(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, format="PNG")
