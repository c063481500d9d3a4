"""FaceNet behind its network: what may be compared, and what a distance means. Pure.

Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering" (2015).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from facenet_server.errors import InvalidInput, shown


def check_embedding(
    vector: NDArray[np.float32], made_by: str, makers: Sequence[str], dimension: int
) -> NDArray[np.float32]:
    """The vector, if one of ``makers`` made it, and it has ``dimension`` numbers and unit length.

    The first of ``makers`` is the model of the comparison; the others are interchangeable with it.

    Raises InvalidInput: MODEL_MISMATCH, BAD_EMBEDDING.
    """
    model = makers[0]
    if made_by not in makers:
        raise InvalidInput(
            "MODEL_MISMATCH",
            f"the embedding was made by {shown(made_by)}, the comparison is by {model!r}: distances between different "
            "models mean nothing",
        )
    if len(vector) != dimension:
        raise InvalidInput("BAD_EMBEDDING", f"the embedding has {len(vector)} numbers; {model} has {dimension}")
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) <= 1e-3:  # True for NaN
        raise InvalidInput("BAD_EMBEDDING", f"the embedding's L2 norm is {norm:g}, not 1")
    return vector


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """L2 distance of two unit vectors: 0 for the same direction, 2 for opposite ones."""
    return min(2.0, float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64))))
