import math
from typing import Any

import numpy as np
import pytest
from facenet_server.errors import InvalidInput
from facenet_server.vision import mtcnn
from facenet_server.vision.boxes import suppress
from facenet_server.vision.resize import by_columns
from hypothesis import given, settings
from hypothesis import strategies as st


def no_faces(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """P-Net that sees nothing, with maps of the true size."""
    height, width = (math.ceil((side - 2) / 2) - 4 for side in rows.shape[1:3])
    shape = (len(rows), height, width)
    return np.zeros(shape, np.float32), np.zeros((*shape, 4), np.float32)


def all_faces(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """P-Net that sees a face in every cell."""
    probability, regression = no_faces(rows)
    return probability + 1, regression


def test_the_pyramid_starts_at_the_smallest_face_and_ends_at_twelve_pixels() -> None:
    found = mtcnn.scales(250, 250, 20, 0.709)
    assert len(found) == 8
    assert found[0] == 12 / 20
    assert 250 * found[-1] >= 12 > 250 * found[-1] * 0.709


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(12, 1000), st.floats(0.5, 0.9))
def test_every_level_is_large_enough_for_p_net(height: int, width: int, min_face_px: int, factor: float) -> None:
    for scale in mtcnn.scales(height, width, min_face_px, factor):
        assert math.ceil(height * scale) >= 12
        assert math.ceil(width * scale) >= 12


def test_the_pyramid_pixels_are_those_of_its_levels() -> None:
    seen = []

    def pnet(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.append(rows.shape[1] * rows.shape[2])
        return no_faces(rows)

    image = np.zeros((120, 90, 3), np.uint8)
    for scale in mtcnn.scales(120, 90, 20, 0.709):
        mtcnn.propose(by_columns(image), pnet, scale, 0.6, 10)
    assert sum(seen) == mtcnn.pyramid_pixels(120, 90, 20, 0.709)


def test_an_image_smaller_than_a_face_has_no_levels() -> None:
    assert mtcnn.scales(19, 500, 20, 0.709) == []
    assert mtcnn.merge([], 10).shape == (0, 4)


def test_too_many_windows_are_an_error_not_a_truncation() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    with pytest.raises(InvalidInput) as refused:
        mtcnn.propose(by_columns(image), all_faces, 0.6, 0.6, 10)
    assert refused.value.reason == "TOO_MUCH_WORK"


def test_too_many_windows_over_all_levels_are_an_error_though_no_level_has_too_many() -> None:
    scales = mtcnn.scales(100, 100, 20, 0.709)
    image = by_columns(np.zeros((100, 100, 3), np.uint8))
    levels = [mtcnn.propose(image, all_faces, scale, 0.6, 1000) for scale in scales]
    most = max(len(level.boxes) for level in levels)
    with pytest.raises(InvalidInput) as refused:
        mtcnn.merge(levels, most)
    assert refused.value.reason == "TOO_MUCH_WORK"


def test_a_cell_maps_to_its_twelve_pixel_window_at_the_scale() -> None:
    probability = np.zeros((5, 7), np.float32)
    probability[2, 3] = probability[4, 6] = 0.9
    windows = mtcnn.sift(probability, np.zeros((5, 7, 4), np.float32), 0.3, 0.6, 9)
    # Column 3, row 2: from (2·3 + 1)/0.3 and (2·2 + 1)/0.3 to (2·3 + 12)/0.3 and (2·2 + 12)/0.3, towards zero.
    np.testing.assert_array_equal(windows.boxes[1], [23, 16, 60, 53])


def test_the_proposal_threshold_itself_passes() -> None:
    probability = np.zeros((1, 9), np.float32)
    probability[0, [0, 8]] = 0.6
    assert len(mtcnn.sift(probability, np.zeros((1, 9, 4), np.float32), 1.0, 0.6, 9).boxes) == 2


def test_of_equal_windows_the_last_by_column_then_row_comes_first() -> None:
    probability = np.zeros((9, 9), np.float32)
    probability[[0, 0, 8, 8], [0, 8, 0, 8]] = 0.9
    windows = mtcnn.sift(probability, np.zeros((9, 9, 4), np.float32), 1.0, 0.6, 9)
    np.testing.assert_array_equal(windows.boxes[:, :2], [[17, 17], [17, 1], [1, 17], [1, 1]])


def test_a_single_window_takes_the_regression_of_its_mirror_image() -> None:
    """Quirk Q1 of the reference: kept, since its results are the ones to be reproduced."""
    regression = np.arange(3 * 5 * 4, dtype=np.float32).reshape(3, 5, 4)
    alone = np.zeros((3, 5), np.float32)
    alone[2, 1] = 0.9
    np.testing.assert_array_equal(mtcnn.sift(alone, regression, 1.0, 0.6, 9).regressions, [regression[2, 3]])
    suppressed = alone.copy()
    suppressed[2, 2] = 0.8  # two pass, one is left
    np.testing.assert_array_equal(mtcnn.sift(suppressed, regression, 1.0, 0.6, 9).regressions, [regression[2, 1]])


def reference_windows(probability: np.ndarray, regression: np.ndarray, scale: float, threshold: float) -> mtcnn.Windows:
    """All cells at once by numpy, and the suppression that compares each with each."""
    columns, rows = np.nonzero(probability.transpose() >= threshold)
    cells = np.stack([columns, rows], axis=1)
    boxes = np.trunc(np.hstack([2 * cells + 1, 2 * cells + 12]) / scale)
    from_columns = probability.shape[1] - 1 - columns if len(cells) == 1 else columns
    scores, regressions = probability[rows, columns], regression[rows, from_columns]
    kept = suppress(boxes, scores, 0.5)
    return mtcnn.Windows(boxes[kept], scores[kept], regressions[kept])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (7, 1), (1, 9), (13, 17), (64, 128)])
@given(
    seed=st.integers(0, 2**32 - 1),
    passing=st.sampled_from([0, 1, 2, 3, 10_000]),
    scale=st.floats(0.004, 1),
    threshold=st.sampled_from([0.3, 0.6, 0.7, 0.999]),
)
@settings(max_examples=30)
def test_windows_are_those_of_numpy_in_every_order_of_memory(
    shape: tuple[int, int], seed: int, passing: int, scale: float, threshold: float
) -> None:
    rng, exactly = np.random.default_rng(seed), np.float32(threshold)
    below, above = np.nextafter(exactly, np.array([0, 1], np.float32))
    probability = rng.choice(np.array([0, below, np.nan], np.float32), shape)
    there = rng.permutation(probability.size)[:passing]
    probability.flat[there] = rng.choice(np.array([exactly, above, 1], np.float32), len(there))
    regression = rng.normal(size=(*shape, 4)).astype(np.float32)
    padded = np.pad(regression, [(1, 1), (2, 3), (0, 0)])[1:-1, 2:-3]

    expected = reference_windows(probability, regression, scale, threshold)
    for maps in ((probability, regression), (np.asfortranarray(probability), padded)):
        windows = mtcnn.sift(*maps, scale, threshold, 10_000)
        for found, same in zip(windows, expected, strict=True):
            np.testing.assert_array_equal(found, same, strict=True)


def hills(height: int, width: int) -> np.ndarray:
    return np.sin(np.arange(width) / 3) + np.cos(np.arange(height)[:, np.newaxis] / 2)


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param(lambda rng, shape: np.full(shape, 0.9), id="all equal"),
        pytest.param(lambda rng, shape: rng.random(shape), id="random"),
        pytest.param(lambda rng, shape: np.round(rng.random(shape), 1), id="many equal ones"),
        pytest.param(lambda rng, shape: np.add.outer(*map(np.arange, shape)) / sum(shape), id="a slope"),
        pytest.param(lambda rng, shape: hills(*shape), id="hills"),
        pytest.param(lambda rng, shape: np.indices(shape).sum(0) % 2, id="a chequerboard"),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.9, 0.6, 0.5, 0.3, 0.1, 0.012, 0.004])
def test_windows_of_a_full_map_are_those_of_comparing_each_with_each(scores: Any, scale: float) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 50), (50, 1), (31, 47), (40, 40)):
        maps = scores(rng, shape).astype(np.float32), rng.normal(size=(*shape, 4)).astype(np.float32)
        expected = reference_windows(*maps, scale, 0.3)
        for found, same in zip(mtcnn.sift(*maps, scale, 0.3, 10_000), expected, strict=True):
            np.testing.assert_array_equal(found, same, strict=True)


def test_a_limit_counts_what_suppression_leaves() -> None:
    probability, regression = np.full((40, 40), 0.9, np.float32), np.zeros((40, 40, 4), np.float32)
    left = len(mtcnn.sift(probability, regression, 0.3, 0.6, 1600).boxes)
    assert left < 1600
    assert len(mtcnn.sift(probability, regression, 0.3, 0.6, left).boxes) == left
    with pytest.raises(InvalidInput) as refused:
        mtcnn.sift(probability, regression, 0.3, 0.6, left - 1)
    assert refused.value.reason == "TOO_MUCH_WORK"


def test_the_largest_level_is_refused_where_its_every_cell_passes() -> None:
    """A level of a pyramid of 25 million pixels has as many cells: comparing each with each would take hours."""
    probability = np.random.default_rng(0).uniform(0.6, 1, (1770, 1770)).astype(np.float32)
    regression = np.zeros((1770, 1770, 4), np.float32)
    with pytest.raises(InvalidInput):
        mtcnn.sift(probability, regression, 0.6, 0.6, 20_000)


def test_the_refinement_and_output_thresholds_themselves_do_not_pass() -> None:
    box, score, still = np.array([[10.0, 10, 33, 33]]), np.array([0.7], np.float32), np.zeros((1, 4), np.float32)
    points = np.zeros((1, 5, 2), np.float32)
    assert len(mtcnn.refine(box, score, still, float(score[0]))) == 0
    assert len(mtcnn.refine(box, score, still, 0.69)) == 1
    assert len(mtcnn.finish(box, score, still, points, float(score[0])).boxes) == 0
    assert len(mtcnn.finish(box, score, still, points, 0.69).boxes) == 1


def test_landmarks_are_fractions_of_the_window_before_its_regression() -> None:
    box, score = np.array([[11.0, 21, 58, 68]]), np.array([0.9], np.float32)  # 48 px wide
    points = np.full((1, 5, 2), 0.5, np.float32)
    faces = mtcnn.finish(box, score, np.full((1, 4), 0.25, np.float32), points, 0.7)
    np.testing.assert_allclose(faces.landmarks[0], [[11 + 24 - 1, 21 + 24 - 1]] * 5)
    np.testing.assert_allclose(faces.boxes, box + 12)


def test_a_window_that_its_regression_turns_inside_out_is_dropped() -> None:
    box, score = np.array([[10.0, 10, 33, 33]]), np.array([0.9], np.float32)
    collapse = np.array([[2, 2, -2, -2]], np.float32)
    assert len(mtcnn.refine(box, score, collapse, 0.7)) == 0
