"""Each command of ``facenet`` in a process of its own; the other tests run commands in theirs."""

from pathlib import Path

import click
import numpy as np
import pytest
from commandline import facenet_process
from facenet_client.cli import commands
from PIL import Image

ARGUMENTS = {
    "align": ["{raw}", "{out}"],
    "bench": ["--count", "4", "--json"],
    "bulk": ["{photos}", "{out}", "--engine", "server", "--json"],
    "cluster": ["{photos}"],
    "compare": ["{photos}/a.png", "{photos}/b.png"],
    "detect": ["{photos}"],
    "embed": ["{photos}", "--json"],
    "evaluate": ["pairs", "--help"],
    "health": [],
    "identify": ["{raw}", "{photos}"],
    "info": ["--json"],
    "stats": ["--json"],
}


@pytest.fixture
def folders(tmp_path: Path, astronaut: np.ndarray) -> dict[str, Path]:
    """One person's photos, as they are and by person."""
    for folder in ("photos", "raw/somebody"):
        (tmp_path / folder).mkdir(parents=True)
        for name, pixels in (("a.png", astronaut), ("b.png", astronaut[:, ::-1])):
            Image.fromarray(pixels).save(tmp_path / folder / name)
    return {name: tmp_path / name for name in ("photos", "raw", "out")}


def test_every_command_is_among_these() -> None:
    assert commands.facenet.list_commands(click.Context(commands.facenet)) == sorted(ARGUMENTS)


@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_command_runs_as_a_process(command: str, server: str, folders: dict[str, Path]) -> None:
    ended = facenet_process(server, command, *(each.format(**folders) for each in ARGUMENTS[command]))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
    assert "Traceback" not in ended.stderr
