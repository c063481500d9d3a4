"""Every command of docs/from-facenet.md, in its order, on a folder as the page supposes it."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, server_process
from facenet_convert.releases import RELEASES
from PIL import Image
from tiny_release import a_release, zipped

pytestmark = pytest.mark.timeout(180)

PAGE = (ROOT / "docs" / "from-facenet.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
CONVERT, CLIENT = ([line for line in LINES if line.startswith(f"{name} ")] for name in ("facenet-convert", "facenet"))
(SERVER,) = [line for line in LINES if line.startswith("facenet-server ")]


def run(line: str, folder: Path, **environment: str) -> str:
    """What a command of ours prints, run from a checkout."""
    program, *arguments = shlex.split(line)
    module = {"facenet": "facenet_client.cli", "facenet-convert": "facenet_convert.__main__"}[program]
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "client", "convert"))
    command = [sys.executable, "-c", f"from {module} import main; main()", *arguments]
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "250", **environment}
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two models, the second as the user's own copy in small, photos of two people, and LFW's pairs of them."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "models").mkdir()
    for file in models.iterdir():
        (folder / "models" / file.name).symlink_to(file)
    zipped(a_release(folder / "20170511-185253", "20170511-185253", dimension=128), folder / "20170511-185253.zip")
    return folder


@pytest.fixture(scope="module")
def photos_of_two(folder: Path, astronaut: np.ndarray, hopper: np.ndarray) -> Path:
    for name, pixels in (("Eileen", astronaut[:300, 80:380]), ("Grace", hopper[40:440, 60:460])):
        portrait = Image.fromarray(pixels)
        for place in ("raw", "lfw", "photos"):
            (folder / place / name).mkdir(parents=True)
            for number, light in enumerate((1.0, 0.8, 0.6), 1):
                image = portrait.point([round(value * light) for value in range(256)] * 3)
                image.save(folder / place / name / f"{name}_{number:04d}.jpg")
        (folder / "gallery" / name).mkdir(parents=True)
        portrait.save(folder / "gallery" / name / "1.jpg")
    Image.fromarray(astronaut).save(folder / "1.jpg")
    Image.fromarray(hopper).save(folder / "2.jpg")
    fold = "Eileen 1 2\nGrace 2 3\nEileen 1 Grace 1\nEileen 2 Grace 3\n"
    (folder / "pairs.txt").write_text(f"2 2\n{fold}{fold}".replace(" ", "\t"))
    return folder


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    for line in CONVERT:
        if "--download" not in line:
            assert "models/" in line
            run(line, folder)
    return folder


@pytest.fixture(scope="module")
def running(converted: Path) -> Iterator[str]:
    """The address of the page's server, on another port."""
    flags = shlex.split(SERVER)[1:]
    assert flags[-2:] == ["--listen", "127.0.0.1:50051"]
    assert flags[:2] == ["--models", "models/"]
    with server_process("--models", str(converted / "models"), "--listen", "127.0.0.1:0") as (target, _):
        yield target


def test_the_page_installs_extras_that_there_are() -> None:
    (line,) = [line for line in LINES if line.startswith('pip install ".[')]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(line.partition("[")[2].rstrip('"]').split(",")) <= extras.keys()


def test_both_models_of_the_tutorial_are_served_and_the_first_is_the_default(running: str, converted: Path) -> None:
    told = run("facenet info --json", converted, FACENET_SERVER=running)
    assert '"default_embedder": "20170512-110547"' in told
    assert '"name": "20170511-185253"' in told


def test_the_model_that_is_downloaded_is_a_release() -> None:
    (line,) = [line for line in CONVERT if "--download" in line]
    assert shlex.split(line)[shlex.split(line).index("--download") + 1] in RELEASES


@pytest.mark.parametrize("line", CLIENT)
def test_a_command_of_the_page_runs(line: str, running: str, photos_of_two: Path) -> None:
    said = run(line, photos_of_two, FACENET_SERVER=running)
    if line.startswith("facenet align"):
        assert "Number of successfully aligned images: 6" in said
        crops = sorted(file.name for file in (photos_of_two / "aligned").rglob("*.png"))
        assert crops == [f"{name}_{number:04d}_0.png" for name in ("Eileen", "Grace") for number in (1, 2, 3)]
    if line == "facenet compare --reference 1.jpg 2.jpg":
        assert re.search(r"\b1\.\d{4}", said)  # the matrix
        assert "different" in said
    if line.startswith("facenet evaluate lfw"):
        assert "Accuracy: 1.00000" in said
    if line.startswith("facenet identify"):
        assert said.count("Eileen") >= 3


ORIGINALS = re.findall(r"^Original.*?\n\n```sh\n(.*?)```\n\n(.*?)\n\n```sh\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


def test_every_command_of_the_original_is_beside_one_of_ours() -> None:
    theirs = "\n".join(block for block, _, _ in ORIGINALS)
    scripts = ("align_dataset_mtcnn", "compare", "validate_on_lfw", "export_embeddings", "cluster", "classifier")
    assert all(f"{script}.py" in theirs for script in scripts)
    assert len(ORIGINALS) == PAGE.count("\nOriginal")
    for _, between, ours in ORIGINALS:
        assert between.startswith("Here")
        assert ours.startswith(("facenet", "pip install"))


def test_every_part_is_in_both_languages() -> None:
    assert PAGE.count("| English | 中文 |") == PAGE.count("\n## ") + 1
    for row in re.findall(r"^\| (.*) \| (.*) \|$", PAGE, re.MULTILINE):
        if row != ("English", "中文"):
            assert not re.search("[\u4e00-\u9fff]", row[0])
            assert re.search("[\u4e00-\u9fff]", row[1])
            assert not re.search("[\u4e00-\u9fff] ?[,;:()]", row[1])
