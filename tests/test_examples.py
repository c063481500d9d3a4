"""Every example runs as its first line says. They call the default address; here a server stands elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

EXAMPLES = ROOT / "examples"


@pytest.fixture
def pictures(tmp_path: Path, astronaut: np.ndarray, hopper: np.ndarray) -> Path:
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    Image.fromarray(hopper).save(tmp_path / "b.png")
    return tmp_path


def run(example: str, server: str, *arguments: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    code = (EXAMPLES / example).read_text().replace("127.0.0.1:50051", server)
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "client"))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_detect(server: str, pictures: Path) -> None:
    ended = run("detect.py", server, "a.png", "b.png", "missing.png", folder=pictures)
    assert ended.returncode == 1
    assert "a.png [180, 60, 268, 174] 1.000" in ended.stdout
    assert "missing.png cannot read" in ended.stderr
    assert run("detect.py", server, "a.png", folder=pictures).returncode == 0


def test_compare(server: str, pictures: Path) -> None:
    assert run("compare.py", server, "a.png", "a.png", folder=pictures).stdout.startswith("same distance 0.000")
    assert run("compare.py", server, "a.png", "b.png", folder=pictures).stdout.startswith("different")
    ended = run("compare.py", server, "a.png", "missing.png", folder=pictures)
    assert (ended.returncode, ended.stderr.startswith("no answer: side b: cannot read missing.png")) == (1, True)


def test_embed_stream(server: str, pictures: Path) -> None:
    said = run("embed_stream.py", server, pictures, folder=pictures).stdout
    assert said.splitlines() == ["a.png [(128,)]", "b.png [(128,)]"]


@pytest.mark.timeout(120)
def test_demo(models: Path, tmp_path: Path) -> None:
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "client", "server"))
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--models", str(models), "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("same") == 3
    assert ended.stdout.count("different") == 1
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_examples_are_short() -> None:
    for file in EXAMPLES.glob("*.py"):
        if file.name != "demo.py":
            assert len(file.read_text().splitlines()) <= 45, file.name
