"""The LFW verification protocol as davidsandberg/facenet runs it (``lfw.py``, ``facenet.calculate_roc``).

Huang et al., "Labeled Faces in the Wild" (2007), view 2: consecutive folds of as many same as different pairs;
what is chosen on the other folds is judged on one. Pure.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Metric = Literal[0, 1]

ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
VALIDATION_THRESHOLDS = np.arange(0, 4, 0.001)
VALIDATION_FAR = 1e-3


@dataclass(frozen=True, slots=True)
class Verification:
    """The protocol's figures: means over the folds, ± population standard deviations."""

    accuracy: float
    accuracy_std: float
    validation_rate: float
    validation_rate_std: float
    false_accept_rate: float
    auc: float
    equal_error_rate: float
    fold_accuracies: tuple[float, ...]
    fold_thresholds: tuple[float, ...]
    true_positive_rates: Array
    false_positive_rates: Array


def check_folds(same: NDArray[np.bool_], folds: NDArray[np.intp]) -> None:
    """Raises ValueError where the protocol has nothing to choose on, or nothing to judge."""
    kinds = {(int(fold), bool(kind)) for fold, kind in zip(folds, same, strict=True)}
    lacking = [fold for fold in np.unique(folds) if {(int(fold), True), (int(fold), False)} - kinds]
    if len(np.unique(folds)) < 2 or lacking:
        raise ValueError("the protocol needs two folds at least, each with same and with different pairs")


def verify(
    a: Array, b: Array, same: NDArray[np.bool_], folds: NDArray[np.intp], *, subtract_mean: bool, metric: Metric
) -> Verification:
    """Run the protocol on the embeddings of pairs, (n_pairs, dimension) each.

    A row of NaN stands for an image without a detected face: its pairs count as different. ``metric`` 0 is squared
    L2, 1 the angle as a share of π. With ``subtract_mean`` the mean of the other folds is taken from all.
    """
    accuracies, thresholds, validation_rates, false_accept_rates = [], [], [], []
    true_positives, false_positives = [], []
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        mean = np.nanmean(np.concatenate([a[train], b[train]]), axis=0) if subtract_mean else 0.0
        distances = distance(a - mean, b - mean, metric)

        accepted = _accepted(distances, ACCURACY_THRESHOLDS)
        best = int((accepted[train] == same[train, None]).mean(axis=0).argmax())
        accuracies.append(float((accepted[test, best] == same[test]).mean()))
        thresholds.append(float(ACCURACY_THRESHOLDS[best]))
        true_positives.append(accepted[test & same].mean(axis=0))
        false_positives.append(accepted[test & ~same].mean(axis=0))

        limit = threshold_at_far(_accepted(distances[train & ~same], VALIDATION_THRESHOLDS).mean(axis=0))
        validation_rates.append(float((distances[test & same] < limit).mean()))
        false_accept_rates.append(float((distances[test & ~same] < limit).mean()))
    tpr, fpr = np.mean(true_positives, axis=0), np.mean(false_positives, axis=0)
    return Verification(
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        validation_rate=float(np.mean(validation_rates)),
        validation_rate_std=float(np.std(validation_rates)),
        false_accept_rate=float(np.mean(false_accept_rates)),
        auc=float(np.trapezoid(tpr, fpr)),
        equal_error_rate=equal_error_rate(tpr, fpr),
        fold_accuracies=tuple(accuracies),
        fold_thresholds=tuple(thresholds),
        true_positive_rates=tpr,
        false_positive_rates=fpr,
    )


def distance(a: Array, b: Array, metric: Metric) -> Array:
    """The reference's ``facenet.distance`` of each pair, clipped; inf where an embedding is missing."""
    if metric == 0:
        distances = np.square(a - b).sum(axis=1)
    else:
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        distances = np.arccos(np.clip((a * b).sum(axis=1) / norms, -1, 1)) / np.pi
    return np.asarray(np.where(np.isnan(distances), np.inf, distances))


def threshold_at_far(false_accept_rates: Array, target: float = VALIDATION_FAR) -> float:
    """The threshold at which the false-accept rate over VALIDATION_THRESHOLDS reaches ``target``.

    The rate is a step function: the largest threshold at or under the target counts, and goes on linearly to the
    next step. 0 where the rate never reaches the target.
    """
    if false_accept_rates.max() < target:
        return 0.0
    last = int(np.flatnonzero(false_accept_rates <= target).max())
    if last + 1 == len(false_accept_rates):
        return float(VALIDATION_THRESHOLDS[last])
    low, high = false_accept_rates[last], false_accept_rates[last + 1]
    share = (target - low) / (high - low)
    return float(VALIDATION_THRESHOLDS[last] + share * (VALIDATION_THRESHOLDS[last + 1] - VALIDATION_THRESHOLDS[last]))


def equal_error_rate(tpr: Array, fpr: Array) -> float:
    """Where as many different pairs are accepted as same ones are refused, linear between thresholds; NaN where
    that is at none of them."""
    gap = (1 - tpr) - fpr  # falls from 1 to −1
    if not (gap <= 0).any():
        return float("nan")
    after = int(np.argmax(gap <= 0))
    if after == 0:
        return float(fpr[0])
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(fpr[after - 1] + share * (fpr[after] - fpr[after - 1]))


def _accepted(distances: Array, thresholds: Array) -> NDArray[np.bool_]:
    """(n_pairs, n_thresholds)."""
    return distances[:, None] < thresholds
