"""Converting the published FaceNet releases, and models of one's own: small graphs of the same form."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from facenet_convert import releases, verify, weights
from facenet_convert.__main__ import main
from facenet_convert.errors import SourceError
from tiny_release import a_release, zipped

# ---- the command, on small graphs of the same form ----


def convert(source: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["facenet", "--source", str(source), "--out", str(out), *options])


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is no release of davidsandberg/facenet."""
    return a_release(tmp_path_factory.mktemp("small") / "mine", "mine")


def metadata_of(path: Path) -> dict[str, str]:
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("preprocess", releases.PREPROCESSINGS)
@pytest.mark.parametrize("holder", ["folder", "zip", "pb"])
def test_a_model_of_ones_own_converts_from_whatever_holds_it(
    holder: str, preprocess: str, small: Path, tmp_path: Path
) -> None:
    source = {"folder": small, "pb": small / "mine.pb", "zip": tmp_path / "mine.zip"}[holder]
    if holder == "zip":
        zipped(small, source)
    ended = convert(source, tmp_path / "out", "--preprocess", preprocess)
    assert ended.exit_code == 0, ended.output
    found = metadata_of(tmp_path / "out" / "facenet-mine.onnx")
    digest = hashlib.sha256((small / "mine.pb").read_bytes()).hexdigest()
    assert digest in ended.output
    assert found["source_sha256"] == digest
    assert (found["name"], found["dimension"], found["preprocessing"]) == ("mine", "8", preprocess)
    assert "calibration" not in found


@pytest.mark.timeout(120)
def test_the_last_checkpoint_of_a_folder_gives_the_frozen_network_and_is_converted_once(
    small: Path, tmp_path: Path
) -> None:
    options = ["--preprocess", "fixed", "--form"]
    assert convert(small, tmp_path / "frozen", *options, "pb").exit_code == 0
    assert "max |Δ|" in convert(small, tmp_path / "restored", *options, "checkpoint").output
    assert "already converted" in convert(small, tmp_path / "restored", *options, "checkpoint").output
    pixels = np.random.default_rng(2).integers(0, 256, (3, 160, 160, 3), np.uint8)
    answers = [
        verify.onnx_runner(onnx.load(tmp_path / form / "facenet-mine.onnx"))(pixels) for form in ("frozen", "restored")
    ]
    np.testing.assert_allclose(answers[0]["embedding"], answers[1]["embedding"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param([], "--preprocess fixed", id="unknown name, no preprocessing"),
        pytest.param(["--name", "20180402-114759"], "8 dimensions, that release's 512", id="wrong dimension"),
        pytest.param(
            ["--name", "20180402-114759", "--preprocess", "prewhiten"],
            "trained with --preprocess fixed",
            id="wrong way",
        ),
        pytest.param(["--name", "../mine", "--preprocess", "fixed"], "cannot be a model's name", id="a path as a name"),
    ],
)
def test_a_doubtful_release_is_one_clear_line_and_leaves_no_model(
    options: list[str], reason: str, small: Path, tmp_path: Path
) -> None:
    ended = convert(small, tmp_path / "out", *options)
    assert ended.exit_code == 1
    assert reason in ended.output
    assert not (tmp_path / "out").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "form", "reason"),
    [
        pytest.param(lambda folder: cut(folder / "x.pb"), "pb", "truncated", id="truncated graph"),
        pytest.param(lambda folder: cut(folder / "model-x.meta"), "checkpoint", "truncated", id="truncated meta"),
        pytest.param(
            lambda folder: cut(folder / "model-x.ckpt-10.index"), "checkpoint", "cannot read", id="truncated index"
        ),
        pytest.param(
            lambda folder: cut(folder / "model-x.ckpt-10.data-00000-of-00001"),
            "checkpoint",
            "cannot",
            id="truncated data",
        ),
        pytest.param(
            lambda folder: (folder / "model-x.ckpt-10.data-00000-of-00001").unlink(),
            "checkpoint",
            ".data",
            id="no data",
        ),
        pytest.param(lambda folder: (folder / "model-x.meta").unlink(), "checkpoint", "one .meta", id="no meta"),
        pytest.param(lambda folder: (folder / "y.pb").touch(), "pb", "x.pb, y.pb", id="two graphs"),
        pytest.param(lambda folder: (folder / "x.pb").write_bytes(b""), "pb", "not a FaceNet graph", id="empty graph"),
    ],
)
def test_a_damaged_source_is_one_clear_line_and_leaves_no_model(
    damage: Callable[[Path], Any], form: str, reason: str, tmp_path: Path
) -> None:
    folder = a_release(tmp_path / "x", "x")
    damage(folder)
    ended = convert(folder, tmp_path / "out", "--preprocess", "fixed", "--form", form)
    assert ended.exit_code == 1
    assert isinstance(ended.exception, SystemExit)
    assert reason in ended.output
    assert not (tmp_path / "out").exists()


def test_what_is_no_zip_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "20180402-114759.zip").write_bytes(b"not a zip")
    ended = convert(tmp_path / "20180402-114759.zip", tmp_path / "out")
    assert ended.exit_code == 1
    assert "no whole zip" in ended.output


# ---- which release it is ----


@pytest.mark.parametrize("name", releases.RELEASES)
@pytest.mark.parametrize("file_name", ["{}", "{}.pb", "{}.zip", "model-{}.meta"])
def test_a_release_is_known_by_the_names_of_its_files(name: str, file_name: str) -> None:
    release = releases.identify(["some folder", file_name.format(name)], "", None, None)
    assert release is releases.RELEASES[name]
    assert (release.dimension, release.preprocessing) == ((128, "prewhiten") if "2017" in name else (512, "fixed"))


def test_the_wheels_graph_is_known_by_its_content() -> None:
    release = releases.identify(["renamed.pb"], weights.FACENET_20180408.sha256, None, None)
    assert release is releases.CASIA_20180408


def test_a_model_made_from_a_release_is_not_that_release() -> None:
    with pytest.raises(SourceError, match="no known release"):
        releases.identify(["20180402-114759-finetuned.pb"], "", None, None)
    release = releases.identify(["20180402-114759.pb"], "", "finetuned", "fixed")
    assert release.name == "finetuned"


def test_names_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SourceError, match="20180402-114759 and 20180408-102900"):
        releases.identify(["20180402-114759", "20180408-102900.pb"], "", None, None)


# ---- downloads ----


def test_a_download_that_fails_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("Too many users have viewed\nor downloaded this file recently")

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=refuse))
    command = ["facenet", "--download", "20180402-114759", "--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    ended = CliRunner().invoke(main, command)
    assert ended.exit_code == 1
    (line,) = ended.output.splitlines()
    assert "Too many users have viewed or downloaded" in line
    assert "https://drive.google.com/file/d/1EXPBSXwTaqrSC0OhUdXNmKSh9qJUQ55-" in line
    assert "--source 20180402-114759.zip" in line


def test_a_page_instead_of_a_zip_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def page(*, output: str, **_: object) -> None:
        Path(output).write_text("<html>quota exceeded</html>")

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=page))
    ended = CliRunner().invoke(main, ["facenet", "--download", "20170511-185253", "--cache", str(tmp_path)])
    assert ended.exit_code == 1
    assert "something else than the zip" in ended.output
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.timeout(120)
def test_a_download_is_fetched_once_by_its_published_id_and_then_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "20170512-110547"
    archive = zipped(a_release(tmp_path / name, name, dimension=128), tmp_path / "drive.zip")
    asked = []

    def download(*, id: str, output: str, quiet: bool) -> None:
        asked.append(id)
        Path(output).write_bytes(archive.read_bytes())

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
    command = ["facenet", "--download", name, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert "already converted" in CliRunner().invoke(main, command).output
    assert asked == ["0B5MzpY9kBtDVZ2RpVDYwWmxoSUk"]
    assert metadata_of(tmp_path / "out" / f"facenet-{name}.onnx")["preprocessing"] == "prewhiten"


@pytest.mark.parametrize("options", [["--name", "x"], ["--source", ".", "--download", "20180402-114759"]])
def test_options_that_describe_nothing_or_two_things_are_refused(options: list[str]) -> None:
    assert CliRunner().invoke(main, ["facenet", *options]).exit_code == 2
