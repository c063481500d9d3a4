"""A folder of labelled folders: ROOT/person/photo.jpg."""

import random
from collections.abc import Mapping
from pathlib import Path

import click


def people(root: Path, leave_out: Path | None = None) -> dict[str, list[Path]]:
    """Each folder's name and its files, both in order; hidden ones do not count, nor does the folder
    ``leave_out``. Raises UsageError where no folder has a file."""
    hidden = leave_out and leave_out.resolve()
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.resolve() != hidden]
    found = {folder.name: _files(folder) for folder in folders if not folder.name.startswith(".")}
    if not any(found.values()):
        raise click.UsageError(f"no folders of images in {root}: it takes {root / 'person' / 'photo.jpg'}")
    return found


def shuffled(found: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """The same, people and files of each in random order."""
    names = random.sample(list(found), len(found))
    return {name: random.sample(found[name], len(found[name])) for name in names}


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
