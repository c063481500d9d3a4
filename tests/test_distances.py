import numpy as np
import pytest
from facenet_client import distances
from hypothesis import given
from hypothesis import strategies as st


def unit(seed: int, n: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, 512)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_measures_are_those_of_the_vectors(seed_a: int, seed_b: int) -> None:
    a, b = unit(seed_a)[0].astype(float), unit(seed_b)[0].astype(float)
    distance = distances.l2(a, b)
    assert distances.l2_to_squared(distance) == pytest.approx(np.square(a - b).sum(), abs=1e-6)
    assert distances.l2_to_cosine(distance) == pytest.approx(a @ b, abs=1e-6)
    angle = np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)) / np.pi
    assert distances.l2_to_angle(distance) == pytest.approx(angle, abs=1e-3 if distance < 0.01 else 1e-6)


@given(st.integers(0, 2**32))
def test_identical_vectors_are_at_distance_zero_and_never_nan(seed: int) -> None:
    vector = unit(seed)[0] * np.float32(1.0000001)
    distance = distances.l2(vector, vector)
    assert distance == 0
    assert distances.l2_to_angle(distance) == 0
    assert distances.l2_to_cosine(distance) == 1


@given(st.floats(0, 2))
def test_every_measure_can_be_turned_back(distance: float) -> None:
    assert distances.squared_to_l2(distances.l2_to_squared(distance)) == pytest.approx(distance, abs=1e-9)
    assert distances.cosine_to_l2(distances.l2_to_cosine(distance)) == pytest.approx(distance, abs=1e-7)
    assert distances.angle_to_l2(distances.l2_to_angle(distance)) == pytest.approx(distance, abs=1e-7)


def test_values_outside_their_range_are_clipped() -> None:
    assert distances.cosine_to_l2(1.0000002) == 0
    assert distances.l2_to_angle(2.0000002) == 1


def test_arrays_are_measured_pair_by_pair() -> None:
    assert distances.l2(unit(0, 7), unit(1, 7)).shape == (7,)
