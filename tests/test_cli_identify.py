"""``facenet identify`` against a server on the real networks."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import facenet
from facenet_client.cli.gallery import Gallery, nearest, score
from PIL import Image

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def gallery(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """One person, one picture."""
    return saved(tmp_path / "gallery", {"collins/one.png": astronaut})


@pytest.fixture
def probes(tmp_path: Path, astronaut: np.ndarray, hopper: np.ndarray) -> Path:
    """The known person, a stranger, and nobody."""
    pictures = {
        "collins/mirrored.png": astronaut[:, ::-1],
        "hopper/one.png": hopper,
        "hopper/empty.png": np.zeros((64, 64, 3), np.uint8),
    }
    return saved(tmp_path / "probes", pictures)


def saved(root: Path, pictures: dict[str, np.ndarray]) -> Path:
    for name, pixels in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


def answered(lines: str) -> dict[str, dict[str, Any]]:
    return {Path(record["path"]).name: record for record in map(json.loads, lines.splitlines())}


def test_a_known_person_is_named_and_a_stranger_is_not(server: str, gallery: Path, probes: Path) -> None:
    ended = facenet(server, "identify", gallery, probes, "--json")
    assert ended.returncode == 0, ended.stderr
    found = answered(ended.stdout)
    known, stranger, nobody = found["mirrored.png"], found["one.png"], found["empty.png"]
    assert (known["name"], known["nearest"]) == ("collins", "collins")
    assert (stranger["name"], stranger["nearest"]) == (None, "collins")
    assert known["distance"] < 1 < stranger["distance"]
    assert [nobody[key] for key in ("name", "nearest", "distance", "box", "error")] == [None] * 5
    assert [answer["status"] for answer in (known, stranger, nobody)] == ["known", "unknown", "no_face"]


def test_a_single_file_is_a_probe(server: str, gallery: Path, probes: Path) -> None:
    ended = facenet(server, "identify", gallery, probes / "collins" / "mirrored.png", "--csv")
    heading, row = csv.reader(ended.stdout.splitlines())
    assert dict(zip(heading, row, strict=True))["status"] == "known"


def test_the_table_and_the_score_are_for_people(server: str, gallery: Path, probes: Path) -> None:
    said = facenet(server, "identify", gallery, probes, "--score").stdout
    assert "unknown" in said
    assert "no face" in said
    assert "Accuracy: 1.00000 (2 of 2 images)" in said
    assert "False-accept rate: 0.00000 (0 of 1 strangers)" in said
    assert "1 without a face or unreadable, left out" in said


def test_the_threshold_decides_who_is_unknown(server: str, gallery: Path, probes: Path) -> None:
    strict = facenet(server, "identify", gallery, probes / "collins", "--json", "--threshold", 0.01)
    assert answered(strict.stdout)["mirrored.png"]["name"] is None
    lax = facenet(server, "identify", gallery, probes, "--json", "--threshold", 2, "--score")
    assert json.loads(lax.stdout.splitlines()[-1])["score"] == {
        "known": 1,
        "named_right": 1,
        "named_wrong": 0,
        "strangers": 1,
        "strangers_named": 1,
        "accuracy": 0.5,
        "false_accept_rate": 1,
        "threshold": 2,
        "without_face": 1,
    }


def test_what_shows_no_face_is_left_out_of_the_gallery(server: str, gallery: Path, probes: Path) -> None:
    saved(gallery, {"nobody/empty.png": np.zeros((64, 64, 3), np.uint8)})
    ended = facenet(server, "identify", gallery, probes, "--json")
    assert ended.returncode == 0
    assert "empty.png: no face; left out of the gallery" in ended.stderr
    (gallery / "collins" / "one.png").write_bytes(b"nothing")
    emptied = facenet(server, "identify", gallery, probes, "--json")
    assert emptied.returncode == 1
    assert "no face in the gallery" in emptied.stderr


def test_an_unreadable_probe_has_its_error_and_sets_the_exit_code(server: str, gallery: Path, probes: Path) -> None:
    (probes / "broken.jpg").write_bytes(b"nothing")
    ended = facenet(server, "identify", gallery, probes, "--json")
    assert ended.returncode == 1
    assert answered(ended.stdout)["broken.jpg"]["error"]["reason"] == "UNSUPPORTED_FORMAT"
    scored = facenet(server, "identify", gallery, probes, "--score")
    assert scored.returncode == 2
    assert "--score takes labelled folders" in scored.stderr


def test_the_nearest_of_several_vectors_names_the_person() -> None:
    gallery = Gallery(["a", "b", "a"], np.eye(3, dtype=np.float32))
    assert nearest(gallery, np.array([0, 0, 1], np.float32)) == ("a", 0)
    label, distance = nearest(gallery, np.array([0, 0.8, 0.6], np.float32))
    assert label == "b"
    assert distance == pytest.approx(math.sqrt(0.4))


def test_strangers_count_apart_from_known_people() -> None:
    pairs = [("a", "a"), ("a", None), ("b", "a"), ("x", None), ("y", "b")]
    counted = score(pairs, ["a", "b", "b"])
    assert counted == (3, 1, 1, 2, 1)
    assert (counted.accuracy, counted.false_accept_rate) == (2 / 5, 1 / 2)
    assert math.isnan(score([("a", "a")], ["a"]).false_accept_rate)
