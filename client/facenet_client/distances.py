"""The distance between two embeddings, and how it relates to the other measures in use.

In this project, "distance" always means L2 between unit vectors. For unit vectors a and b with L2 distance d:

    squared L2            d²
    cosine similarity     a·b = 1 − d²/2
    reference's metric 1  arccos(a·b)/π  (davidsandberg/facenet, ``facenet.distance``)

All these measures give pairs the same order. All functions here take and return scalars or arrays, and clip results to
their range: identical vectors give 0, never NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


def l2(a: ArrayLike, b: ArrayLike) -> Values:
    """L2 distance along the last axis of (…, dimension) unit vectors: 0…2."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.asarray(np.clip(np.linalg.norm(difference, axis=-1), 0, 2))


def l2_to_squared(distance: ArrayLike) -> Values:
    """Squared L2, the reference's metric 0: 0…4."""
    return np.asarray(np.square(np.asarray(distance, np.float64)))


def squared_to_l2(squared: ArrayLike) -> Values:
    """Back from squared L2."""
    return np.asarray(np.sqrt(np.clip(np.asarray(squared, np.float64), 0, 4)))


def l2_to_cosine(distance: ArrayLike) -> Values:
    """Cosine similarity: 1 for the same direction, −1 for opposite ones."""
    return np.asarray(np.clip(1 - np.square(np.asarray(distance, np.float64)) / 2, -1, 1))


def cosine_to_l2(cosine: ArrayLike) -> Values:
    """Back from cosine similarity."""
    return np.asarray(np.sqrt(2 - 2 * np.clip(np.asarray(cosine, np.float64), -1, 1)))


def l2_to_angle(distance: ArrayLike) -> Values:
    """The angle between the vectors as a share of π, the reference's metric 1: 0…1."""
    return np.asarray(np.arccos(l2_to_cosine(distance)) / np.pi)


def angle_to_l2(angle: ArrayLike) -> Values:
    """Back from the angle as a share of π."""
    return cosine_to_l2(np.cos(np.clip(np.asarray(angle, np.float64), 0, 1) * np.pi))
