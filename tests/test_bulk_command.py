"""``facenet bulk`` on the real networks: the very numbers of the server, by each engine; and its words."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bulk_runs import parts, rows
from commandline import command_of, facenet
from conftest import ROOT, Pixels, server_process
from facenet_client import Client, Detection, Face
from PIL import Image

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def portraits(tmp_path: Path, astronaut: Pixels, hopper: Pixels) -> Path:
    """Both portraits, upright and not, beside each other, without a face, and broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "collins.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(astronaut).copy()).save(folder / "collins lying.jpg", exif=exif, quality=95)
    Image.fromarray(hopper).save(folder / "hopper.jpg", quality=95)
    both = Image.new("RGB", (1024, 606))
    both.paste(Image.fromarray(astronaut), (0, 0))
    both.paste(Image.fromarray(hopper), (512, 0))
    both.save(folder / "two.webp", quality=90)
    Image.fromarray(astronaut[300:, :200].copy()).save(folder / "nobody.png")
    whole = (folder / "hopper.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


def many(folder: Path, portrait: Pixels, count: int) -> Path:
    """A folder of so many small photos, no two alike."""
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.roll(portrait, number, axis=1)).resize((256, 303)).save(folder / f"{number:03}.jpg")
    return folder


def with_rooms(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which a process finds all that a bulk run needs."""
    rooms = [environment["PYTHONPATH"], str(ROOT / "bulk"), str(ROOT / "server")]
    return {**environment, "PYTHONPATH": os.pathsep.join(rooms)}


def bulk(*arguments: Any, server: str = "127.0.0.1:1") -> "subprocess.CompletedProcess[str]":
    return facenet(server, "bulk", *arguments)


def same(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """All but the embeddings to the bit, these within 1e-5."""
    for one, other in zip(found, expected, strict=True):
        assert {**one, "embedding": None} == {**other, "embedding": None}
        assert (one["embedding"] is None) == (other["embedding"] is None)
        if one["embedding"] is not None:
            assert np.abs(np.subtract(one["embedding"], other["embedding"])).max() < 1e-5


def test_its_rows_are_what_the_server_answers(portraits: Path, models: Path, server: str, tmp_path: Path) -> None:
    ended = bulk(portraits, tmp_path / "out", "--models", models, "--json")
    assert ended.returncode == 1, ended.stderr  # a photo is broken
    failed = {"TRUNCATED": 1, "UNSUPPORTED_FORMAT": 1}
    summary = json.loads(ended.stdout)
    assert (summary["images"], summary["without_face"], summary["failed"]) == (7, 1, failed)
    found = rows(tmp_path / "out")
    files = sorted(portraits.iterdir())
    with Client(server) as client:
        answers = client.embed(files)
    expected: list[tuple[str, Detection, Face | None]] = []
    for file, answer in zip(files, answers, strict=True):
        expected.extend((str(file), answer, face) for face in answer.faces or [None])
    for row, (source, answer, face) in zip(found, expected, strict=True):
        assert row["source"] == source
        assert row["reason"] == (answer.error.reason if answer.error else None)
        if not answer.error:
            assert (row["image_width"], row["exif_orientation"]) == (answer.width, answer.exif_orientation)
        assert (row["face_index"] is None) == (face is None)
        if face is not None:
            assert tuple(row["box"]) == face.box
            assert row["score"] == np.float32(face.score)
            assert row["landmarks"] == [number for point in face.landmarks for number in point]
            assert np.abs(row["embedding"] - np.asarray(face.embedding)).max() < 1e-5

    again = bulk(portraits, tmp_path / "out", "--engine", "server", "--target", server)
    assert again.returncode == 0, again.stderr  # another engine goes on where this one ended
    by_servers = bulk(portraits, tmp_path / "by servers", "--engine", "server", "--target", server)
    assert by_servers.returncode == 1, by_servers.stderr
    same(rows(tmp_path / "by servers"), found)


def test_servers_answer_around_images_that_cannot_be_read(portraits: Path, server: str, tmp_path: Path) -> None:
    listed = ["none.jpg", "collins.png", "nor this.jpg", "broken.jpg", "hopper.jpg", "nor that.jpg", "collins.png"]
    (tmp_path / "list.txt").write_text("".join(f"{portraits / name}\n" for name in listed))
    ended = bulk(tmp_path / "list.txt", tmp_path / "out", "--engine", "server", "--target", server)
    assert ended.returncode == 1, ended.stderr
    found = rows(tmp_path / "out")
    assert [Path(row["source"]).name for row in found] == listed
    reasons = [row["reason"] for row in found]
    assert reasons == ["UNREADABLE", None, "UNREADABLE", "UNSUPPORTED_FORMAT", None, "UNREADABLE", None]
    twins, other = np.subtract(found[1]["embedding"], found[6]["embedding"]), found[4]["embedding"]
    assert np.abs(twins).max() < 1e-5
    assert np.linalg.norm(np.subtract(found[1]["embedding"], other)) > 1


@pytest.mark.slow
def test_a_run_by_servers_outlives_one_that_is_killed_and_comes_back(
    models: Path, tmp_path: Path, hopper: Pixels
) -> None:
    folder = many(tmp_path / "photos", hopper, 60)
    settings = ("--models", str(models))
    with server_process(*settings) as (target, process):
        arguments = [folder, tmp_path / "out", "--engine", "server", "--target", target, "--shard-images", "10"]
        command, environment = command_of(target, "bulk", *arguments, "--timeout-s", "5")
        run = subprocess.Popen(command, env=with_rooms(environment), stderr=subprocess.PIPE, text=True)
        while not parts(tmp_path / "out"):
            assert run.poll() is None
        process.kill()
        with server_process(*settings, "--listen", target):
            _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert [Path(row["source"]).name for row in rows(tmp_path / "out")] == [f"{n:03}.jpg" for n in range(60)]


@pytest.mark.slow
def test_options_and_precision_count(portraits: Path, models: Path, tmp_path: Path) -> None:
    settings = ("--models", models, "--faces", "largest", "--no-exif", "--model", "20180408-102900")
    ended = bulk(portraits, tmp_path / "out", *settings)
    assert "2 failed" in ended.stderr
    found = rows(tmp_path / "out")
    assert max(row["face_index"] or 0 for row in found) == 0
    assert {len(row["embedding"]) for row in found if row["embedding"]} == {512}
    assert not any(row["score"] for row in found if "lying" in row["source"])  # no face lies down
    refused = bulk(portraits, tmp_path / "other", "--models", models, "--model", "none", "--precision", "int8")
    assert refused.returncode == 1
    assert "there is no embedder 'none-int8'" in refused.stderr
    other = bulk(portraits, tmp_path / "out", "--models", models)
    assert other.returncode == 2
    assert "model.name 20180408-102900, now 20170512-110547" in other.stderr


@pytest.mark.slow
def test_a_server_that_is_not_there_is_told(portraits: Path, tmp_path: Path) -> None:
    ended = bulk(portraits, tmp_path / "out", "--engine", "server", "--timeout-s", "1")
    assert ended.returncode == 3
    assert "--server says where one listens" in ended.stderr


def test_a_models_folder_that_is_not_there_is_told(portraits: Path, tmp_path: Path) -> None:
    ended = bulk(portraits, tmp_path / "out", "--models", tmp_path / "none")
    assert ended.returncode == 1
    assert "make the models with `facenet-convert all" in ended.stderr
    assert not (tmp_path / "out").exists() or not parts(tmp_path / "out")


def test_without_its_packages_it_says_how_to_get_them(portraits: Path, tmp_path: Path) -> None:
    without = "import sys; sys.modules['pyarrow'] = None"
    ended = facenet("127.0.0.1:1", "bulk", portraits, tmp_path / "out", before=without)
    assert ended.returncode == 1
    assert 'pip install "facenet-serve[bulk]"' in ended.stderr
    assert facenet("127.0.0.1:1", "--help", before=without).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_it_and_says_how_to_go_on(models: Path, tmp_path: Path, hopper: Pixels) -> None:
    folder = many(tmp_path / "photos", hopper, 200)
    arguments = [folder, tmp_path / "out", "--models", models, "--shard-images", "10"]
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # where a test's shell ignores it
    command, environment = command_of("127.0.0.1:1", "bulk", *arguments, before=heard)
    process = subprocess.Popen(
        command, env=with_rooms(environment), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not parts(tmp_path / "out"):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to its workers, too
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    n_parts = len(parts(tmp_path / "out"))
    assert f"{n_parts:,} of 20 parts are there; the same command goes on from there" in said
    assert "Traceback" not in said
    ended = bulk(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert f"{n_parts:,} of 20 parts are there" in ended.stderr
    assert len(rows(tmp_path / "out")) >= 200
