"""Which files of folders are photos: the one walk of all commands."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".heic", ".heif", ".avif",
}  # fmt: skip
_SYSTEM = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
    "__macosx", "@eadir", "$recycle.bin", "system volume information",
}  # fmt: skip
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")

_PHOTO, _FOLDER = "photo", "folder"
HIDDEN = "hidden or system files"
OTHER = "files that are no photos by their names"
SPECIAL = "pipes, sockets and devices"
KNOWN = "folders that were walked already"
NESTED = "folders within a person's folder"
OUTSIDE = "files outside a person's folder"
TWIN = "photos whose crop has the name of another one's"


@dataclass(slots=True)
class Walk:
    """A walk through folders. It keeps what it passes over, each with the reason, and folders that cannot be read.

    Photos are regular files with a photo's suffix, and files without a suffix that begin as a photo does. Links are
    followed, into each folder once. A link that leads nowhere is a photo if its name is: reading it fails by itself.
    """

    passed_over: list[tuple[Path, str]] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def photos(self, paths: Iterable[Path]) -> list[Path]:
        """Files, whatever their names, and the photos below folders, each folder's in order."""
        return [photo for path in paths for photo in (sorted(self.below(path)) if os.path.isdir(path) else [path])]

    def people(self, root: Path, leave_out: Path | None = None) -> dict[str, list[Path]]:
        """The names of the folders in ``root``, in order, and the photos in each, without those of folders within.
        The folder ``leave_out`` is not looked at."""
        hidden = leave_out and leave_out.resolve()
        entries = list(self._entries(root))
        self.passed_over.extend((path, OUTSIDE) for path, is_folder in entries if not is_folder)
        folders = [path for path, is_folder in entries if is_folder and path.resolve() != hidden]
        found = {folder.name: self._of_person(folder) for folder in sorted(folders, key=Path.is_symlink)}
        return dict(sorted(found.items()))

    def _of_person(self, folder: Path) -> list[Path]:
        if not self._is_new(folder):
            return []
        entries = list(self._entries(folder))
        self.passed_over.extend((path, NESTED) for path, is_folder in entries if is_folder)
        return [path for path, is_folder in entries if not is_folder]

    def below(self, root: Path) -> Iterator[Path]:
        """The photos below a folder, as they are met, in an order that stays: those of a folder, then those of folders
        in it. Links wait until all else is walked, so that they take nothing away from it."""
        waiting, links = [root], deque[Path]()
        while waiting or links:
            folder = waiting.pop() if waiting else links.popleft()
            if not self._is_new(folder):
                continue
            folders = list[Path]()
            for path, is_folder in self._entries(folder):
                if not is_folder:
                    yield path
                elif path.is_symlink():
                    links.append(path)
                else:
                    folders.append(path)
            waiting.extend(reversed(folders))

    def _is_new(self, folder: Path) -> bool:
        """Whether the folder is met for the first time, whatever its name; otherwise it is passed over."""
        try:
            status = folder.stat()
        except OSError:  # listing it tells why
            return True
        identity = status.st_dev, status.st_ino
        if identity in self._seen:
            self.passed_over.append((folder, KNOWN))
            return False
        self._seen.add(identity)
        return True

    def _entries(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """The photos and folders in a folder, in order, and whether each is a folder."""
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable.append((folder, error.strerror or str(error)))
            return
        for entry in entries:
            path, kind = folder / entry.name, _kind(entry)
            if kind in (_PHOTO, _FOLDER):
                yield path, kind == _FOLDER
            else:
                self.passed_over.append((path, kind))


def _kind(entry: "os.DirEntry[str]") -> str:
    """What an entry of a folder is, or the reason to pass it over."""
    if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
        return HIDDEN
    suffix = Path(entry.name).suffix.lower()
    try:
        if entry.is_dir():
            return _FOLDER
        is_file, is_dangling = entry.is_file(), not os.path.exists(entry.path)
    except OSError:  # a link to itself, or into a folder that cannot be read
        is_file, is_dangling = False, True
    if suffix in SUFFIXES:
        return _PHOTO if is_file or is_dangling else SPECIAL
    return _PHOTO if is_file and not suffix and _begins_as_photo(entry.path) else OTHER


def _begins_as_photo(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return (
        head.startswith(_BEGINNINGS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
    )
