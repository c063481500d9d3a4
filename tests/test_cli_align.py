"""``facenet align`` against a server on the real networks."""

from pathlib import Path

import numpy as np
import pytest
from commandline import facenet
from facenet_client import Client, Face
from facenet_client.cli.align import targets
from facenet_client.cli.crops import crop_edges, most_central
from facenet_client.cli.dataset import shuffled
from facenet_client.cli.photos import TWIN, Walk
from PIL import Image

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def source(tmp_path: Path, astronaut: np.ndarray, hopper: np.ndarray) -> Path:
    """collins/one.png, hopper/two.png (both faces, Hopper's larger), hopper/empty.png, hopper/broken.jpg"""
    root = tmp_path / "source"
    for name in ("collins", "hopper"):
        (root / name).mkdir(parents=True)
    Image.fromarray(astronaut).save(root / "collins" / "one.png")
    Image.fromarray(side_by_side(astronaut, hopper)).save(root / "hopper" / "two.png")
    Image.new("L", (64, 64)).save(root / "hopper" / "empty.png")
    (root / "hopper" / "broken.jpg").write_bytes(b"nothing")
    return root


def side_by_side(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both = np.zeros((max(len(a), len(b)), a.shape[1] + b.shape[1], 3), np.uint8)
    both[: len(a), : a.shape[1]] = a
    both[: len(b), a.shape[1] :] = b
    return both


def bounding_boxes(out: Path) -> list[list[str]]:
    (file,) = out.glob("bounding_boxes_[0-9][0-9][0-9][0-9][0-9].txt")
    return [line.split() for line in file.read_text().splitlines()]


def cut(image: np.ndarray, edges: list[str], size_px: int) -> np.ndarray:
    x1, y1, x2, y2 = map(int, edges)
    face = Image.fromarray(np.ascontiguousarray(image[y1:y2, x1:x2]))
    return np.asarray(face.resize((size_px, size_px), Image.Resampling.BILINEAR))


def test_the_most_central_face_of_each_image_is_cropped_as_pillow_does_it(
    server: str, source: Path, tmp_path: Path, astronaut: np.ndarray, hopper: np.ndarray
) -> None:
    out = tmp_path / "out"
    ended = facenet(server, "align", source, out, "--image-size", 182, "--margin-px", 44)
    assert ended.stdout.splitlines() == [
        "Total number of images: 4",
        "Number of successfully aligned images: 2",
    ]
    assert ended.returncode == 1  # one image is unreadable
    assert "broken.jpg: not an image" in ended.stderr
    assert f'Unable to align "{source / "hopper" / "empty.png"}"' in ended.stderr
    one, empty, two = bounding_boxes(out)
    assert empty == [str(out / "hopper" / "empty.png")]
    assert [one[0], two[0]] == [str(out / "collins" / "one.png"), str(out / "hopper" / "two.png")]
    for line, image in ((one, astronaut), (two, side_by_side(astronaut, hopper))):
        np.testing.assert_array_equal(np.asarray(Image.open(line[0])), cut(image, line[1:], 182))
    with Client(server) as client:
        (found,) = client.detect([source / "collins" / "one.png"])
    assert list(map(int, one[1:])) == list(crop_edges(found.faces[0].box, 512, 512, 44))
    assert int(two[1]) > 512  # Hopper, who is larger
    assert sorted(path.name for path in out.rglob("*.png")) == ["one.png", "two.png"]


def test_the_classic_use_keeps_every_face_under_its_number(server: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    classic = "--image-size 160 --margin-px 32 --min-face-px 80 --thresholds 0.6 0.8 0.95 --detect-multiple-faces"
    ended = facenet(server, "align", source, out, *classic.split())
    assert "Number of successfully aligned images: 3" in ended.stdout
    assert sorted(path.name for path in out.rglob("*.png")) == ["one_0.png", "two_0.png", "two_1.png"]
    lines = bounding_boxes(out)
    assert [Path(line[0]).name for line in lines] == ["one_0.png", "empty.png", "two_0.png", "two_1.png"]
    assert np.asarray(Image.open(out / "hopper" / "two_1.png")).shape == (160, 160, 3)


@pytest.mark.parametrize(("flags", "done"), [((), "one.png"), (("--detect-multiple-faces",), "one_0.png")])
def test_an_image_whose_crop_is_there_is_passed_over(
    server: str, source: Path, tmp_path: Path, flags: tuple[str, ...], done: str
) -> None:
    out = tmp_path / "out"
    (out / "collins").mkdir(parents=True)
    (out / "collins" / done).write_bytes(b"mine")
    ended = facenet(server, "align", source, out, "--random-order", *flags)
    assert "Total number of images: 4" in ended.stdout
    assert (out / "collins" / done).read_bytes() == b"mine"
    assert not any("collins" in line[0] for line in bounding_boxes(out))
    again = facenet(server, "align", source, out, *flags)
    assert "Number of successfully aligned images: 0" in again.stdout
    assert len(list(out.glob("bounding_boxes_*.txt"))) == 2


def test_images_are_turned_upright_but_not_as_the_reference_does_it(
    server: str, tmp_path: Path, astronaut: np.ndarray
) -> None:
    source = tmp_path / "source" / "collins"
    source.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(astronaut[::-1, ::-1]).save(source / "turned.png", exif=exif)
    sure = ("--thresholds", 0.6, 0.7, 0.95)
    for flag in ("--reference", "--no-exif"):
        facenet(server, "align", source.parent, tmp_path / "as it is", flag, *sure)
        assert not list((tmp_path / "as it is").rglob("*.png"))
    facenet(server, "align", source.parent, tmp_path / "upright", *sure)
    (crop,) = (tmp_path / "upright").rglob("*.png")
    assert crop.name == "turned.png"


def test_a_folder_without_folders_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    ended = facenet("127.0.0.1:1", "align", tmp_path, tmp_path / "out")
    assert ended.returncode == 2
    assert "person/photo.jpg" in ended.stderr


def test_of_images_that_differ_in_their_suffix_the_first_counts_and_the_others_are_told() -> None:
    found = {"a": [Path("in/a/1.jpg"), Path("in/a/1.png")], "b": [Path("in/b/1.jpg")]}
    walk = Walk()
    assert targets(found, Path("out"), walk) == {
        Path("in/a/1.jpg"): Path("out/a/1.png"),
        Path("in/b/1.jpg"): Path("out/b/1.png"),
    }
    assert walk.passed_over == [(Path("in/a/1.png"), TWIN)]


def test_shuffling_loses_nothing() -> None:
    found = {name: [Path(f"{name}/{number}.jpg") for number in range(9)] for name in "abcdefgh"}
    mixed = shuffled(found)
    assert {name: sorted(files) for name, files in mixed.items()} == found
    assert mixed != found or list(mixed) != list(found)


def test_the_most_central_face_weighs_area_against_distance() -> None:
    # In 200×100 px: centred with area 400, and larger by 1,000 px² but 30 px aside: 400 > 1,400 − 2·900.
    centred, aside = face(90, 40, 110, 60), face(110, 30, 150, 65)
    assert most_central([aside, centred], 200, 100) is centred
    assert most_central([face(80, 20, 150, 90), centred], 200, 100) is not centred


def test_crop_edges_are_cut_towards_zero_inside_the_image() -> None:
    assert crop_edges((10.9, -3.0, 50.2, 99.5), 60, 80, 33) == (0, 0, 60, 80)
    assert crop_edges((30.9, 20.6, 40.2, 50.7), 100, 100, 5) == (28, 18, 42, 53)


def face(*box: float) -> Face:
    x1, y1, x2, y2 = box
    return Face((x1, y1, x2, y2), 1.0, ())
