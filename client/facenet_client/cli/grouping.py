"""Faces to clusters, and how well clusters match known people. Pure."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NOISE = -1
_PAIRS_AT_ONCE = 4096  # 16 MiB of float64 at 512-D

_Block = tuple[slice, slice]


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


def dbscan(
    vectors: NDArray[np.float32],
    eps: float,
    min_samples: int,
    *,
    on_progress: Callable[[float], None] | None = None,
    tile: int = 1024,
) -> NDArray[np.int64]:
    """The cluster of each vector (N, D) → (N,), by L2 distance; NOISE where a face has too few neighbours.

    Ester et al., "A Density-Based Algorithm for Discovering Clusters" (1996), with the labels of scikit-learn's
    DBSCAN. Clusters are numbered by size, the largest 0. Distances are computed in blocks of ``tile`` × ``tile``:
    memory grows with N, not with the pairs. ``on_progress`` gets the share of the work done, 0…1. Raises ValueError
    where ``eps`` is not above 0 or a vector is not finite, ImportError without SciPy.
    """
    if not eps > 0 or not np.isfinite(vectors).all():
        raise ValueError("clustering needs an eps above 0 and finite vectors")
    if not len(vectors):
        return np.empty(0, np.int64)
    report = on_progress or (lambda share: None)
    watched = partial(_watched, report)
    eps_squared = float(np.square(eps, dtype=vectors.dtype))  # scikit-learn squares it in this precision
    counted = 0.5 if min_samples > 1 else 0.0  # the share of the work that counting takes
    is_core = _are_core(vectors, eps_squared, min_samples, watched(_triangle(len(vectors), tile), 0, counted))
    core, rest = vectors[is_core], vectors[~is_core]
    joined = counted + (1 - counted) * len(core) / (len(core) + 2 * len(rest))
    core_labels = _join(core, eps_squared, watched(_triangle(len(core), tile), counted, joined))
    blocks = list(product(_slices(len(rest), tile), _slices(len(core), tile)))
    labels = np.empty(len(vectors), np.int64)
    labels[is_core] = core_labels
    labels[~is_core] = _adopt(rest, core, core_labels, eps_squared, watched(blocks, joined, 1))
    report(1)  # where there is no core point, no block has done so
    return _number_by_size(labels)


def _are_core(
    vectors: NDArray[np.float32], eps_squared: float, min_samples: int, blocks: Iterable[_Block]
) -> NDArray[np.bool_]:
    """Which vectors have ``min_samples`` neighbours, themselves included, (N,)."""
    if min_samples <= 1:
        return np.ones(len(vectors), bool)
    counts = np.zeros(len(vectors), np.int64)
    for rows, columns in blocks:
        if min(counts[rows].min(), counts[columns].min()) >= min_samples:
            continue
        near = _are_neighbours(vectors[rows], vectors[columns], eps_squared)
        counts[rows] += near.sum(axis=1)
        if rows != columns:
            counts[columns] += near.sum(axis=0)
    return counts >= min_samples


def _join(core: NDArray[np.float32], eps_squared: float, blocks: Iterable[_Block]) -> NDArray[np.int64]:
    """The cluster of each core point, (N,): the place of the cluster's first point."""
    from scipy.sparse import coo_array  # comes with an extra of its own
    from scipy.sparse.csgraph import connected_components

    labels = np.arange(len(core))
    for rows, columns in blocks:
        if np.ptp(labels[rows]) == 0 and (labels[columns] == labels[rows][0]).all():
            continue
        i, j = _places(_are_neighbours(core[rows], core[columns], eps_squared))
        a, b = labels[rows][i], labels[columns][j]
        a, b = a[a != b], b[a != b]
        if len(a):
            graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(core), len(core)))
            labels = connected_components(graph, directed=False)[1][labels]
    _, first, cluster = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(first[cluster], np.int64)


def _adopt(
    rest: NDArray[np.float32],
    core: NDArray[np.float32],
    core_labels: NDArray[np.int64],
    eps_squared: float,
    blocks: Iterable[_Block],
) -> NDArray[np.int64]:
    """The first of the clusters that each point of the rest borders on, (N,); NOISE where there is none."""
    none = len(core)
    labels = np.full(len(rest), none)
    for rows, columns in blocks:
        near = _are_neighbours(rest[rows], core[columns], eps_squared)
        labels[rows] = np.minimum(labels[rows], np.where(near, core_labels[columns], none).min(axis=1))
    return np.where(labels == none, NOISE, labels)


def _are_neighbours(a: NDArray[np.float32], b: NDArray[np.float32], eps_squared: float) -> NDArray[np.bool_]:
    """Which vectors of (M, D) and (N, D) are at most eps apart, (M, N). Float64 decides where float32 cannot."""
    a_half, b_half = (np.einsum("ij,ij->i", side, side, dtype=np.float64) / 2 for side in (a, b))
    surplus = a.astype(np.float32, copy=False) @ b.astype(np.float32, copy=False).T  # becomes (eps² − distance²) / 2
    surplus -= (a_half - eps_squared / 2).astype(np.float32)[:, None]
    surplus -= b_half.astype(np.float32)
    # The most that float32 rounds away, in D products and a dozen operations beside them.
    error = (a.shape[1] + 16) * np.finfo(np.float32).eps * max(a_half.max(), b_half.max())
    near: NDArray[np.bool_] = surplus > error
    rows, columns = _places(np.abs(surplus, out=surplus) <= error)
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        i, j = rows[start : start + _PAIRS_AT_ONCE], columns[start : start + _PAIRS_AT_ONCE]
        apart = a[i].astype(np.float64) - b[j]
        near[i, j] = np.einsum("ij,ij->i", apart, apart) <= eps_squared
    return near


def _places(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], ...]:
    """The rows and columns where a mask (M, N) is true. Where few are, ten times as fast as np.nonzero."""
    return np.unravel_index(np.flatnonzero(mask), mask.shape)


def _triangle(count: int, tile: int) -> list[_Block]:
    """The blocks on and above the diagonal of a matrix (count, count)."""
    return list(combinations_with_replacement(_slices(count, tile), 2))


def _slices(count: int, tile: int) -> list[slice]:
    return [slice(start, start + tile) for start in range(0, count, tile)]


def _watched(
    on_progress: Callable[[float], None], blocks: Sequence[_Block], start: float, end: float
) -> Iterator[_Block]:
    """The blocks. After each, ``on_progress`` gets the share of the work, from ``start`` to ``end``."""
    for done, block in enumerate(blocks, 1):
        yield block
        on_progress(start + (end - start) * done / len(blocks))


def _number_by_size(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Clusters numbered anew, the largest 0; of equal ones the one that is met first comes first."""
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
