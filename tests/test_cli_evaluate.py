"""``facenet evaluate`` against a server on the real networks."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commandline import facenet
from facenet_client import Detection, Embedding, Face
from facenet_client.evaluation import parity
from facenet_convert import calibrate
from PIL import Image

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def two_people(tmp_path: Path, astronaut: np.ndarray, hopper: np.ndarray) -> Path:
    """LFW's form: four photos each of two people, one photo without a face, two folds of pairs."""
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda photo: photo,
        lambda photo: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda photo: photo.point(lambda value: value * 0.6),
        lambda photo: photo.resize((photo.width * 3 // 4, photo.height * 3 // 4)),
    ]
    for name, pixels in (("Collins", astronaut), ("Hopper", hopper)):
        folder = tmp_path / "lfw" / name
        folder.mkdir(parents=True)
        for number, change in enumerate(changes, 1):
            change(Image.fromarray(pixels)).save(folder / f"{name}_{number:04d}.png")
    (tmp_path / "lfw" / "Nobody").mkdir()
    Image.new("RGB", (200, 200)).save(tmp_path / "lfw" / "Nobody" / "Nobody_0001.png")
    fold = "Collins 1 2\nHopper 3 4\nCollins 1 3\nCollins 2 Hopper 1\nCollins 3 Hopper 4\nCollins 1 Nobody 1\n"
    (tmp_path / "pairs.txt").write_text("2 3\n" + fold + fold.replace("Nobody 1", "Nobody 2"))
    return tmp_path


def test_lfw_prints_the_protocols_figures_and_writes_everything(server: str, two_people: Path) -> None:
    folder, pairs, out = (two_people / name for name in ("lfw", "pairs.txt", "out"))
    flags = ("--flip", "--subtract-mean", "--metric", 1)
    ended = facenet(server, "evaluate", "lfw", folder, "--pairs", pairs, *flags, "--out", out)
    assert ended.returncode == 1, ended.stderr  # a pair is missing
    assert "Accuracy: 1.00000+-0.00000" in ended.stdout
    assert "11 pairs, 1 pairs missing, 1 pairs undetected" in ended.stdout
    assert "not the figures of the whole benchmark" in ended.stdout
    figures, fitted = (json.loads((out / name).read_text()) for name in ("lfw.json", "calibration.json"))
    assert figures["fold_accuracies"] == [1.0, 1.0]
    assert figures["images_undetected"] == 1
    assert (fitted["model"], fitted["preprocessing"]) == ("20170512-110547", "prewhiten")
    assert calibrate.read(out / "calibration.json", "20170512-110547", "prewhiten")
    assert 0.5 < fitted["operating_points"][0]["threshold"] < 1.3
    for name in ("roc.png", "distances.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 1\nCollins 1 2\nCollins 1 Hopper 1\n", "two folds"),
        ("", "the file is empty"),
        ("1 1\nA 1 2\nA 1 B 1\n", "none of"),
    ],
    ids=["one fold", "empty", "other people"],
)
def test_pairs_that_make_no_evaluation_are_one_clear_line(server: str, two_people: Path, text: str, told: str) -> None:
    (two_people / "pairs.txt").write_text(text)
    ended = facenet(server, "evaluate", "lfw", two_people / "lfw", "--pairs", two_people / "pairs.txt")
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_own_pairs_name_images_by_paths_and_a_broken_one_counts_as_without_a_face(
    server: str, two_people: Path
) -> None:
    flat = two_people / "flat"
    flat.mkdir()
    for number in (1, 2, 3, 4):
        for name in ("Collins", "Hopper"):
            (two_people / "lfw" / name / f"{name}_{number:04d}.png").rename(flat / f"{name} {number}.PNG")
    (flat / "broken.jpg").write_bytes(b"nothing")
    rows = ["Collins 1.PNG;Collins 2;1", "Hopper 1;Hopper 2.PNG;1", "Collins 1;Hopper 1;0", "Collins 2;Hopper 2;0"]
    rows += ["Collins 3;broken.jpg;0", "Collins 4;gone.jpg;0"]
    (two_people / "own.csv").write_text("\n".join(["image1;image2;same", *rows]), encoding="utf-16")
    ended = facenet(server, "evaluate", "lfw", flat, "--pairs", two_people / "own.csv")
    assert ended.returncode == 1, ended.stderr
    assert "Accuracy: " in ended.stdout
    assert "5 pairs, 1 pairs missing, 1 pairs undetected" in ended.stdout
    assert "no image of the name gone.jpg" in ended.stderr
    assert "broken.jpg: not an image" in ended.stderr
    assert "best_accuracy" in ended.stdout


def test_own_pairs_are_calibrated_on_themselves_whatever_their_folders_mean(server: str, two_people: Path) -> None:
    splits = two_people / "splits"
    for split, numbers in (("train", (1, 2)), ("val", (3, 4))):
        for name in ("Collins", "Hopper"):
            (splits / split / name).mkdir(parents=True)
            for number in numbers:
                image = two_people / "lfw" / name / f"{name}_{number:04d}.png"
                image.rename(splits / split / name / f"{number}.png")
    rows = ["train/Collins/1.png,val/Collins/3,1", "train/Hopper/1,./val/Hopper/3.png,1"]
    rows += ["train/Collins/1,train/Hopper/1,0", "train/Collins/2,train/Hopper/2,0"]
    (two_people / "own.csv").write_text("\n".join(["a,b,same", *rows]))
    out = two_people / "figures"
    ended = facenet(server, "evaluate", "lfw", splits, "--pairs", two_people / "own.csv", "--out", out)
    assert ended.returncode == 0, ended.stderr
    (point,) = json.loads((out / "calibration.json").read_text())["operating_points"]
    assert (point["different_pairs"], point["same_pairs"]) == (2, 2)
    assert (point["false_accept_rate"], point["true_accept_rate"]) == (0, 1)
    assert json.loads((out / "lfw.json").read_text())["images"] == 6


def test_the_servers_answers_are_the_references(server: str, photos: Path) -> None:
    ended = facenet(server, "evaluate", "parity", photos / "faces_golden.json", photos / "faces")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "46 of 46" in ended.stdout
    assert "PASS" in ended.stdout


RECORDED = {"boxes": [[10, 20, 30, 40, 0.9]], "landmarks": [[*range(5), *range(5)]]}
VECTOR = np.eye(1, 8, dtype=np.float32)[0]


def answered(box: tuple[float, ...] = (10, 20, 30, 40), score: float = 0.9, vector: np.ndarray = VECTOR) -> Detection:
    points = tuple((float(i), float(i)) for i in range(5))
    face = Face(box, score, points, Embedding(vector, "m"))  # type: ignore[arg-type]
    return Detection((face,), 100, 100)


def seen(found: Detection) -> parity.Parity:
    result = parity.Parity()
    result.add_detection("photo", found, RECORDED)
    result.add_embeddings("photo", found, [VECTOR])
    result.add_crop_embeddings([Embedding(VECTOR, "m")], [VECTOR])
    return result


@pytest.mark.parametrize(
    "off",
    [
        pytest.param(answered(box=(10.06, 20, 30, 40)), id="a box"),
        pytest.param(answered(score=0.9003), id="a score"),
        pytest.param(answered(box=(np.nan, 20, 30, 40)), id="NaN in a box"),
        pytest.param(answered(vector=VECTOR + 0.02), id="an embedding"),
        pytest.param(answered(vector=VECTOR * np.nan), id="NaN in an embedding"),
        pytest.param(Detection((), 100, 100), id="a missing face"),
        pytest.param(Detection((), 0, 0, error=SimpleNamespace()), id="an error"),  # type: ignore[arg-type]
    ],
)
def test_parity_fails_where_anything_is_off(off: Detection) -> None:
    assert seen(answered()).within_bounds
    assert not seen(off).within_bounds


def test_parity_of_nothing_is_no_parity() -> None:
    assert not parity.Parity().within_bounds
