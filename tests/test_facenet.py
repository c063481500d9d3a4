import numpy as np
import pytest
from facenet_server.errors import InvalidInput
from facenet_server.vision import embeddings, facenet
from facenet_server.vision.boxes import NO_FACES, Faces
from facenet_server.vision.options import FaceSelection
from PIL import Image

BOXES = np.array([[0.0, 0, 20, 20], [40, 40, 60, 60], [0, 0, 90, 30]])  # in an image of 100×100
FACES = Faces(BOXES, np.array([0.99, 0.9, 0.8], np.float32), np.zeros((3, 5, 2)))


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (FaceSelection.ALL, [0, 1, 2]),
        (FaceSelection.BEST_SCORE, [0]),
        (FaceSelection.LARGEST, [2]),
        (FaceSelection.MOST_CENTRAL, [1]),  # 400 − 0 against 400 − 2·3200 and 2700 − 2·1250
    ],
)
def test_faces_are_selected_as_in_the_reference(selection: FaceSelection, chosen: list[int]) -> None:
    selected = facenet.select(FACES, selection, 100, 100)
    np.testing.assert_array_equal(selected.boxes, BOXES[chosen])


@pytest.mark.parametrize("selection", FaceSelection)
def test_no_face_is_selected_of_none(selection: FaceSelection) -> None:
    assert len(facenet.select(NO_FACES, selection, 100, 100).boxes) == 0


def test_the_most_central_face_counts_width_and_height_apart() -> None:
    boxes = np.array([[90.0, 40, 110, 60], [40, 90, 60, 110]])
    two = Faces(boxes, np.array([0.9, 0.9], np.float32), np.zeros((2, 5, 2)))
    assert facenet.select(two, FaceSelection.MOST_CENTRAL, height=100, width=200).boxes[0, 0] == 90


def test_crop_edges_are_clipped_then_truncated() -> None:
    edges = facenet.crop_edges(np.array([[5.9, -3.2, 50.7, 98.1], [20.5, 20.5, 40.5, 40.5]]), 100, 80, 32)
    np.testing.assert_array_equal(edges, [[0, 0, 66, 100], [4, 4, 56, 56]])


def test_an_odd_margin_is_halved_exactly() -> None:
    np.testing.assert_array_equal(facenet.crop_edges(np.array([[10.0, 10, 20, 20]]), 99, 99, 5), [[7, 7, 22, 22]])


def test_a_crop_is_pillows_bilinear_resize_without_its_aspect() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    (crop,) = facenet.align(image, np.array([[10.0, 20, 50, 80]]), 0, 32)
    expected = Image.fromarray(image[20:80, 10:50]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(crop, expected)


def test_a_face_outside_the_image_has_no_crop_and_the_others_have_theirs() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    boxes = np.array([[60.0, 60, 90, 90], [10, 10, 30, 30], [-40, -40, -10, -10]])
    crops = facenet.crops(image, boxes, 10, 16)
    assert [crop is not None for crop in crops] == [False, True, False]


def test_the_distance_of_a_vector_to_itself_is_zero_and_to_its_opposite_two() -> None:
    vector = np.random.default_rng(0).normal(size=512).astype(np.float32)
    vector /= np.linalg.norm(vector)
    assert embeddings.distance(vector, vector) == 0
    assert embeddings.distance(vector, -vector) == pytest.approx(2)


UNIT = np.eye(1, 8, dtype=np.float32)[0]


@pytest.mark.parametrize(
    ("vector", "made_by", "reason"),
    [
        pytest.param(UNIT, "other", "MODEL_MISMATCH", id="another model"),
        pytest.param(UNIT[:7], "mine", "BAD_EMBEDDING", id="too short"),
        pytest.param(UNIT * 2, "mine", "BAD_EMBEDDING", id="not of unit length"),
        pytest.param(UNIT * np.nan, "mine", "BAD_EMBEDDING", id="NaN"),
    ],
)
def test_an_embedding_that_the_model_cannot_have_made_is_refused(vector: np.ndarray, made_by: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        embeddings.check_embedding(vector, made_by, ["mine", "mine-int8"], 8)
    assert refused.value.reason == reason


def test_an_embedding_of_an_interchangeable_model_is_accepted() -> None:
    assert embeddings.check_embedding(UNIT, "mine-int8", ["mine", "mine-int8"], 8) is UNIT
