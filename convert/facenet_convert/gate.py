"""What a model in lower precision must keep of its fp32 form before it is written.

It must keep the direction of its embeddings, on crops that set none of its ranges. Where pairs are given, it must keep
LFW's accuracy, too.
"""

from typing import NamedTuple

import numpy as np

from facenet_convert.errors import PrecisionError
from facenet_convert.pairs import Vectors

MIN_COSINES = {"int8": (0.998, 0.97), "fp16": (0.999, 0.999)}
"""The smallest mean and the smallest single cosine to fp32, by precision."""

MAX_ACCURACY_LOSS = 0.001

_ADVICE = "Nothing was written. Calibrate on more crops, and on such as the model will see: --crops"
_ROUNDING = 1e-9


class Fidelity(NamedTuple):
    """How near embeddings of held-out crops are to those of the fp32 form."""

    cosine_mean: float
    cosine_worst: float
    max_abs_diff: float
    n_crops: int


def fidelity(fp32: Vectors, other: Vectors) -> Fidelity:
    """Of the embeddings (N, D) of the same crops."""
    cosines = (fp32 * other).sum(axis=1)
    difference = np.abs(fp32 - other).max()
    return Fidelity(float(cosines.mean()), float(cosines.min()), float(difference), len(cosines))


def check_fidelity(seen: Fidelity, precision: str) -> None:
    """Raises PrecisionError."""
    mean, worst = MIN_COSINES[precision]
    if not (seen.cosine_mean >= mean and seen.cosine_worst >= worst):  # False for NaN
        raise PrecisionError(
            f"the {precision} form's cosine to fp32 on {seen.n_crops} held-out crops is {seen.cosine_mean:.5f} in the "
            f"mean, {seen.cosine_worst:.5f} at worst; at least {mean} and {worst} are asked for. {_ADVICE}"
        )


def check_accuracy(fp32: float, other: float, n_pairs: int) -> None:
    """Raises PrecisionError."""
    if not holds_accuracy(fp32, other):
        raise PrecisionError(
            f"accuracy on {n_pairs:,} pairs falls from {fp32:.5f} to {other:.5f}, by more than {MAX_ACCURACY_LOSS}. "
            f"{_ADVICE}"
        )


def holds_accuracy(fp32: float, other: float) -> bool:
    """Whether no more is lost than MAX_ACCURACY_LOSS."""
    return other >= fp32 - MAX_ACCURACY_LOSS - _ROUNDING
