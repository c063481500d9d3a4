"""Faces to clusters, and how well clusters match known people. Pure."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOISE = -1


class PairScore(NamedTuple):
    """Pairs of faces: ``together`` in a cluster, ``same`` person's, and ``both``."""

    together: int
    same: int
    both: int

    @property
    def precision(self) -> float:
        """The share of pairs put together that are the same person's; NaN where none was put together."""
        return self.both / self.together if self.together else float("nan")

    @property
    def recall(self) -> float:
        """The share of the same person's pairs that were put together; NaN where there are none."""
        return self.both / self.same if self.same else float("nan")


def dbscan(vectors: NDArray[np.float32], eps: float, min_samples: int) -> NDArray[np.int64]:
    """The cluster of each vector (N, D) → (N,), by L2 distance; NOISE where a face has too few neighbours.

    Ester et al., "A Density-Based Algorithm for Discovering Clusters" (1996). Clusters are numbered by size,
    the largest 0. Raises ImportError without scikit-learn.
    """
    if not len(vectors):
        return np.empty(0, np.int64)
    from sklearn.cluster import DBSCAN  # takes seconds to import, and comes with an extra of its own

    labels = DBSCAN(eps=eps, min_samples=min_samples, metric="euclidean", algorithm="brute").fit_predict(vectors)
    by_size = [label for label, _ in Counter(labels[labels != NOISE].tolist()).most_common()]
    rank = {NOISE: NOISE} | {label: place for place, label in enumerate(by_size)}
    return np.array([rank[label] for label in labels.tolist()], np.int64)


def members(labels: Iterable[int]) -> dict[int, list[int]]:
    """The places of each cluster's faces, clusters in order, noise last."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[int(label)].append(place)
    return {label: places[label] for label in sorted(places, key=lambda label: (label == NOISE, label))}


def pair_score(labels: Sequence[int] | NDArray[np.int64], people: Sequence[str]) -> PairScore:
    """Clusters against people, over all pairs of faces; each face that is noise is a cluster of its own."""
    clustered = [(int(label), person) for label, person in zip(labels, people, strict=True) if label != NOISE]
    return PairScore(
        together=_pairs(label for label, _ in clustered),
        same=_pairs(people),
        both=_pairs(clustered),
    )


def _pairs(groups: Iterable[Hashable]) -> int:
    return sum(count * (count - 1) // 2 for count in Counter(groups).values())
