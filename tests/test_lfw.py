"""The protocol on embeddings whose figures are known."""

import numpy as np
import pytest
from facenet_client.evaluation import lfw


def embeddings(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of unit vectors, the first half near each other, the others not; ten folds of both kinds."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, 64))
    same = np.arange(n) % 2 == 0
    b = np.where(same[:, None], a + 0.3 * rng.normal(size=a.shape), rng.normal(size=a.shape))
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return a, b, same, np.arange(n) * 10 // n


@pytest.mark.parametrize("metric", [0, 1])
@pytest.mark.parametrize("subtract_mean", [False, True])
def test_separable_pairs_are_told_apart_without_error(metric: lfw.Metric, subtract_mean: bool) -> None:
    result = lfw.verify(*embeddings(), subtract_mean=subtract_mean, metric=metric)
    assert result.accuracy == 1
    assert result.validation_rate == 1
    assert result.auc == pytest.approx(1)
    assert result.equal_error_rate == pytest.approx(0, abs=1e-6)


def test_labels_without_meaning_are_guessed() -> None:
    a, b, _, folds = embeddings(2000)
    same = np.random.default_rng(1).uniform(size=2000) < 0.5
    result = lfw.verify(a, b, same, folds, subtract_mean=False, metric=0)
    assert result.accuracy == pytest.approx(0.5, abs=0.05)
    assert result.auc == pytest.approx(0.5, abs=0.05)
    assert result.equal_error_rate == pytest.approx(0.5, abs=0.05)


def test_each_fold_is_judged_by_the_others_threshold() -> None:
    a, b, same, folds = embeddings()
    same = np.where(folds == 3, ~same, same)  # one fold mislabelled: it fails, and only it
    result = lfw.verify(a, b, same, folds, subtract_mean=False, metric=0)
    assert [round(accuracy) for accuracy in result.fold_accuracies] == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]


def test_an_undetected_face_makes_its_pair_different_and_spoils_no_mean() -> None:
    a, b, same, folds = embeddings()
    a[0] = np.nan  # a pair of one person, in fold 0
    result = lfw.verify(a, b, same, folds, subtract_mean=True, metric=1)
    assert result.fold_accuracies[0] == pytest.approx(1 - 1 / 60)
    assert result.fold_accuracies[1:] == (1.0,) * 9


def test_the_mean_is_that_of_the_other_folds() -> None:
    a, b, same, folds = embeddings()
    moved = lfw.verify(a + 5, b + 5, same, folds, subtract_mean=True, metric=1)
    assert moved.accuracy == 1
    assert lfw.verify(a + 5, b + 5, same, folds, subtract_mean=False, metric=1).accuracy < 1


def test_identical_embeddings_are_at_angle_zero() -> None:
    vector = np.full((1, 3), 1 / np.sqrt(3))
    assert lfw.distance(vector, vector * 1.0000001, 1)[0] == pytest.approx(0, abs=1e-7)


def test_the_threshold_at_a_rate_lies_on_the_line_to_the_next_step() -> None:
    rates = np.zeros(len(lfw.VALIDATION_THRESHOLDS))
    rates[1000:] = 0.004  # 0 up to threshold 0.999, 0.004 from 1.0 on
    assert lfw.threshold_at_far(rates, 0.001) == pytest.approx(0.999 + 0.25 * 0.001)
    assert lfw.threshold_at_far(rates, 0.005) == 0


def test_folds_that_cannot_be_judged_are_refused() -> None:
    same = np.array([True, False, True, True])
    with pytest.raises(ValueError, match="two folds"):
        lfw.check_folds(same[:2], np.array([0, 0]))
    with pytest.raises(ValueError, match="same and with different"):
        lfw.check_folds(same, np.array([0, 0, 1, 1]))
    lfw.check_folds(np.tile([True, False], 2), np.array([0, 0, 1, 1]))


def test_an_equal_error_rate_that_is_nowhere_is_not_a_number() -> None:
    rates = np.linspace(0, 0.4, 50)
    assert np.isnan(lfw.equal_error_rate(rates, rates))
