"""The real networks behind a real server on a real socket."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facenet_client import Client, Detection, raise_for_errors
from PIL import Image

from benchmarks.photos import mosaic


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server, timeout_s=60) as client:
        yield client


def vector(detection: Detection) -> np.ndarray:
    return np.asarray(detection.faces[0].embedding)


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def variations(astronaut: np.ndarray) -> dict[str, np.ndarray]:
    smaller = Image.fromarray(astronaut).resize((384, 384))
    return {
        "mirrored": np.ascontiguousarray(astronaut[:, ::-1]),
        "darker": astronaut // 2,
        "smaller": np.asarray(smaller),
    }


def test_a_person_is_the_same_in_variations_and_different_from_another(
    client: Client, astronaut: np.ndarray, hopper: np.ndarray
) -> None:
    *same, other = raise_for_errors(
        client.compare([(astronaut, image) for image in [*variations(astronaut).values(), hopper]])
    )
    assert all(result.same and result.distance < 0.6 for result in same)
    assert not other.same
    assert other.distance > 1.1


def test_an_image_gives_the_same_faces_encoded_and_raw(client: Client, astronaut: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(astronaut).save(file, "PNG")
    encoded, raw = client.embed([file.getvalue(), astronaut])
    assert encoded.faces[0].box == raw.faces[0].box
    np.testing.assert_allclose(vector(encoded), vector(raw), atol=1e-6)


def test_a_photo_decoded_smaller_gives_nearly_the_same_face(client: Client, astronaut: np.ndarray) -> None:
    large = jpeg(np.asarray(Image.fromarray(astronaut).resize((2048, 2048))))
    whole, smaller = (
        client.detect([large], min_face_px=160),
        client.detect([large], min_face_px=160, allow_scaled_decoding=True),
    )
    (exact,), (near,) = whole[0].faces, smaller[0].faces
    assert (smaller[0].height, smaller[0].width) == (2048, 2048)
    np.testing.assert_allclose(near.box, exact.box, atol=0.1 * (exact.box[2] - exact.box[0]))
    np.testing.assert_allclose(near.landmarks, exact.landmarks, atol=0.1 * (exact.box[2] - exact.box[0]))
    assert near.box != exact.box


def test_a_crop_that_the_server_cut_embeds_as_it_did_inside(client: Client, astronaut: np.ndarray) -> None:
    face = client.embed([astronaut], return_crops=True)[0].faces[0]
    assert face.crop is not None
    (again,) = client.embed_crops([face.crop])
    np.testing.assert_allclose(np.asarray(again), np.asarray(face.embedding), atol=1e-5)


BAD = [b"", b"this is text, not an image", "truncated"]
BAD_AT = np.random.default_rng(7).choice(1000, 50, replace=False).tolist()


@pytest.mark.timeout(60)
def test_a_photo_of_a_phone_is_answered(client: Client, astronaut: np.ndarray) -> None:
    photo = Image.fromarray(astronaut).resize((7000, 7000))  # 49 megapixels
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    (found,) = client.detect([file.getvalue()], min_face_px=400)
    assert len(raise_for_errors([found])[0].faces) == 1
    assert client.detect([file.getvalue()], min_face_px=40)[0].error is None
    (told,) = client.detect([file.getvalue()])
    assert told.error is not None
    assert told.error.reason == "TOO_MUCH_WORK"  # at 20 px


@pytest.mark.timeout(60)
def test_a_crowd_is_answered_with_default_options(client: Client) -> None:
    """Over 20,000 windows of it pass P-Net, of which suppression leaves some 9,000."""
    assert len(raise_for_errors(client.detect([mosaic(150, 3815, 2250)], timeout_s=60))[0].faces) >= 140


def small_jpegs(astronaut: np.ndarray) -> list[bytes]:
    """Some small photos with the astronaut's face."""
    face = Image.fromarray(astronaut[20:240, 120:340])
    return [jpeg(np.asarray(face.resize((side, side)))) for side in range(60, 100, 4)]


def bad_bytes(index: int, good: bytes) -> bytes:
    bad = BAD[index % 3]
    return good[: len(good) // 2] if bad == "truncated" else bad  # type: ignore[return-value]


def with_bad_items(good: list[Any], bad: list[Any]) -> list[Any]:
    """A thousand items, those at BAD_AT bad."""
    return [bad[i % len(bad)] if i in BAD_AT else good[i % len(good)] for i in range(1000)]


def check(results: list[Any], good: list[Any], identity: Any) -> None:
    """950 answers, 50 errors at their places, and every answer the one of its own item."""
    assert len(results) == 1000
    assert sorted(i for i, result in enumerate(results) if result.error is not None) == sorted(BAD_AT)
    expected = [identity(result) for result in good]
    for i, result in enumerate(results):
        if result.error is None:
            assert identity(result) == expected[i % len(good)]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_fifty_bad_images_in_a_thousand_cost_detect_nothing_else(client: Client, astronaut: np.ndarray) -> None:
    photos = small_jpegs(astronaut)
    bad = [bad_bytes(i, photos[0]) for i in range(3)]
    stream = client.detect_stream(with_bad_items(photos, bad))
    check(list(stream), client.detect(photos), lambda result: (result.width, len(result.faces)))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_fifty_bad_images_in_a_thousand_cost_embed_nothing_else(client: Client, astronaut: np.ndarray) -> None:
    photos = small_jpegs(astronaut)
    bad = [bad_bytes(i, photos[0]) for i in range(3)]
    stream = client.embed_stream(with_bad_items(photos, bad))
    check(list(stream), client.embed(photos), lambda result: (result.width, len(result.faces)))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_fifty_bad_pairs_in_a_thousand_cost_compare_nothing_else(client: Client, astronaut: np.ndarray) -> None:
    photos = small_jpegs(astronaut)
    (face,) = client.embed([astronaut])[0].faces
    good = [(face, photo) for photo in photos]
    bad = [(face, bad_bytes(i, photos[0])) for i in range(3)]
    stream = client.compare_stream(with_bad_items(good, bad))
    check(list(stream), client.compare(good), lambda result: round(result.distance, 3))


@pytest.mark.timeout(60)
def test_one_call_goes_on_after_its_bad_items(client: Client, astronaut: np.ndarray) -> None:
    photo = small_jpegs(astronaut)[-1]
    results = list(client.detect_stream(photo if i % 2 else b"" for i in range(100)))
    assert [result.error is None for result in results] == [bool(i % 2) for i in range(100)]


# ---- against the reference, on research photos ----


@pytest.mark.timeout(120)
def test_the_faces_of_the_photos_are_the_references(client: Client, photos: Path) -> None:
    golden = json.loads((photos / "faces_golden.json").read_text())
    files = [photos / "faces" / name for name in golden]
    found = client.detect(files, apply_exif_orientation=False)
    for name, detection in zip(golden, raise_for_errors(found), strict=True):
        expected = np.array(golden[name]["compare"]["boxes"]).reshape(-1, 5)
        assert len(detection.faces) == len(expected), name
        boxes = np.array([face.box for face in detection.faces]).reshape(-1, 4)
        np.testing.assert_allclose(boxes, expected[:, :4], atol=0.05, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_lfw_pairs_are_told_apart(client: Client, photos: Path) -> None:
    """The first 600 official pairs: plain L2, one crop, the best threshold."""
    rows = [line.split("\t") for line in (photos / "lfw_pairs_folds_1_to_5.txt").read_text().splitlines()[1:601]]

    def file(name: str, number: str) -> Path:
        return photos / "lfw" / name / f"{name}_{int(number):04d}.jpg"

    pairs = [(file(*row[:2]), file(row[-2] if len(row) == 4 else row[0], row[-1])) for row in rows]
    same = np.array([len(row) == 3 for row in rows])
    files = sorted({side for pair in pairs for side in pair})
    found = dict(zip(files, client.embed(files, faces="most_central"), strict=True))
    vectors = {path: np.asarray(detection.faces[0].embedding) for path, detection in found.items()}
    distances = np.array([np.linalg.norm(vectors[a] - vectors[b]) for a, b in pairs])
    accuracy = max(float(((distances < threshold) == same).mean()) for threshold in np.arange(0, 2, 0.005))
    assert accuracy >= 0.98
