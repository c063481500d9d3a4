"""The command ``facenet`` against a server on the real networks."""

import json
from dataclasses import replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commandline import facenet
from facenet_client import Client
from facenet_client.cli import tables
from facenet_client.cli.commands import facenet as facenet_command
from PIL import Image
from rich.console import Console

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def pictures(tmp_path: Path, astronaut: np.ndarray, hopper: np.ndarray) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "astronaut.png")
    Image.fromarray(astronaut[:, ::-1]).save(folder / "mirrored.png")
    Image.fromarray(hopper).save(folder / "hopper.png")
    return folder


def test_detect_prints_a_row_for_each_face(server: str, pictures: Path) -> None:
    ended = facenet(server, "detect", pictures)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(".png") == 3
    assert "179.8" in ended.stdout


def test_embed_gives_programs_the_vectors(server: str, pictures: Path) -> None:
    ended = facenet(server, "embed", pictures / "astronaut.png", "--json", "--faces", "largest")
    (record,) = map(json.loads, ended.stdout.splitlines())
    (face,) = record["faces"]
    assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-5)
    assert face["model"] == "20170512-110547"
    assert len(face["landmarks"]) == 5


def test_crops_are_embedded_as_they_are(server: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "people").symlink_to(pictures)
    facenet(server, "align", tmp_path / "raw", tmp_path / "aligned")
    (tmp_path / "aligned" / "people" / "large.png").write_bytes((pictures / "hopper.png").read_bytes())
    out = tmp_path / "crops.npz"
    ended = facenet(server, "embed", "--crops", tmp_path / "aligned", "--out", out)
    assert ended.returncode == 1
    assert "large.png: " in ended.stderr
    with np.load(out) as arrays:
        vectors = dict(zip((Path(path).stem for path in arrays["paths"]), arrays["embeddings"], strict=True))
    with Client(server) as client:
        photos = client.embed([pictures / f"{name}.png" for name in vectors], faces="most_central")
    for photo, vector in zip(photos, vectors.values(), strict=True):
        np.testing.assert_allclose(np.asarray(photo.faces[0].embedding), vector, atol=1e-4)
    for form in ("--json", "--csv"):
        assert "embedding" in facenet(server, "embed", "--crops", tmp_path / "aligned", form).stdout
    refused = facenet(server, "embed", "--crops", tmp_path / "aligned", "--margin-px", 8)
    assert "leave out the options of finding faces" in refused.stderr


def test_compare_judges_every_pair(server: str, pictures: Path) -> None:
    names = ["astronaut.png", "mirrored.png", "hopper.png"]
    ended = facenet(server, "compare", "--json", *(pictures / name for name in names))
    verdicts = [json.loads(line)["same"] for line in ended.stdout.splitlines()]
    assert verdicts == [True, False, False]
    assert "different" in facenet(server, "compare", *(pictures / name for name in names)).stdout


def test_one_bad_file_has_its_error_and_sets_the_exit_code(server: str, pictures: Path) -> None:
    (pictures / "broken.jpg").write_bytes(b"nothing")
    ended = facenet(server, "detect", "--json", pictures)
    records = {Path(record["path"]).name: record for record in map(json.loads, ended.stdout.splitlines())}
    assert ended.returncode == 1
    assert records["broken.jpg"]["error"]["reason"] == "UNSUPPORTED_FORMAT"
    assert len(records["hopper.png"]["faces"]) == 1


@pytest.mark.parametrize("first", ["20170511-185253", "20180402-114759.pb", "nowhere/20170511-185253"])
def test_a_model_as_the_first_path_is_an_error_that_names_the_option(server: str, pictures: Path, first: str) -> None:
    (pictures / "20170511-185253").mkdir()
    (pictures / "20170511-185253" / "model.meta").write_bytes(b"a graph")
    (pictures / "20180402-114759.pb").write_bytes(b"a graph")
    photos = [pictures / name for name in ("astronaut.png", "hopper.png")]
    ended = facenet(server, "compare", pictures / first, *photos)
    assert ended.returncode == 2
    assert f"--model {Path(first).name.removesuffix('.pb')}" in ended.stderr
    assert not ended.stdout


@pytest.mark.parametrize(
    ("command", "old", "told"),
    [
        (("align", ".", "out"), "--image_size", "--image-size"),
        (("align", ".", "out"), "--margin", "--margin-px"),
        (("align", ".", "out"), "--detect_multiple_faces", "--detect-multiple-faces, without a value"),
        (("align", ".", "out"), "--random_order", "--random-order"),
        (("align", ".", "out"), "--gpu_memory_fraction", "facenet-server --gpu-mem-limit-mb"),
        (("compare", "."), "--margin", "--margin-px"),
        (("compare", "."), "--image_size", "crops of 160 px always"),
        (("evaluate", "lfw", "."), "--lfw_pairs", "--pairs"),
        (("evaluate", "lfw", "."), "--use_flipped_images", "--flip"),
        (("evaluate", "lfw", "."), "--subtract_mean", "--subtract-mean"),
        (("evaluate", "lfw", "."), "--distance_metric", "--metric"),
        (("evaluate", "lfw", "."), "--use_fixed_image_standardization", "leave it out"),
        (("cluster", "."), "--cluster_threshold", "--eps"),
        (("cluster", "."), "--min_cluster_size", "--min-samples"),
        (("cluster", "."), "--largest_cluster_only", "--largest-only"),
    ],
)
def test_an_option_of_the_original_tools_is_told_what_it_is_here(command: tuple[str, ...], old: str, told: str) -> None:
    ended = CliRunner().invoke(facenet_command, [*command, old, "1"])
    assert ended.exit_code == 2
    assert f"No such option: {old}" in ended.output
    assert told in ended.output


def test_compare_names_and_leaves_out_what_shows_no_face(server: str, pictures: Path) -> None:
    (pictures / "broken.jpg").write_bytes(b"nothing")
    Image.new("RGB", (64, 64)).save(pictures / "empty.png")
    ended = facenet(server, "compare", pictures)
    assert ended.returncode == 1
    assert "broken.jpg: not an image" in ended.stderr
    assert "empty.png: no face" in ended.stderr
    assert "broken" not in ended.stdout
    assert "empty" not in ended.stdout
    assert ended.stdout.count("different") == 2
    records = list(map(json.loads, facenet(server, "compare", pictures, "--json").stdout.splitlines()))
    assert len(records) == 10
    assert sum(record["error"] is None for record in records) == 3


def test_compare_takes_two_faces(server: str, pictures: Path) -> None:
    (pictures / "broken.jpg").write_bytes(b"nothing")
    ended = facenet(server, "compare", pictures / "broken.jpg", pictures / "hopper.png")
    assert ended.returncode == 1
    assert "Distance matrix" not in ended.stdout


def test_compare_prints_the_distance_matrix_of_the_reference(server: str, pictures: Path) -> None:
    ended = facenet(server, "compare", pictures / "astronaut.png", pictures / "hopper.png")
    distance = json.loads(
        facenet(server, "compare", "--json", pictures / "astronaut.png", pictures / "hopper.png").stdout
    )["distance"]
    assert ended.stdout.splitlines()[:7] == [
        "Images:",
        f"0: {pictures / 'astronaut.png'}",
        f"1: {pictures / 'hopper.png'}",
        "",
        "Distance matrix",
        "        0         1     ",
        f"0    0.0000    {distance:.4f}  ",
    ]


def test_an_option_that_suits_no_image_is_one_clear_line(server: str, pictures: Path) -> None:
    ended = facenet(server, "compare", pictures, "--margin-px", 5000)
    assert ended.returncode == 2
    assert "'--margin-px': 5000 is not in the range 0<=x<=1000" in ended.stderr


def test_faces_are_drawn(server: str, pictures: Path, tmp_path: Path, astronaut: np.ndarray) -> None:
    one = facenet(server, "detect", pictures / "astronaut.png", "--draw", tmp_path / "drawn.png")
    assert one.returncode == 0, one.stderr
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == astronaut.shape
    changed = np.argwhere((drawn != astronaut).any(axis=2))
    assert changed.min(axis=0).tolist() == pytest.approx([60, 179], abs=16)
    assert changed.max(axis=0).tolist() == pytest.approx([174, 268], abs=4)
    (pictures / "again").mkdir()
    (pictures / "again" / "hopper.png").write_bytes((pictures / "hopper.png").read_bytes())
    facenet(server, "compare", pictures, "--draw", tmp_path / "all")
    names = sorted(str(file.relative_to(tmp_path / "all")) for file in (tmp_path / "all").rglob("*.png"))
    assert names == ["again/hopper.faces.png", "astronaut.faces.png", "hopper.faces.png", "mirrored.faces.png"]


def test_info_shows_models_and_limits(server: str) -> None:
    assert "20170512-110547" in facenet(server, "info").stdout
    told = json.loads(facenet(server, "info", "--json").stdout)
    assert told["limits"]["max_items_per_message"] == 64
    assert told["workers"] > 0
    assert told["worker_bytes"] > 0


@pytest.mark.parametrize(
    ("workers", "told"),
    [(3, "3, each with 200 MiB for itself"), (0, "none: the server's own process does the work")],
)
def test_info_shows_the_workers_and_their_memory(server: str, workers: int, told: str) -> None:
    with Client(server) as client:
        info = replace(client.server_info(), workers=workers, worker_bytes=200 << 20)
    console = Console(width=200, record=True, file=StringIO())
    console.print(tables.server_info(info))
    assert told in console.export_text()


def test_the_shell_and_the_sdk_have_one_default(server: str, pictures: Path) -> None:
    files = [turned(pictures / "astronaut.png"), pictures / "mirrored.png"]
    said = json.loads(facenet(server, "compare", *files, "--json").stdout)
    with Client(server) as client:
        (result,) = client.compare([(files[0], files[1])])
        (found,) = client.embed([files[0]])
    assert said["distance"] == pytest.approx(result.distance, abs=2e-6)
    assert said["probability"] == pytest.approx(result.probability, abs=1e-5)
    (record,) = map(json.loads, facenet(server, "embed", files[0], "--json").stdout.splitlines())
    assert record["exif_orientation"] == 3
    np.testing.assert_allclose(record["faces"][0]["embedding"], np.asarray(found.faces[0].embedding), atol=1e-5)


def test_reference_is_what_the_original_does(server: str, pictures: Path) -> None:
    files = [pictures / "astronaut.png", pictures / "hopper.png"]
    said = json.loads(facenet(server, "compare", *files, "--json", "--reference").stdout)
    with Client(server) as client:
        a, b = client.embed(files, margin_px=44, apply_exif_orientation=False)
        (result,) = client.compare([(a.faces[0], b.faces[0])])
        (same,) = client.compare([(files[0], files[1])])
    assert said["distance"] == pytest.approx(result.distance, abs=2e-6)
    assert said["distance"] != pytest.approx(same.distance, abs=1e-4)
    upside_down = turned(pictures / "astronaut.png")
    assert "no face" in facenet(server, "compare", upside_down, files[1], "--reference").stderr


def turned(file: Path) -> Path:
    """The photo as a phone writes it that was held upside down."""
    exif = Image.Exif()
    exif[0x0112] = 3
    path = file.with_stem(f"{file.stem} turned")
    with Image.open(file) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(path, exif=exif)
    return path


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [(), ("embed",), ("evaluate", "lfw"), ("health",)], ids=" ".join)
def test_help_has_a_short_flag(command: tuple[str, ...], flag: str) -> None:
    ended = CliRunner().invoke(facenet_command, [*command, flag])
    assert (ended.exit_code, ended.output.startswith("Usage:")) == (0, True)


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(facenet_command, ["--version"]).output.split()[-1] == version("facenet-serve")


def test_options_of_the_server_may_stand_after_the_command(server: str, pictures: Path) -> None:
    ended = facenet("127.0.0.1:1", "detect", pictures / "hopper.png", "--json", "--server", server, "--timeout-s", 30)
    assert ended.returncode == 0, ended.stderr
    assert "a token goes over TLS only" in facenet(server, "info", "--token", "secret").stderr


def test_health_is_a_probe(server: str) -> None:
    well, gone = facenet(server, "health"), facenet("127.0.0.1:1", "health", "--wait-s", 0.2)
    assert (well.returncode, well.stdout) == (0, "serving\n")
    assert (gone.returncode, gone.stdout) == (3, "")
    assert "not serving: 127.0.0.1:1" in gone.stderr


def test_stats_tell_the_servers_work(server: str, pictures: Path) -> None:
    facenet(server, "embed", pictures)
    told = facenet(server, "stats").stdout
    assert "items accepted" in told
    assert "(0 stalled)" in told
    assert "20170512-110547" in told
    since_start, lately = (
        json.loads(facenet(server, "stats", "--json", *over).stdout) for over in ((), ("--over-s", 0.1))
    )
    assert sum(stage["rows"] for stage in since_start["stages"]) > 0
    assert 0.1 <= lately["uptime_s"] < since_start["uptime_s"]
    assert since_start["admission"]["stalled_streams"] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["detect", "hopper.png"], 0),
        (["detect", "nowhere.png"], 1),
        (["detect"], 2),
        (["detect", "hopper.png", "--json", "--csv"], 2),
        (["detect", "."], 0),
        (["embed", "hopper.png", "--model", "nobody"], 2),
        (["detect", "hopper.png", "--server", "nonsense"], 2),
        (["bench", "--server", "127.0.0.1:1"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_codes_say_what_failed(
    server: str, pictures: Path, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    ended = facenet(server, *arguments)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_folder_without_photos_says_what_counts_as_one(server: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"none")
    ended = facenet(server, "detect", tmp_path)
    assert ended.returncode == 2
    assert "files that are no photos by their names (1)" in ended.stderr
    assert ".jpg" in ended.stderr


def test_no_server_is_one_clear_line(pictures: Path) -> None:
    ended = facenet("127.0.0.1:1", "detect", pictures)
    assert ended.returncode == 3
    assert "UNAVAILABLE" in ended.stderr
    assert "Traceback" not in ended.stderr
