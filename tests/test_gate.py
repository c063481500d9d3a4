"""What a model in lower precision must keep: the bounds, and the protocols behind them."""

import json
from pathlib import Path

import numpy as np
import pytest
from facenet_client.evaluation import lfw
from facenet_convert import crops, gate, interchange, pairs
from facenet_convert.errors import PrecisionError, SourceError
from PIL import Image
from tiny_facenet import calibration, write_pairs, write_people

Vectors = np.ndarray

pytestmark = pytest.mark.timeout(60)


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def turned(cosine: float, n: int = 100, worst: float | None = None) -> tuple[Vectors, Vectors]:
    """Vectors, and others at this cosine to them; the last at another."""
    cosines = np.full(n, cosine)
    cosines[-1] = cosine if worst is None else worst
    angles = np.arccos(cosines)
    return np.tile([1.0, 0.0], (n, 1)), np.stack([np.cos(angles), np.sin(angles)], axis=1)


# ---- cosine and accuracy ----


@pytest.mark.parametrize(
    ("precision", "mean", "worst"),
    [("int8", 0.9985, 0.971), ("fp16", 0.9995, 0.9991)],
)
def test_embeddings_within_the_bounds_pass(precision: str, mean: float, worst: float) -> None:
    gate.check_fidelity(gate.fidelity(*turned(mean, worst=worst)), precision)


@pytest.mark.parametrize(
    ("precision", "mean", "worst"),
    [
        pytest.param("int8", 0.9979, 0.9979, id="int8: the mean"),
        pytest.param("int8", 0.9999, 0.969, id="int8: one crop"),
        pytest.param("fp16", 0.9999, 0.9989, id="fp16: one crop"),
        pytest.param("int8", float("nan"), 1.0, id="no number"),
    ],
)
def test_embeddings_outside_the_bounds_are_refused(precision: str, mean: float, worst: float) -> None:
    with pytest.raises(PrecisionError, match="Nothing was written"):
        gate.check_fidelity(gate.fidelity(*turned(mean, worst=worst)), precision)


def test_a_tenth_of_a_point_of_accuracy_may_be_lost_and_no_more() -> None:
    gate.check_accuracy(2953 / 3000, 2950 / 3000, 3000)
    with pytest.raises(PrecisionError, match="3,000 pairs"):
        gate.check_accuracy(2953 / 3000, 2949 / 3000, 3000)


# ---- pairs ----


@pytest.fixture
def official(tmp_path: Path) -> pairs.Pairs:
    return pairs.read(write_pairs(tmp_path / "pairs.txt"), write_people(tmp_path / "crops"))


def made_up_vectors(official: pairs.Pairs, spread: float = 0.8) -> Vectors:
    """Each person's images around a direction of its own, some of them far from it."""
    rng = np.random.default_rng(1)
    centres = {name: rng.normal(size=8) for name in np.unique(official.people)}
    return unit(np.array([centres[name] for name in official.people]) + rng.normal(0, spread, (len(official.files), 8)))


def test_pairs_name_crops_and_people(official: pairs.Pairs) -> None:
    assert (len(official.same), int(official.same.sum()), official.n_missing) == (48, 24, 0)
    assert np.unique(official.folds).tolist() == [0, 1, 2]
    first = [official.files[index[0]].name for index in (official.a, official.b)]
    assert first == ["P0_0001.png", "P0_0002.png"]


def test_accuracy_is_that_of_the_whole_protocol(official: pairs.Pairs) -> None:
    vectors = made_up_vectors(official)
    whole = lfw.verify(
        vectors[official.a], vectors[official.b], official.same, official.folds, subtract_mean=False, metric=0
    )
    assert 0.6 < whole.accuracy < 1
    assert pairs.accuracy(official, vectors) == pytest.approx(whole.accuracy, abs=1e-12)


def test_a_pair_without_its_crop_is_left_out_and_shifts_no_fold(tmp_path: Path) -> None:
    folder, path = write_people(tmp_path / "crops"), write_pairs(tmp_path / "pairs.txt")
    (folder / "P0" / "P0_0001.png").unlink()
    found = pairs.read(path, folder)
    assert found.n_missing == 4
    assert np.bincount(found.folds).tolist() == [12, 16, 16]


def test_pairs_of_other_crops_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="0 of the 48 pairs"):
        pairs.read(write_pairs(tmp_path / "pairs.txt"), tmp_path / "empty")


@pytest.mark.parametrize("text", ["", "ten 300", "10 300\na b", "10 300\na one two"])
def test_what_is_no_pairs_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(SourceError, match=r"no pairs\.txt"):
        pairs.read(tmp_path / "pairs.txt", tmp_path)


# ---- interchangeability ----


def differences(official: pairs.Pairs, fp32: Vectors, other: Vectors) -> str:
    return "; ".join(interchange.differences(official, fp32, other, json.loads(calibration(threshold=1.0))))


def test_the_same_embeddings_are_interchangeable(official: pairs.Pairs) -> None:
    vectors = made_up_vectors(official)
    assert differences(official, vectors, vectors) == ""


def test_turned_embeddings_agree_among_themselves_but_not_with_the_others(official: pairs.Pairs) -> None:
    vectors = made_up_vectors(official)
    told = differences(official, vectors, np.roll(vectors, 1, axis=1))
    assert "compared with fp32, accuracy" in told
    assert "among themselves" not in told


def test_embeddings_that_are_nearer_to_each_other_accept_too_many(official: pairs.Pairs) -> None:
    vectors = made_up_vectors(official)
    told = differences(official, vectors, unit(vectors + 0.2))
    assert "among themselves, the false-accept rate at best_accuracy" in told


def test_embeddings_that_are_farther_from_each_other_accept_too_few(official: pairs.Pairs) -> None:
    vectors = made_up_vectors(official)
    told = differences(official, vectors, unit(vectors + np.random.default_rng(2).normal(0, 0.2, vectors.shape)))
    assert "among themselves, the true-accept rate at best_accuracy" in told


def test_rates_count_every_pair_of_images_once_in_each_order(official: pairs.Pairs) -> None:
    vectors = made_up_vectors(official)
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    alike, upper = official.people[:, None] == official.people, np.triu(np.ones(distances.shape, bool), 1)
    seen = interchange.decide(official, vectors, vectors, {"best_accuracy": 1.0, "strict": 0.6})
    for index, threshold in enumerate((1.0, 0.6)):
        assert seen.false_accepts[index] == (distances[upper & ~alike] < threshold).sum()
        assert seen.true_accept_rates[index] == pytest.approx((distances[upper & alike] < threshold).mean())


# ---- crops ----


def test_nobody_is_calibrated_on_and_judged_by(tmp_path: Path) -> None:
    material = crops.of_folder(write_people(tmp_path))
    people = [{crop[:40, :40].mean(axis=(0, 1)).round(-1).tobytes() for crop in part} for part in material[:2]]
    assert (len(material.calibration), len(material.held_out)) == (24, 24)
    assert not people[0] & people[1]
    assert material.origin == "24 of 48 given crops"


def test_crops_in_one_folder_count_as_people(tmp_path: Path) -> None:
    for file in write_people(tmp_path / "people").rglob("*.png"):
        file.rename(tmp_path / file.name)
    material = crops.of_folder(tmp_path)
    calibration, held_out = ({crop.tobytes() for crop in part} for part in material[:2])
    assert (len(calibration), len(held_out)) == (24, 24)
    assert not calibration & held_out


def test_crops_of_one_person_are_refused(tmp_path: Path) -> None:
    write_people(tmp_path, n_people=1, n_crops=40)
    (tmp_path / "P0" / "P0_0001.png").rename(tmp_path / "other.png")
    with pytest.raises(SourceError, match="more people"):
        crops.of_folder(tmp_path)


def test_portraits_are_varied_always_alike_and_never_twice() -> None:
    first, second = crops.of_portraits(), crops.of_portraits()
    everything = [crop.tobytes() for part in first[:2] for crop in part]
    assert len(set(everything)) == len(everything) == 256
    np.testing.assert_array_equal(first.held_out, second.held_out)


def test_too_few_crops_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="0 crops, at least 32"):
        crops.of_folder(tmp_path)


def test_what_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_people(tmp_path)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(SourceError, match="cannot read the crop"):
        crops.of_folder(folder)


def test_a_crop_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (182, 180)).save(tmp_path / "photo.png")
    with pytest.raises(SourceError, match=r"photo\.png is 182×180 pixels"):
        crops.load([tmp_path / "photo.png"])
