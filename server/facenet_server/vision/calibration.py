"""From a distance to a decision: thresholds and probabilities fitted for one model, read from its metadata.

``facenet evaluate lfw`` fits them, ``facenet-convert calibrate`` writes them into the model. Pure.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BEST_ACCURACY = "best_accuracy"


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold on the L2 distance, with the rates counted under it and on how many pairs."""

    name: str
    threshold: float
    false_accept_rate: float
    different_pairs: int
    true_accept_rate: float
    same_pairs: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted, on what data. ``probability_map`` holds ``kind`` and its parameters."""

    data: str
    operating_points: Mapping[str, OperatingPoint]
    probability_map: Mapping[str, Any]

    def probability(self, distance: float) -> float:
        """P(same person) in 0…1, falling with the distance; same and different being equally frequent."""
        if self.probability_map["kind"] == "logistic":
            slope, intercept = self.probability_map["slope"], self.probability_map["intercept"]
            return (1 + math.tanh((slope * distance + intercept) / 2)) / 2  # the logistic, without overflow
        knots = self.probability_map["distances"], self.probability_map["probabilities"]
        return float(np.interp(distance, *knots))


def parse(text: str) -> Calibration:
    """A calibration from its JSON. Raises ValueError, KeyError or TypeError where it is none."""
    values = json.loads(text)
    points = [OperatingPoint(**point) for point in values["operating_points"]]
    calibration = Calibration(
        data=values["data"],
        operating_points={point.name: point for point in points},
        probability_map=values["probability_map"],
    )
    if BEST_ACCURACY not in calibration.operating_points:
        raise ValueError(f"no operating point {BEST_ACCURACY}")
    for point in points:
        if not (0 < point.threshold <= 2 and 0 <= point.false_accept_rate <= 1 and 0 <= point.true_accept_rate <= 1):
            raise ValueError(f"operating point {point.name} is out of range")
    if calibration.probability_map["kind"] not in ("logistic", "isotonic"):
        raise ValueError(f"probability map {calibration.probability_map['kind']!r}")
    near, far = calibration.probability(0.0), calibration.probability(2.0)
    if not 1 >= near > far >= 0:
        raise ValueError(f"the probability goes from {near:g} at distance 0 to {far:g} at 2")
    return calibration
