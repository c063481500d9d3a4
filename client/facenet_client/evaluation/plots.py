"""The figures of an evaluation as pictures."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from facenet_client.evaluation.lfw import Verification


def save_roc(result: Verification, path: Path) -> None:
    """True accepts against false accepts, both averaged over the folds."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.false_positive_rates, result.true_positive_rates)
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set(xlabel="false-accept rate", ylabel="true-accept rate", xlim=(0, 1), ylim=(0, 1.01))
    axes.set_title(f"accuracy {result.accuracy:.4f}, AUC {result.auc:.4f}, EER {result.equal_error_rate:.4f}")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)


def save_histogram(distances: NDArray[np.float64], same: NDArray[np.bool_], threshold: float, path: Path) -> None:
    """The L2 distances of same and of different pairs, and the threshold of best accuracy."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(0, 2, 81).tolist()
    axes.hist(distances[same], bins, alpha=0.6, label="same person")
    axes.hist(distances[~same], bins, alpha=0.6, label="different people")
    axes.axvline(threshold, color="black", linestyle="--", label=f"best accuracy: {threshold:.3f}")
    axes.set(xlabel="L2 distance", ylabel="pairs")
    axes.legend()
    figure.savefig(path, dpi=120)
