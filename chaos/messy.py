"""Folders as people have them: photos between all kinds of entries that are none, or odd."""

import os
from pathlib import Path

LONG = "人" * 83 + ".jpg"  # 253 bytes; with a dot and a process id before it, more than file systems take
LONGEST = "p" * 251 + ".jpg"  # 255 bytes
NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")
LINE_END = "two\nlines.jpg"

PASSED_OVER = {
    ".DS_Store": b"\0\0\0\1Bud1",
    "._photo.jpg": b"\0\5\x16\7",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[.ShellClassInfo]",
    "notes.txt": b"who is who",
    "README": b"no suffix, no photo",
    "clip.mov": b"\0\0\0\x14ftypqt  ",
}
BROKEN = {"broken.jpg": b"nothing", "empty.png": b"", "phone.HEIC": b"\0\0\0\x18ftypheic" + bytes(8)}


def mess(folder: Path, photo: bytes) -> dict[str, set[str]]:
    """Put odd entries into a folder; the names, by what becomes of them: "answered", "failed" and "passed over"."""
    answered = {LONG, LONGEST, NOT_UTF8, LINE_END, "PHOTO.JPEG", "scan", "frame.jfif", "stereo.MPO", "named.jpe"}
    for name in answered:
        (folder / name).write_bytes(photo)
    for name, content in (PASSED_OVER | BROKEN).items():
        (folder / name).write_bytes(content)
    (folder / "album.jpg").mkdir()
    (folder / "album.jpg" / "inside.jpg").write_bytes(photo)
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "small.jpg").write_bytes(photo)
    (folder / "up").symlink_to(folder, target_is_directory=True)
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "round.jpg").symlink_to(folder / "round.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return {
        "answered": answered | {"album.jpg/inside.jpg"},
        "failed": {*BROKEN, "gone.jpg", "round.jpg"},
        "passed over": {*PASSED_OVER, ".thumbnails", "up", "pipe.jpg"},
    }
