"""The distance matrix, as davidsandberg/facenet prints it in ``compare.py``. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def symmetric(distances: Mapping[tuple[int, int], float], count: int) -> NDArray[np.float64]:
    """Distances of pairs a < b as a matrix (count, count)."""
    matrix = np.zeros((count, count))
    for (a, b), distance in distances.items():
        matrix[a, b] = matrix[b, a] = distance
    return matrix


def text(names: Sequence[str], matrix: NDArray[np.float64]) -> str:
    """The images by number, then their distances (N, N) to four decimals."""
    lines = ["Images:", *(f"{number}: {name}" for number, name in enumerate(names)), "", "Distance matrix"]
    lines.append("    " + "".join(f"    {number}     " for number in range(len(names))))
    for number, row in enumerate(matrix):
        lines.append(f"{number}  " + "".join(f"  {distance:.4f}  " for distance in row))
    return "\n".join(lines)
