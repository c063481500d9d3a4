"""What a model's distances mean: thresholds with their rates, and a map from distance to probability.

Everything is on plain L2 distances, the ones that Compare returns. Pure.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from facenet_client.distances import cosine_to_l2

Array = NDArray[np.float64]
Labels = NDArray[np.bool_]

FAR_TARGETS = (1e-2, 1e-3, 1e-4, 1e-5)
MIN_FALSE_ACCEPTS = 10  # a rate that rests on fewer says nothing
N_BINS = 15
_FLOOR = 1e-3  # isotonic probabilities stay this far from 0 and 1: no finite sample shows certainty


class Quality(NamedTuple):
    """How good probabilities are: each is better the smaller."""

    log_loss: float
    brier: float
    expected_calibration_error: float


def all_distances(vectors: Array, identities: NDArray[np.str_]) -> tuple[Array, Array]:
    """The L2 distances of all pairs of different people, then of all pairs of one person, each sorted.

    ``vectors`` is (n, dimension) of unit length, ``identities`` (n,).
    """
    different, same = [], []
    for row in range(len(vectors) - 1):
        distances = cosine_to_l2(vectors[row + 1 :] @ vectors[row])
        alike = identities[row + 1 :] == identities[row]
        different.append(distances[~alike])
        same.append(distances[alike])
    return np.sort(np.concatenate(different)), np.sort(np.concatenate(same))


def operating_points(distances: Array, same: Labels, all_different: Array, all_same: Array) -> list[dict[str, Any]]:
    """Best accuracy on the labelled pairs, and a threshold for each FAR_TARGETS on all pairs of different people;
    a target with fewer than MIN_FALSE_ACCEPTS expected false accepts is left out."""
    thresholds = {"best_accuracy": best_threshold(distances, same)}
    for target in FAR_TARGETS:
        if target * len(all_different) >= MIN_FALSE_ACCEPTS:
            name = f"far_{target:.0e}".replace("e-0", "e-")
            thresholds[name] = float(all_different[int(target * len(all_different))])  # accepts all before it
    return [
        {
            "name": name,
            "threshold": threshold,
            "false_accept_rate": float(np.searchsorted(all_different, threshold) / len(all_different)),
            "different_pairs": len(all_different),
            "true_accept_rate": float(np.searchsorted(all_same, threshold) / len(all_same)),
            "same_pairs": len(all_same),
        }
        for name, threshold in ((name, np.floor(exact * 1e6) / 1e6) for name, exact in thresholds.items())
    ]


def best_threshold(distances: Array, same: Labels) -> float:
    """The threshold of best accuracy: of equally good gaps between distances, the middle one's middle."""
    order = np.argsort(distances)
    edges = np.concatenate([[0.0], distances[order], [2.0]])
    hits = np.concatenate([[0], np.cumsum(same[order])]) + np.concatenate([np.cumsum(~same[order][::-1])[::-1], [0]])
    hits = np.where(edges[1:] > edges[:-1], hits, -1)  # no threshold lies between equal distances
    best = np.flatnonzero(hits == hits.max())
    gap = best[len(best) // 2]
    return float((edges[gap] + edges[gap + 1]) / 2)


def fit_probability(
    distances: Array, same: Labels, folds: NDArray[np.intp]
) -> tuple[dict[str, Any], dict[str, Quality]]:
    """The map from distance to probability that is better in cross-validation by fold, fitted on all pairs; and
    the quality of both forms there."""
    quality = {kind: _cross_validated(fit, distances, same, folds) for kind, fit in FITS.items()}
    best = min(quality, key=lambda kind: quality[kind].log_loss)
    return FITS[best](distances, same), quality


def fit_logistic(distances: Array, same: Labels) -> dict[str, Any]:
    """P = 1 / (1 + exp(−(slope·distance + intercept)))."""
    model = LogisticRegression(C=1e6, max_iter=10_000).fit(distances[:, None], same)
    return {"kind": "logistic", "slope": float(model.coef_[0, 0]), "intercept": float(model.intercept_[0])}


def fit_isotonic(distances: Array, same: Labels) -> dict[str, Any]:
    """Falling steps, linear between their ends."""
    model = IsotonicRegression(increasing=False, y_min=_FLOOR, y_max=1 - _FLOOR, out_of_bounds="clip")
    model.fit(distances, same)
    knots = {"distances": model.X_thresholds_.tolist(), "probabilities": model.y_thresholds_.tolist()}
    return {"kind": "isotonic", **knots}


FITS: dict[str, Callable[[Array, Labels], dict[str, Any]]] = {"logistic": fit_logistic, "isotonic": fit_isotonic}


def probability(probability_map: dict[str, Any], distances: Array) -> Array:
    """What a fitted map says of distances."""
    if probability_map["kind"] == "logistic":
        log_odds = probability_map["slope"] * distances + probability_map["intercept"]
        return np.asarray((1 + np.tanh(log_odds / 2)) / 2)  # the logistic, without overflow
    return np.asarray(np.interp(distances, probability_map["distances"], probability_map["probabilities"]))


def quality_of(probabilities: Array, same: Labels) -> Quality:
    """Log-loss, Brier score, and expected calibration error over N_BINS bins of equal mass."""
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    log_loss = -np.where(same, np.log(clipped), np.log(1 - clipped)).mean()
    brier = np.square(probabilities - same).mean()
    bins = np.array_split(np.argsort(probabilities, kind="stable"), N_BINS)
    gaps = [len(rows) * abs(probabilities[rows].mean() - same[rows].mean()) for rows in bins if len(rows)]
    return Quality(float(log_loss), float(brier), float(sum(gaps) / len(probabilities)))


def _cross_validated(
    fit: Callable[[Array, Labels], dict[str, Any]], distances: Array, same: Labels, folds: NDArray[np.intp]
) -> Quality:
    probabilities = np.empty(len(distances))
    for fold in np.unique(folds):
        test = folds == fold
        probabilities[test] = probability(fit(distances[~test], same[~test]), distances[test])
    return quality_of(probabilities, same)
