"""``facenet cluster`` against a server on the real networks."""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from commandline import facenet
from facenet_client import ModelInfo
from facenet_client.cli.answers import threshold
from facenet_client.cli.grouping import dbscan, members, pair_score
from PIL import Image

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def people(tmp_path: Path, astronaut: np.ndarray, hopper: np.ndarray) -> Path:
    """Three pictures of one person, two of another, a folder each."""
    root = tmp_path / "people"
    pictures = {
        "collins/one.png": astronaut,
        "collins/mirrored.png": astronaut[:, ::-1],
        "collins/darker.png": (astronaut * 0.7).astype(np.uint8),
        "hopper/one.png": hopper,
        "hopper/mirrored.png": hopper[:, ::-1],
    }
    for name, pixels in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


def records(lines: str) -> list[dict[str, Any]]:
    return list(map(json.loads, lines.splitlines()))


def test_pictures_of_two_people_are_two_clusters(server: str, people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = facenet(server, "cluster", people, "--json", "--score", "--out", out)
    assert ended.returncode == 0, ended.stderr
    first, second, score = records(ended.stdout)
    assert [(first["cluster"], first["size"]), (second["cluster"], second["size"])] == [(0, 3), (1, 2)]
    assert {Path(member["path"]).parent.name for member in first["members"]} == {"collins"}
    assert all(member["face"] == 0 and len(member["box"]) == 4 for member in first["members"])
    assert score["pairs"].pop("eps") == pytest.approx(0.6245, abs=1e-3)
    assert score["pairs"] == {"together": 4, "same": 4, "both": 4, "precision": 1, "recall": 1}
    assert names(out) == [
        "0/1_darker_0.png",
        "0/2_mirrored_0.png",
        "0/3_one_0.png",
        "1/1_mirrored_0.png",
        "1/2_one_0.png",
    ]
    with Image.open(out / "1" / "2_one_0.png") as crop:
        assert crop.size == (160, 160)


def test_the_largest_cluster_alone_for_people(server: str, people: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = facenet(server, "cluster", people, "--largest-only", "--out", out, "--score")
    assert ended.stdout.count("collins") == 3
    assert "hopper" not in ended.stdout
    assert "Pairwise precision: 1.00000 (4 of 4 pairs put together)" in ended.stdout
    assert {name[0] for name in names(out)} == {"0"}


def test_a_strict_eps_leaves_faces_alone_and_min_samples_calls_them_noise(server: str, people: Path) -> None:
    alone = records(facenet(server, "cluster", people, "--json", "--eps", 0.01).stdout)
    assert [record["size"] for record in alone] == [1] * 5
    (noise,) = records(facenet(server, "cluster", people, "--json", "--eps", 0.01, "--min-samples", 2).stdout)
    assert (noise["cluster"], noise["size"]) == (None, 5)


def test_faces_under_the_score_do_not_count(server: str, people: Path) -> None:
    ended = facenet(server, "cluster", people, "--json", "--min-score", 1.0)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.count("no face over the score 1") == 5


def test_images_without_a_face_are_named(server: str, people: Path) -> None:
    Image.new("RGB", (64, 64)).save(people / "hopper" / "empty.png")
    ended = facenet(server, "cluster", people, "--json")
    assert "empty.png: no face" in ended.stderr
    assert "6 images: 5 faces in 2 clusters, 1 images without a face, 0 failed" in ended.stderr
    assert len(records(ended.stdout)) == 2


def test_clusters_are_rows_of_csv(server: str, people: Path) -> None:
    ended = facenet(server, "cluster", people, "--csv", "--score")
    heading, *rows = csv.reader(ended.stdout.splitlines())
    assert heading[:3] == ["cluster", "path", "face"]
    assert [row[0] for row in rows] == ["0", "0", "0", "1", "1"]
    assert "Pairwise precision" in ended.stderr


def test_an_unreadable_image_is_named_and_left_out(server: str, people: Path) -> None:
    (people / "broken.jpg").write_bytes(b"nothing")
    ended = facenet(server, "cluster", people, "--json")
    assert ended.returncode == 1
    assert "broken.jpg: not an image" in ended.stderr
    assert len(records(ended.stdout)) == 2


def test_an_out_folder_with_files_in_it_is_refused(server: str, people: Path) -> None:
    ended = facenet(server, "cluster", people, "--out", people)
    assert ended.returncode == 2
    assert "is not empty" in ended.stderr


def test_stored_vectors_are_grouped_without_their_photos(server: str, people: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "faces.npz"
    assert facenet(server, "embed", people, "--out", vectors).returncode == 0
    fresh = records(facenet(server, "cluster", people, "--json").stdout)
    again = facenet(server, "cluster", vectors, "--json", "--score")
    *stored, score = records(again.stdout)
    assert [sorted(m["path"] for m in one["members"]) for one in stored] == [
        sorted(m["path"] for m in one["members"]) for one in fresh
    ]
    assert score["pairs"]["precision"] == 1
    alone = facenet("127.0.0.1:1", "cluster", vectors, "--eps", 0.01, "--csv")  # a server tells the default eps alone
    assert len(alone.stdout.splitlines()) == 6
    assert "5 images: 5 faces in 5 clusters" in alone.stderr


def test_a_file_that_holds_no_vectors_is_one_clear_line(server: str, tmp_path: Path) -> None:
    (tmp_path / "faces.npz").write_bytes(b"PK cut short")
    ended = facenet(server, "cluster", tmp_path / "faces.npz")
    assert ended.returncode == 2
    assert "not the arrays of `facenet embed --out`, or cut short" in ended.stderr


def test_what_a_killed_run_left_behind_is_in_nobodys_way(server: str, people: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".faces-x").mkdir(parents=True)
    (tmp_path / "out" / ".faces-x" / "0.png").write_bytes(b"")
    ended = facenet(server, "cluster", people, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert {name[0] for name in names(tmp_path / "out")} == {"0", "1"}


def test_an_unknown_embedder_is_refused(server: str, people: Path) -> None:
    ended = facenet(server, "cluster", people, "--model", "nobody")
    assert ended.returncode == 2
    assert "no embedder 'nobody'" in ended.stderr


def test_without_scipy_one_line_names_the_extra(people: Path) -> None:
    ended = facenet("127.0.0.1:1", "cluster", people, before="import sys; sys.modules['scipy'] = None")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert 'pip install "facenet-serve[evaluate]"' in line


def test_an_uncalibrated_model_takes_a_distance() -> None:
    model = ModelInfo("mine", "embedder", "", "", "", "", 160, 512, 0.0, 0.0, None, "fp32", ())
    with pytest.raises(click.UsageError, match="mine is uncalibrated: give --eps"):
        threshold(model, None, "--eps", None, "far_1e-5")
    assert threshold(model, 0.9, "--eps", None, "far_1e-5") == 0.9


def test_two_thousand_faces_are_clustered() -> None:
    people_count = 100
    random = np.random.default_rng(1)
    centres = unit(random.normal(size=(people_count, 512)))
    faces = unit(np.repeat(centres, 20, axis=0) + random.normal(scale=0.01, size=(people_count * 20, 512)))
    labels = dbscan(faces.astype(np.float32), 0.8, 1)
    score = pair_score(labels, [str(place // 20) for place in range(len(faces))])
    assert (score.precision, score.recall) == (1, 1)


def test_clusters_are_numbered_by_size_with_noise_last() -> None:
    vectors = np.array([[9.0], [0.0], [5.0], [5.1], [5.2], [0.1]], np.float32)
    labels = dbscan(vectors, 0.5, 2)
    assert labels.tolist() == [-1, 1, 0, 0, 0, 1]
    assert list(members(labels).items()) == [(0, [2, 3, 4]), (1, [1, 5]), (-1, [0])]
    assert dbscan(np.empty((0,), np.float32), 0.5, 1).tolist() == []


def test_pairs_are_scored_and_noise_is_in_none() -> None:
    score = pair_score([0, 0, 0, -1, -1], ["a", "a", "b", "b", "b"])
    assert (score.together, score.same, score.both) == (3, 4, 1)
    assert (score.precision, score.recall) == (1 / 3, 1 / 4)
    assert math.isnan(pair_score([0, 1], ["a", "b"]).precision)


def names(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def unit(vectors: Iterable[Any]) -> np.ndarray:
    rows = np.asarray(vectors)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
