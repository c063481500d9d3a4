"""From distances to decisions: what the server reads, what an evaluation fits, and that both agree."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from facenet_client.evaluation import calibration as fitting
from facenet_convert import calibrate
from facenet_convert.errors import SourceError
from facenet_server.vision import calibration
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model


def made_up_pairs(n: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances whose true map is logistic, labels drawn from it, five folds."""
    rng = np.random.default_rng(5)
    distances = rng.uniform(0.2, 1.8, n)
    same = rng.uniform(size=n) < 1 / (1 + np.exp(12 * (distances - 1.1)))
    return distances, same, np.arange(n) % 5


def test_the_fitted_logistic_is_the_one_behind_the_pairs() -> None:
    distances, same, folds = made_up_pairs(20_000)
    fitted, quality = fitting.fit_probability(distances, same, folds)
    assert fitted["kind"] == "logistic"
    assert fitted["slope"] == pytest.approx(-12, rel=0.1)
    assert -fitted["intercept"] / fitted["slope"] == pytest.approx(1.1, abs=0.02)
    assert quality["logistic"].expected_calibration_error < 0.01


def test_a_step_is_better_fitted_by_an_isotonic_map() -> None:
    rng = np.random.default_rng(6)
    distances = rng.uniform(0, 2, 5000)
    same = rng.uniform(size=5000) < np.where(distances < 0.5, 0.9, np.where(distances < 1.5, 0.5, 0.1))
    assert fitting.fit_probability(distances, same, np.arange(5000) % 5)[0]["kind"] == "isotonic"


def test_the_threshold_of_best_accuracy_is_the_best() -> None:
    distances, same, _ = made_up_pairs()
    best = fitting.best_threshold(distances, same)
    accuracy = [((distances < threshold) == same).mean() for threshold in [best, *np.arange(0, 2, 0.001)]]
    assert accuracy[0] == max(accuracy)


def test_separable_pairs_have_their_threshold_between_them() -> None:
    threshold = fitting.best_threshold(np.array([0.2, 0.4, 1.0, 1.4]), np.array([True, True, False, False]))
    assert threshold == pytest.approx(0.7)


def test_operating_points_hold_their_rates_and_rest_on_ten_false_accepts() -> None:
    rng = np.random.default_rng(0)
    different, alike = np.sort(rng.uniform(0.5, 2, 20_000)), np.sort(rng.uniform(0, 1, 500))
    distances, same = np.concatenate([different[::100], alike]), np.repeat([False, True], [200, 500])
    points = {point["name"]: point for point in fitting.operating_points(distances, same, different, alike)}
    assert list(points) == ["best_accuracy", "far_1e-2", "far_1e-3"]  # 1e-4 would rest on two
    for name, target in (("far_1e-2", 1e-2), ("far_1e-3", 1e-3)):
        assert (different < points[name]["threshold"]).mean() == points[name]["false_accept_rate"] <= target
        assert points[name]["false_accept_rate"] > 0.8 * target
        assert (alike < points[name]["threshold"]).mean() == points[name]["true_accept_rate"]


def test_all_pairs_are_counted_once() -> None:
    vectors = np.eye(5)
    different, same = fitting.all_distances(vectors, np.array(["a", "a", "b", "b", "c"]))
    assert (len(different), len(same)) == (8, 2)
    np.testing.assert_allclose([*different, *same], np.sqrt(2))


def test_perfect_and_useless_probabilities_are_told_apart() -> None:
    same = np.arange(300) % 2 == 0
    assert fitting.quality_of(same.astype(float), same) == pytest.approx((0, 0, 0), abs=1e-9)
    assert fitting.quality_of(np.full(300, 0.5), same).log_loss == pytest.approx(np.log(2))
    assert fitting.quality_of(np.full(300, 0.9), same).expected_calibration_error == pytest.approx(0.4)


@given(st.sampled_from(["logistic", "isotonic"]), st.lists(st.floats(0, 2), min_size=2, max_size=20))
def test_the_server_reads_what_the_evaluation_fitted(kind: str, at: list[float]) -> None:
    distances, same, _ = made_up_pairs()
    fitted = fitting.FITS[kind](distances, same)
    points = fitting.operating_points(distances, same, np.sort(distances[~same]), np.sort(distances[same]))
    read = calibration.parse(json.dumps({"data": "made up", "operating_points": points, "probability_map": fitted}))
    expected = fitting.probability(fitted, np.array(at))
    np.testing.assert_allclose([read.probability(distance) for distance in at], expected, atol=1e-12)
    ordered = [read.probability(distance) for distance in sorted(at)]
    assert ordered == sorted(ordered, reverse=True)
    assert read.operating_points["best_accuracy"].threshold == points[0]["threshold"]


POINT = {
    "name": "best_accuracy", "threshold": 1.0, "false_accept_rate": 0.01, "different_pairs": 10,
    "true_accept_rate": 0.9, "same_pairs": 10,
}  # fmt: skip
VALID = {
    "model": "tiny",
    "preprocessing": "fixed",
    "data": "made up",
    "operating_points": [POINT],
    "probability_map": {"kind": "logistic", "slope": -10.0, "intercept": 10.0},
}


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param({"operating_points": []}, id="no best accuracy"),
        pytest.param({"operating_points": [{"name": "best_accuracy"}]}, id="a point without threshold"),
        pytest.param({"operating_points": [POINT | {"threshold": 2.5}]}, id="a threshold out of range"),
        pytest.param({"probability_map": {"kind": "logistic"}}, id="no parameters"),
        pytest.param({"probability_map": {"kind": "guess"}}, id="no known map"),
        pytest.param({"probability_map": {"kind": "logistic", "slope": 5, "intercept": 0}}, id="rising"),
    ],
)
def test_a_broken_calibration_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        calibration.parse(json.dumps(VALID | broken))


@pytest.mark.parametrize(
    "broken",
    [
        {"operating_points": [POINT | {"threshold": 2.5}]},
        {"operating_points": [{"name": "best_accuracy"}]},
        {"probability_map": {"kind": "logistic"}},
        {"probability_map": {"kind": "guess"}},
    ],
    ids=str,
)
def test_a_broken_calibration_is_not_written(broken: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(VALID | broken))
    with pytest.raises(SourceError, match="no calibration"):
        calibrate.apply(onnx.load_from_string(tiny_model("embedder")), path)


def test_separable_pairs_calibrate_without_overflow() -> None:
    distances = np.concatenate([np.linspace(0.2, 0.6, 3000), np.linspace(1.0, 1.5, 3000)])
    same, folds = np.repeat([True, False], 3000), np.arange(6000) % 5
    fitted, _ = fitting.fit_probability(distances, same, folds)
    points = fitting.operating_points(distances, same, distances[3000:], distances[:3000])
    read = calibration.parse(json.dumps({"data": "made up", "operating_points": points, "probability_map": fitted}))
    assert read.probability(0.0) > 0.99
    assert read.probability(2.0) < 0.01


def test_no_threshold_lies_between_equal_distances() -> None:
    distances, same = np.array([0.3, 0.5, 0.5, 0.5, 0.9]), np.array([True, True, True, False, False])
    threshold = fitting.best_threshold(distances, same)
    assert ((distances < threshold) == same).mean() == 0.8


def test_a_calibration_is_written_into_its_own_model_only(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(VALID))
    model = onnx.load_from_string(tiny_model("embedder"))
    assert calibrate.apply(model, path) == "tiny"
    written = {prop.key: prop.value for prop in model.metadata_props}["calibration"]
    assert calibration.parse(written).operating_points["best_accuracy"].threshold == 1.0
    with pytest.raises(SourceError, match="fitted on tiny with fixed; the model is other"):
        calibrate.apply(onnx.load_from_string(tiny_model("embedder", name="other")), path)
    with pytest.raises(SourceError, match="the model is tiny with prewhiten"):
        calibrate.apply(onnx.load_from_string(tiny_model("embedder", preprocessing="prewhiten")), path)
    with pytest.raises(SourceError, match="only embedders"):
        calibrate.apply(onnx.load_from_string(tiny_model("rnet")), path)
    path.write_text("{}")
    with pytest.raises(SourceError, match="no calibration"):
        calibrate.apply(model, path)


def test_published_calibrations_are_readable() -> None:
    text = calibrate.published("20180408-102900")
    assert text is not None
    points = calibration.parse(text).operating_points
    assert list(points) == ["best_accuracy", "far_1e-2", "far_1e-3", "far_1e-4", "far_1e-5"]
    assert calibrate.published("nobody's") is None
