"""Whether embeddings of a model in lower precision mean the same as those of its fp32 form.

They do where the operating points that were calibrated on the fp32 form decide as well, both when the two are compared
with each other and when the new ones are compared among themselves.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_convert.gate import holds_accuracy
from facenet_convert.pairs import Pairs, Vectors

MAX_FALSE_ACCEPT_RISE = 0.1  # of the fp32 form's rate, at each operating point
MAX_TRUE_ACCEPT_LOSS = 0.01
MIN_FALSE_ACCEPTS = 10  # a rate that rests on fewer says nothing

_ROWS = 512


class Decisions(NamedTuple):
    """What thresholds decide: accuracy on the pairs at that of ``best_accuracy``; for each operating point (n_points,)
    the rates over all pairs of different people, and over all pairs of one person's images."""

    accuracy: float
    false_accepts: NDArray[np.float64]
    false_accept_rates: NDArray[np.float64]
    true_accept_rates: NDArray[np.float64]


def differences(pairs: Pairs, fp32: Vectors, other: Vectors, calibration: dict[str, Any]) -> list[str]:
    """What keeps the two from being interchangeable, by the fp32 form's calibration; nothing if they are."""
    thresholds = {point["name"]: float(point["threshold"]) for point in calibration["operating_points"]}
    known = decide(pairs, fp32, fp32, thresholds)
    mixed, alone = (decide(pairs, side, other, thresholds) for side in (fp32, other))
    return [
        f"{name}, {text}"
        for name, seen in (("compared with fp32", mixed), ("among themselves", alone))
        for text in _losses(seen, known, list(thresholds))
    ]


def decide(pairs: Pairs, of_a: Vectors, of_b: Vectors, thresholds: dict[str, float]) -> Decisions:
    """The decisions on one side's embeddings against the other's, in both orders."""
    limit = thresholds["best_accuracy"]
    hits = [(pairs.distances(*sides) < limit) == pairs.same for sides in ((of_a, of_b), (of_b, of_a))]
    limits = np.square(list(thresholds.values()))
    accepted, total = np.zeros((2, len(limits))), np.zeros((2, 1))  # of different people, of one person
    for start in range(0, len(of_a), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(of_a)))
        squares = 2 - 2 * of_a[rows] @ of_b.T
        alike = pairs.people[rows, None] == pairs.people
        another = rows[:, None] != np.arange(len(of_b))
        for kind, chosen in enumerate((~alike, alike & another)):
            total[kind] += chosen.sum()
            accepted[kind] += [(squares[chosen] < limit).sum() for limit in limits]
    false_rates, true_rates = accepted / np.maximum(total, 1)
    return Decisions(float(np.mean(hits)), accepted[0] / 2, false_rates, true_rates)  # each pair was counted twice


def _losses(seen: Decisions, known: Decisions, names: list[str]) -> list[str]:
    told = []
    if not holds_accuracy(known.accuracy, seen.accuracy):
        told.append(f"accuracy at best_accuracy is {seen.accuracy:.5f}, not {known.accuracy:.5f}")
    rise = seen.false_accept_rates > known.false_accept_rates * (1 + MAX_FALSE_ACCEPT_RISE)
    for index in np.flatnonzero(rise & (known.false_accepts >= MIN_FALSE_ACCEPTS)):
        rates = f"{seen.false_accept_rates[index]:.2e}, not {known.false_accept_rates[index]:.2e}"
        told.append(f"the false-accept rate at {names[index]} is {rates}")
    for index in np.flatnonzero(seen.true_accept_rates < known.true_accept_rates - MAX_TRUE_ACCEPT_LOSS):
        rates = f"{seen.true_accept_rates[index]:.4f}, not {known.true_accept_rates[index]:.4f}"
        told.append(f"the true-accept rate at {names[index]} is {rates}")
    return told
