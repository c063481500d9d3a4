"""A folder of labelled folders: ROOT/person/photo.jpg."""

import random
from collections.abc import Mapping
from pathlib import Path

import click

from facenet_client.cli import console
from facenet_client.cli.photos import Walk


def people(root: Path, walk: Walk, leave_out: Path | None = None) -> dict[str, list[Path]]:
    """Each person's name and photos, both in order, without the folder ``leave_out``. Raises UsageError where there is
    no photo."""
    found = walk.people(root, leave_out)
    if not any(found.values()):
        console.tell_passed_over(walk)
        raise click.UsageError(f"no folders of images in {root}: it takes {root / 'person' / 'photo.jpg'}")
    return found


def shuffled(found: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """The same, people and files of each in random order."""
    names = random.sample(list(found), len(found))
    return {name: random.sample(found[name], len(found[name])) for name in names}
