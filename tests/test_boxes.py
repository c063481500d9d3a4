from typing import Literal

import numpy as np
from facenet_server.vision import boxes
from hypothesis import given
from hypothesis import strategies as st

SCORES = np.array([0.6, 0.7, 0.8, np.nan], np.float32)

corners = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2)
some_boxes = st.lists(corners, min_size=1, max_size=30).map(
    lambda rows: np.array([[x, y, x + w, y + h] for x, y, w, h in rows], float)
)


def union_overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return float(shared / (sum(areas) - shared))


@given(some_boxes)
def test_suppression_keeps_a_best_set_without_overlaps(found: np.ndarray) -> None:
    scores = np.linspace(0.5, 1, len(found), dtype=np.float32)
    kept = boxes.suppress(found, scores, 0.5)

    assert list(scores[kept]) == sorted(scores[kept], reverse=True)
    for i, one in enumerate(kept):
        assert all(union_overlap(found[one], found[other]) <= 0.5 for other in kept[i + 1 :])
    for index in set(range(len(found))) - set(kept.tolist()):
        assert any(union_overlap(found[index], found[k]) > 0.5 and scores[k] > scores[index] for k in kept)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 20, 21, 150]), st.sampled_from(["union", "min"]))
def test_suppression_is_the_greedy_one_in_every_order_of_memory(
    seed: int, count: int, measure: Literal["union", "min"]
) -> None:
    rng = np.random.default_rng(seed)
    corner, size = rng.integers(0, 60, (count, 2)), rng.integers(-2, 40, (count, 2))  # some are inside out
    found, scores = np.hstack([corner, corner + size]).astype(float), rng.choice(SCORES, count)
    areas = (size + 1).prod(axis=1)
    kept: list[int] = []
    for index in np.argsort(scores, kind="stable")[::-1]:
        low, high = np.maximum(found[index, :2], found[kept, :2]), np.minimum(found[index, 2:], found[kept, 2:])
        shared = np.maximum(high - low + 1, 0).prod(axis=1)
        whole = np.minimum(areas[index], areas[kept]) if measure == "min" else areas[index] + areas[kept] - shared
        with np.errstate(divide="ignore", invalid="ignore"):
            if np.all(shared / whole <= 0.5):
                kept.append(index)
    with np.errstate(divide="ignore", invalid="ignore"):
        assert boxes.suppress(found, scores, 0.5, measure).tolist() == kept
        by_column, every_other = np.asfortranarray(found), np.repeat(scores, 2)[::2]
        assert boxes.suppress(by_column, every_other, 0.5, measure).tolist() == kept


def test_an_overlap_of_exactly_the_limit_is_kept() -> None:
    found = np.array([[0, 0, 9, 9], [0, 0, 9, 4]], float)  # areas 100 and 50, all of the second shared: 0.5
    assert list(boxes.suppress(found, np.array([0.9, 0.8], np.float32), 0.5)) == [0, 1]


def test_overlap_of_the_smaller_box_drops_a_nested_one() -> None:
    nested = np.array([[0, 0, 99, 99], [10, 10, 19, 19]], float)
    scores = np.array([0.9, 0.8], np.float32)
    assert list(boxes.suppress(nested, scores, 0.7, "union")) == [0, 1]
    assert list(boxes.suppress(nested, scores, 0.7, "min")) == [0]


def test_of_equal_scores_the_later_box_comes_first() -> None:
    apart = np.array([[0, 0, 9, 9], [50, 0, 59, 9], [100, 0, 109, 9]], float)
    assert list(boxes.suppress(apart, np.full(3, 0.7, np.float32), 0.5)) == [2, 1, 0]


def test_regression_counts_sides_with_or_without_the_last_pixel() -> None:
    box, shift = np.array([[10.0, 20, 29, 59]]), np.array([[0.1, 0.1, -0.1, 0]], np.float32)
    np.testing.assert_allclose(boxes.regress(box, shift), [[12, 24, 27, 59]], atol=1e-5)
    np.testing.assert_allclose(boxes.regress(box, shift, inclusive=False), [[11.9, 23.9, 27.1, 59]], atol=1e-5)


@given(some_boxes)
def test_squares_keep_centre_and_longer_side(found: np.ndarray) -> None:
    squares = boxes.square(found)
    sizes = squares[:, 2:] - squares[:, :2]
    np.testing.assert_allclose(sizes[:, 0], sizes[:, 1])
    np.testing.assert_allclose(sizes[:, 0], (found[:, 2:] - found[:, :2]).max(axis=1))
    np.testing.assert_allclose(squares[:, :2] + squares[:, 2:], found[:, :2] + found[:, 2:])


def test_truncation_goes_towards_zero() -> None:
    np.testing.assert_array_equal(boxes.truncate(np.array([[-1.9, 1.9, -0.1, 0.9]])), [[-1, 1, 0, 0]])


def test_more_boxes_than_int16_counts_are_suppressed_rightly() -> None:
    alike = np.tile(np.array([[0.0, 0, 9, 9]]), (40_000, 1))
    scores = np.linspace(0.1, 0.9, 40_000, dtype=np.float32)
    assert boxes.suppress(alike, scores, 0.5).tolist() == [39_999]
