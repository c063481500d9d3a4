"""Clusters as scikit-learn's DBSCAN gives them, in memory that grows with the faces and not with their pairs."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from facenet_client.cli.grouping import NOISE, dbscan, members, pair_score
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import DBSCAN

TILES = st.sampled_from([1, 2, 3, 7, 64])
MIN_SAMPLES = st.sampled_from([1, 2, 3, 10])
SIDES = st.tuples(st.integers(1, 40), st.integers(1, 3))


def reference(vectors: np.ndarray, eps: float, min_samples: int) -> list[int]:
    """scikit-learn's labels, the largest cluster 0; of equal ones the one that is met first comes first."""
    labels = DBSCAN(eps=eps, min_samples=min_samples, algorithm="brute").fit_predict(vectors).tolist()
    by_size = [label for label, _ in Counter(label for label in labels if label != NOISE).most_common()]
    return [label if label == NOISE else by_size.index(label) for label in labels]


def line(*places: float) -> np.ndarray:
    return np.array(places, np.float32)[:, None]


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, SIDES, elements=st.integers(0, 6)), st.sampled_from([1, 2, 2**0.5, 5**0.5]), MIN_SAMPLES, TILES
)
def test_ties_and_duplicates_on_a_grid_are_clustered_as_by_scikit_learn(
    vectors: np.ndarray, eps: float, min_samples: int, tile: int
) -> None:
    assert dbscan(vectors, eps, min_samples, tile=tile).tolist() == reference(vectors, eps, min_samples)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 120), st.sampled_from([1, 2, 3, 128]), MIN_SAMPLES, TILES)
def test_vectors_of_any_length_are_clustered_as_by_scikit_learn(
    seed: int, n: int, dimension: int, min_samples: int, tile: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = (random.normal(size=(n, dimension)) * 10 ** random.uniform(-2, 3)).astype(np.float32)
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    eps = float(np.quantile(apart, random.uniform(0, 0.2))) * (1 + 1e-6) or 0.1  # a tie to float32, not to float64
    assert dbscan(vectors, eps, min_samples, tile=tile).tolist() == reference(vectors, eps, min_samples)


@pytest.mark.parametrize("min_samples", [1, 2, 3])
def test_faces_of_many_people_are_clustered_as_by_scikit_learn(min_samples: int) -> None:
    random = np.random.default_rng(1)
    people = random.normal(size=(60, 512))
    faces = people[random.integers(0, 60, 1000)] + random.normal(scale=0.4, size=(1000, 512))
    faces = (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)
    labels = dbscan(faces, 0.52, min_samples, tile=128)
    assert labels.tolist() == reference(faces, 0.52, min_samples)
    assert len(set(labels.tolist())) > 10


@pytest.mark.parametrize("offset", [0, 1000])
def test_a_distance_of_exactly_eps_makes_neighbours(offset: int) -> None:
    """With the offset, the float32 of a matrix product rounds away more than all distances."""
    assert dbscan(line(0, 1, 2, 3.5) + offset, 1, 1).tolist() == [0, 0, 0, 1]


def test_a_chain_is_one_cluster_in_whatever_order_its_links_come() -> None:
    places = np.random.default_rng(0).permutation(500).astype(np.float32)[:, None]
    for min_samples in (1, 2, 3):
        assert set(dbscan(places, 1, min_samples, tile=32).tolist()) == {0}


def test_duplicates_are_neighbours_at_any_eps() -> None:
    vectors = np.repeat(np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32), 50, axis=0)
    assert dbscan(vectors, 1e-6, 3, tile=64).tolist() == [0] * 50 + [1] * 50 + [2] * 50


@pytest.mark.parametrize("tile", [1, 4, 64])
def test_a_point_between_two_clusters_goes_to_the_one_whose_core_comes_first(tile: int) -> None:
    left, right, middle = [0, 0.1, 0.2], [2, 2.1, 2.2, 2.3], 1.1
    border = dbscan(line(middle, *left, *right), 0.9, 4, tile=tile)
    assert border.tolist() == reference(line(middle, *left, *right), 0.9, 4)
    first_left = dbscan(line(middle, *left, -0.1, *right), 0.95, 4, tile=tile)
    first_right = dbscan(line(middle, *right, *left, -0.1), 0.95, 4, tile=tile)
    assert first_left[0] == first_left[1] != first_left[-1]
    assert first_right[0] == first_right[1] != first_right[-1]


def test_a_face_with_too_few_neighbours_is_noise() -> None:
    assert dbscan(line(0, 0.1, 0.2, 5, 9, 9.1), 0.5, 3).tolist() == [0, 0, 0, NOISE, NOISE, NOISE]
    assert dbscan(line(0, 5), 0.5, 2).tolist() == [NOISE, NOISE]


def test_clusters_of_one_size_are_numbered_as_they_are_met() -> None:
    assert dbscan(line(9, 0, 5, 0.1, 9.1, 5.1, 5.2), 0.5, 2).tolist() == [1, 2, 0, 2, 1, 0, 0]


def test_no_faces_make_no_clusters() -> None:
    assert dbscan(np.empty((0,), np.float32), 0.5, 1).tolist() == []
    assert dbscan(np.empty((0, 512), np.float32), 0.5, 3).tolist() == []
    assert members([]) == {}
    assert pair_score([], []) == (0, 0, 0)


@pytest.mark.parametrize(("place", "eps"), [(np.nan, 1), (np.inf, 1), (1, 0), (1, -1), (1, np.nan)])
def test_what_has_no_distances_is_refused(place: float, eps: float) -> None:
    with pytest.raises(ValueError, match="eps above 0 and finite vectors"):
        dbscan(line(0, place), eps, 1)


@pytest.mark.parametrize("min_samples", [1, 2, 5])
@pytest.mark.parametrize("spread", [0.01, 1, 1e6])
def test_progress_rises_to_one(min_samples: int, spread: float) -> None:
    told: list[float] = []
    vectors = np.random.default_rng(0).normal(scale=spread, size=(50, 2)).astype(np.float32)
    dbscan(vectors, 0.5, min_samples, tile=8, on_progress=told.append)
    assert told == sorted(told)
    assert 0 < told[0] < 0.1
    assert told[-1] == 1


PEAK = """
import numpy as np
from facenet_client.cli.grouping import dbscan
faces = np.random.default_rng(0).normal(size=(20_000, 128)).astype(np.float32)
faces /= 100 * np.linalg.norm(faces, axis=1, keepdims=True)
faces[:, 0] += 1
assert not dbscan(faces, 0.6, {min_samples}).any()
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a process's own peak on Linux alone")
@pytest.mark.parametrize("min_samples", [1, 3])
def test_twenty_thousand_faces_of_one_person_stay_under_a_gigabyte(min_samples: int) -> None:
    # Not ru_maxrss: a new process inherits its parent's peak there.
    ended = subprocess.run(
        [sys.executable, "-c", PEAK.format(min_samples=min_samples)], capture_output=True, text=True, check=True
    )
    assert int(ended.stdout) < 1_000_000, f"peak of {ended.stdout} KiB"
