from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from facenet_server.vision import resize
from hypothesis import given, settings
from hypothesis import strategies as st

SIDES = st.integers(12, 140)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.timeout(60)
@settings(deadline=None)
@given(SIDES, SIDES, st.floats(0.05, 1), st.integers(0, 9))
def test_a_level_is_opencv_s_own_bit_by_bit(height: int, width: int, scale: float, seed: int) -> None:
    image = noise(height, width, seed)
    size = (int(np.ceil(width * scale)), int(np.ceil(height * scale)))
    level = resize.shrink(resize.by_columns(image), size[1], size[0])
    np.testing.assert_array_equal(level, cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    assert level.dtype == np.uint8


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_a_whole_number_of_times_smaller_is_opencv_s_own_too(factor: int) -> None:
    image = noise(96, 240)
    level = resize.shrink(resize.by_columns(image), 96 // factor, 240 // factor)
    np.testing.assert_array_equal(
        level, cv2.resize(image, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    )


@pytest.mark.parametrize("image", [noise(7, 5), noise(1, 9), noise(9, 1), noise(9, 8)[1:-1, 2:-1]])
def test_an_image_by_columns_has_each_column_of_each_channel_in_one_piece(image: np.ndarray) -> None:
    source = resize.by_columns(image)
    np.testing.assert_array_equal(source.columns, image.transpose(1, 2, 0))
    assert source.columns.flags.c_contiguous


@pytest.mark.parametrize("side", [24, 48])
def test_windows_inside_the_image_are_opencv_s_own_bit_by_bit(side: int) -> None:
    image = noise(300, 200)
    sizes = [9, 17, 23, 24, 25, 31, 47, 48, 49, 72, 95, 96, 97, 144, 180]
    boxes = np.array(
        [[5, 7, 4 + width, 6 + height] for size in sizes for width, height in ((size, size), (size, size + 1))]
    )
    windows = resize.cut(resize.by_columns(image), boxes, side)
    for window, (x1, y1, x2, y2) in zip(windows, boxes, strict=True):
        cropped = image[y1 - 1 : y2, x1 - 1 : x2].astype(np.float32)
        np.testing.assert_array_equal(window, cv2.resize(cropped, (side, side), interpolation=cv2.INTER_AREA))


def test_no_boxes_give_no_windows() -> None:
    windows = resize.cut(resize.by_columns(noise(30, 30)), np.empty((0, 4), np.int64), 24)
    assert windows.shape == (0, 24, 24, 3)


def reference_window(image: np.ndarray, box: Sequence[int], side: int) -> np.ndarray:
    """A zero canvas with the visible part pasted in, pixel by pixel; 1-based, inclusive."""
    x1, y1, x2, y2 = box
    canvas = np.zeros((y2 - y1 + 1, x2 - x1 + 1, 3))
    for y in range(y1, y2 + 1):
        for x in range(x1, x2 + 1):
            if 1 <= x <= image.shape[1] and 1 <= y <= image.shape[0]:
                canvas[y - y1, x - x1] = image[y - 1, x - 1]
    return np.asarray(cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((3, 4, 40, 41), id="inside"),
        pytest.param((1, 1, 50, 60), id="the whole image"),
        pytest.param((-9, -5, 30, 34), id="over the top left corner"),
        pytest.param((30, 40, 80, 90), id="over the bottom right corner"),
        pytest.param((-20, -20, 90, 90), id="around the image"),
        pytest.param((51, 10, 70, 29), id="just right of the image"),
        pytest.param((200, 200, 230, 230), id="far outside"),
        pytest.param((-60, -60, -30, -30), id="far outside above"),
        pytest.param((20, 20, 28, 29), id="smaller than the window"),
    ],
)
def test_windows_are_cut_as_the_reference_pastes_them(box: Sequence[int]) -> None:
    image = noise(60, 50)
    windows = resize.cut(resize.by_columns(image), np.array([box]), 24)
    np.testing.assert_allclose(windows[0], reference_window(image, box, 24), atol=1e-3)
