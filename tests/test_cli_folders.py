"""``facenet`` on folders as people have them, and cut short: every answer there is, each once."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from commandline import command_of, facenet
from conftest import server_process
from facenet_client import Detection, Embedding, Face, ModelInfo
from facenet_client.cli import results, tables
from facenet_client.cli.console import Progress, shown, uninterrupted
from facenet_client.cli.files import fitting, portable, save_png
from facenet_client.cli.photos import HIDDEN, KNOWN, NESTED, OTHER, OUTSIDE, SPECIAL, Walk
from PIL import Image

from chaos.messy import LINE_END, NOT_UTF8, mess

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8, pipes and links are Linux's"),
]


@pytest.fixture(scope="session")
def photo(astronaut: np.ndarray) -> bytes:
    """A small file with one face."""
    file = io.BytesIO()
    Image.fromarray(astronaut[:256, 128:384]).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def messy(tmp_path: Path, photo: bytes) -> tuple[Path, dict[str, set[str]]]:
    """people/bob, with odd entries, and their names by what becomes of them."""
    folder = tmp_path / "people" / "bob"
    folder.mkdir(parents=True)
    return folder, mess(folder, photo)


def within(folder: Path, paths: Sequence[str]) -> Counter[str]:
    """The names of paths as a text file has them, below a folder, and how often each is there."""
    return Counter(path.removeprefix(f"{folder}/") for path in paths)


def counted(names: set[str]) -> Counter[str]:
    return Counter(map(portable, names))


# ---- the walk ----


def test_a_walk_finds_photos_whatever_their_names_and_passes_over_the_rest_with_reasons(
    messy: tuple[Path, dict[str, set[str]]],
) -> None:
    folder, names = messy
    walk = Walk()
    found = {str(path.relative_to(folder)) for path in walk.photos([folder])}
    assert found == names["answered"] | names["failed"]
    reasons = {str(path.relative_to(folder)): reason for path, reason in walk.passed_over}
    assert set(reasons) == names["passed over"]
    assert {reasons[name] for name in (".DS_Store", "._photo.jpg", "Thumbs.db", ".thumbnails")} == {HIDDEN}
    assert {reasons[name] for name in ("notes.txt", "README", "clip.mov")} == {OTHER}
    assert (reasons["pipe.jpg"], reasons["up"]) == (SPECIAL, KNOWN)


def test_a_file_that_is_named_counts_whatever_its_name(tmp_path: Path, photo: bytes) -> None:
    (tmp_path / ".hidden.dat").write_bytes(photo)
    assert Walk().photos([tmp_path / ".hidden.dat"]) == [tmp_path / ".hidden.dat"]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_file_without_a_suffix_counts_by_its_first_bytes(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "scan", form)
    assert Walk().photos([tmp_path]) == [tmp_path / "scan"]


def test_links_are_followed_and_take_nothing_from_the_folders_they_lead_to(tmp_path: Path, photo: bytes) -> None:
    (tmp_path / "albums" / "real").mkdir(parents=True)
    (tmp_path / "albums" / "real" / "a.jpg").write_bytes(photo)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").write_bytes(photo)
    (tmp_path / "albums" / "a link").symlink_to(tmp_path / "albums" / "real")
    (tmp_path / "albums" / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "albums")
    walk = Walk()
    found = [str(path.relative_to(tmp_path / "albums")) for path in walk.photos([tmp_path / "albums"])]
    assert found == ["elsewhere/b.jpg", "real/a.jpg"]
    assert {path.name for path, _ in walk.passed_over} == {"a link", "back"}


def test_people_are_the_folders_of_a_folder(tmp_path: Path, photo: bytes) -> None:
    for name in ("bob/1.jpg", "bob/more/2.jpg", "eve/1.png", "loose.jpg", ".cache/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photo)
    (tmp_path / "alias").symlink_to(tmp_path / "bob")
    walk = Walk()
    assert walk.people(tmp_path) == {"alias": [], "bob": [tmp_path / "bob/1.jpg"], "eve": [tmp_path / "eve/1.png"]}
    assert {(path.name, reason) for path, reason in walk.passed_over} == {
        ("loose.jpg", OUTSIDE), ("more", NESTED), (".cache", HIDDEN), ("alias", KNOWN),
    }  # fmt: skip


def test_a_folder_that_cannot_be_read_is_told_and_the_rest_is_walked(tmp_path: Path, photo: bytes) -> None:
    for name in ("bob", "eve"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(photo)
    (tmp_path / "bob").chmod(0)
    try:
        if os.access(tmp_path / "bob", os.R_OK):
            pytest.skip("this user may read everything")
        walk = Walk()
        assert walk.people(tmp_path)["eve"] == [tmp_path / "eve" / "1.jpg"]
        assert walk.unreadable == [(tmp_path / "bob", "Permission denied")]
    finally:
        (tmp_path / "bob").chmod(0o700)


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    walk = Walk()
    assert list(walk._entries(tmp_path / "gone")) == []
    assert walk.unreadable == [(tmp_path / "gone", "No such file or directory")]


# ---- names ----


@pytest.mark.parametrize("stem", ["人" * 85, "é" * 127 + "x", "p" * 255, "p" * 251])
def test_a_name_that_is_too_long_is_cut_to_what_a_file_system_takes(tmp_path: Path, stem: str) -> None:
    name = fitting(stem, "_12.png")
    assert name.endswith("_12.png")
    assert name == fitting(stem, "_12.png") != fitting(f"{stem}x", "_12.png")
    save_png(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert fitting("short", "_12.png") == "short_12.png"


def test_a_name_is_shown_on_one_line() -> None:
    assert shown(LINE_END) == "two\\nlines.jpg"
    assert shown(NOT_UTF8) == "caf\\udce9.jpg"
    assert shown("人 é\u3000x\x1b[2J") == "人 é\u3000x\\x1b[2J"


# ---- every command ----


def test_detect_answers_every_photo_of_a_messy_folder(server: str, messy: tuple[Path, dict[str, set[str]]]) -> None:
    folder, names = messy
    ended = facenet(server, "detect", folder, "--json")
    records = list(map(json.loads, ended.stdout.splitlines()))
    assert ended.returncode == 1
    assert within(folder, [record["path"] for record in records if record["faces"]]) == counted(names["answered"])
    assert within(folder, [record["path"] for record in records if record["error"]]) == counted(names["failed"])
    assert "hidden or system files (5), files that are no photos by their names (3)" in ended.stderr
    assert f"{folder}/broken.jpg: not an image" in ended.stderr
    assert "-v names them" in ended.stderr
    assert "Thumbs.db" not in ended.stderr
    assert "Thumbs.db" in facenet(server, "detect", folder, "--json", "-v").stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stdout_of_any_encoding_takes_every_name(
    server: str, messy: tuple[Path, dict[str, set[str]]], encoding: str
) -> None:
    folder, names = messy
    for form in ([], ["--csv"], ["--json"]):
        ended = facenet(server, "detect", folder, *form, environment={"PYTHONIOENCODING": encoding})
        assert ended.returncode == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        assert len(ended.stdout.splitlines()) >= len(names["answered"])


def test_piped_text_names_every_photo_in_full(server: str, messy: tuple[Path, dict[str, set[str]]]) -> None:
    folder, names = messy
    narrow = {"COLUMNS": "40"}
    lines = facenet(server, "detect", folder, environment=narrow).stdout.splitlines()
    for name in names["answered"] | names["failed"]:
        assert any(line.startswith(shown(folder / name)) for line in lines)
    for command in ("cluster", "identify"):
        arguments = [folder.parent, folder] if command == "identify" else [folder]
        said = facenet(server, command, *arguments, environment=narrow).stdout
        assert all(shown(folder / name) in said for name in names["answered"])


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "npz"])
def test_a_second_run_into_a_file_asks_for_what_failed_alone(
    server: str, messy: tuple[Path, dict[str, set[str]]], tmp_path: Path, photo: bytes, suffix: str
) -> None:
    folder, names = messy
    out = tmp_path / "results" / f"faces.{suffix}"
    assert facenet(server, "embed", folder, "--out", out).returncode == 1
    before = paths_in(out)
    (folder / "broken.jpg").write_bytes(photo)
    again = facenet(server, "embed", folder, "--out", out)
    assert f"{len(names['answered'])} were in {out} before" in again.stderr
    assert f"{len(names['failed'])} images: 1 faces" in again.stderr
    for found, answered in ((before, names["answered"]), (paths_in(out), names["answered"] | {"broken.jpg"})):
        assert within(folder, found) == counted(answered)


def paths_in(out: Path) -> list[str]:
    """Of each image with an answer in a file of results, however many faces."""
    if out.suffix == ".npz":
        with np.load(out) as arrays:
            assert arrays["embeddings"].shape == (len(arrays["paths"]), 128)
            np.testing.assert_allclose(np.linalg.norm(arrays["embeddings"], axis=1), 1, atol=1e-5)
            assert arrays["landmarks"].shape == (len(arrays["paths"]), 5, 2)
            return arrays["images"][arrays["errors"] == ""].tolist()  # type: ignore[no-any-return]
    if out.suffix == ".csv":
        with out.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if not row["error"]]
        assert all(len(row) == len(rows[0]) and row["embedding_127"] for row in rows)
        return [row["path"] for row in rows if row["face"] == "0"]
    records = map(json.loads, out.read_text().splitlines())
    return [record["path"] for record in records if record["error"] is None]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", "no JSON\n", "holds other results (line 1)"),
        ("a.csv", "name,age\nbob,4\n", "holds other results (its columns)"),
        ("a.npz", "no archive", "holds other results"),
        ("a.jsonl", '{"path": "x", "name": "bob", "error": null}\n', "holds other results (line 1)"),
        ("a.npz", "\x93NUMPY", "holds other results"),
        ("a.txt", "", "its suffix must be one of .jsonl, .csv, .npz"),
    ],
)
def test_a_file_of_other_results_is_left_as_it_is(
    server: str, tmp_path: Path, photo: bytes, name: str, content: str, told: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / name).write_text(content)
    ended = facenet(server, "embed", tmp_path / "photo.jpg", "--out", tmp_path / name)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert (tmp_path / name).read_text() == content


def test_a_file_of_another_command_or_threshold_is_refused(server: str, tmp_path: Path, photo: bytes) -> None:
    folder = tmp_path / "people" / "bob"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(photo)
    for suffix in ("jsonl", "csv"):
        out = tmp_path / f"names.{suffix}"
        identify = ("identify", tmp_path / "people", tmp_path / "people", "--out", out)
        assert facenet(server, *identify).returncode == 0
        assert "method identify, now detect_stream" in facenet(server, "detect", folder, "--out", out).stderr
        assert ", now 0.5" in facenet(server, *identify, "--threshold", 0.5).stderr
        assert "apply_exif_orientation True, now False" in facenet(server, *identify, "--no-exif").stderr
        assert "1 were in" in facenet(server, *identify).stderr
        (folder / "2.jpg").write_bytes(photo)
        assert "gallery" in facenet(server, *identify).stderr
        (folder / "2.jpg").unlink()


def test_an_empty_file_and_one_behind_a_link_are_written(server: str, tmp_path: Path, photo: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    for suffix in ("jsonl", "csv", "npz"):
        (tmp_path / f"faces.{suffix}").touch()
        (tmp_path / f"link.{suffix}").symlink_to(tmp_path / f"faces.{suffix}")
        assert facenet(server, "embed", tmp_path / "photo.jpg", "--out", tmp_path / f"link.{suffix}").returncode == 0
        assert (tmp_path / f"link.{suffix}").is_symlink()
        assert paths_in(tmp_path / f"faces.{suffix}") == [str(tmp_path / "photo.jpg")]


@pytest.mark.parametrize("name", ["b.jpg", LINE_END])
def test_a_csv_that_ends_within_a_row_is_continued(tmp_path: Path, name: str) -> None:
    out, files = tmp_path / "faces.csv", [tmp_path / "a.jpg", tmp_path / name]
    answer = Detection((Face((0, 0, 1, 1), 1.0, ((0.0, 0.0),) * 5),) * 2, 9, 9)
    form: Any = {"as_json": False, "as_csv": False, "out": out}
    with results.opened(files, tables.detections(), {}, **form) as opened:
        for file in files:
            opened.write(file, answer)
    whole = out.read_bytes()
    last_image = whole.index(b"a.jpg", whole.index(b"a.jpg") + 1) + 200  # somewhere in the second row
    inside = [
        size
        for size in range(last_image, len(whole))
        if whole[size - 1 : size] != b"\n" or b"two" in whole[size - 9 : size]
    ]
    for size in inside:
        out.write_bytes(whole[:size])
        with results.opened(files, tables.detections(), {}, **form) as opened:
            for file in opened.missing:
                opened.write(file, answer)
        with out.open(newline="") as text:
            assert Counter(row[0] for row in csv.reader(text)) == {"path": 1} | {str(file): 2 for file in files}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_answer_that_was_cut_short_is_asked_for_again(
    server: str, tmp_path: Path, photo: bytes, suffix: str
) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(photo)
    out = tmp_path / f"faces.{suffix}"
    assert facenet(server, "embed", tmp_path, "--out", out).returncode == 0
    out.write_bytes(out.read_bytes()[:-40])
    assert re.search("[12] were in", facenet(server, "embed", tmp_path, "--out", out).stderr)
    assert within(tmp_path, paths_in(out)) == Counter(["a.jpg", "b.jpg", "c.jpg"])


def test_an_image_whose_rows_were_cut_short_is_asked_for_again(
    server: str, tmp_path: Path, astronaut: np.ndarray
) -> None:
    Image.fromarray(np.hstack([astronaut, astronaut])).save(tmp_path / "two.jpg")
    out = tmp_path / "faces.csv"
    assert facenet(server, "detect", tmp_path, "--out", out).returncode == 0
    whole = out.read_bytes()
    assert whole.count(b"two.jpg") >= 2
    out.write_bytes(whole[:-40])
    assert facenet(server, "detect", tmp_path, "--out", out).returncode == 0
    assert out.read_bytes() == whole


def test_align_does_each_photo_once_and_tells_twins_and_what_was_there(
    server: str, messy: tuple[Path, dict[str, set[str]]], tmp_path: Path, photo: bytes
) -> None:
    folder, names = messy
    (folder / "scan.webp").write_bytes(photo)
    Image.new("RGB", (9, 9)).save(folder / "PHOTO.png")
    out = tmp_path / "out"
    first = facenet(server, "align", folder.parent, out, "-v")
    crops = sorted(path.name for path in out.rglob("*.png"))
    assert len(crops) == len(names["answered"]) - 1  # all but the one in a folder within the person's
    assert "scan.webp" in first.stderr
    assert "another one's" in first.stderr
    assert not list(out.rglob(".unfinished*"))
    again = facenet(server, "align", folder.parent, out)
    assert f"{len(crops)} images were aligned before" in again.stderr
    assert "Number of successfully aligned images: 0" in again.stdout
    assert sorted(path.name for path in out.rglob("*.png")) == crops


# ---- cut short ----


class Ended(NamedTuple):
    code: int
    out: str
    error: str


def run_until(lines: int, server: str, *arguments: object, then: Callable[["subprocess.Popen[str]"], None]) -> Ended:
    """Run a command; once its stdout has so many lines, do something to it, and read it to its end."""
    # A shell's background jobs, and what they start, would take no Ctrl-C.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command, environment = command_of(server, *arguments, before=heard)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        with process.stdout as out:
            said = [out.readline() for _ in range(lines)]
            then(process)
            said.append(out.read())
        process.wait(60)
        errors.seek(0)
        return Ended(process.returncode, "".join(said), errors.read())


@pytest.fixture
def many(tmp_path: Path, photo: bytes) -> Path:
    """More photos than are answered at once."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:03d}.jpg").write_bytes(photo)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_answered_before_an_interrupt_is_kept(server: str, many: Path, number: int) -> None:
    ended = run_until(3, server, "detect", many, "--json", then=lambda process: process.send_signal(number))
    records = list(map(json.loads, ended.out.splitlines()))
    assert ended.code == 130
    assert 3 <= len(records) < 600
    told = re.search(r"cut short: (\d+) of 600 images were done", ended.error)
    assert told
    assert int(told[1]) in (len(records), len(records) - 1)  # the last one may not be counted yet
    assert "Traceback" not in ended.error


def test_ctrl_c_waits_for_what_belongs_together() -> None:
    done = []

    def interrupted() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["all"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_folder_that_cannot_be_written_costs_its_own_crops(server: str, tmp_path: Path, photo: bytes) -> None:
    for name in ("ann", "bob"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.jpg").write_bytes(photo)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ann").write_bytes(b"a file")
    ended = facenet(server, "align", tmp_path / "in", tmp_path / "out")
    assert ended.returncode == 1
    assert "Number of successfully aligned images: 1" in ended.stdout
    assert f"{tmp_path / 'in' / 'ann' / '1.jpg'}: " in ended.stderr


def test_a_name_that_no_file_can_have_costs_itself_alone(server: str, tmp_path: Path, photo: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    ended = facenet(server, "detect", tmp_path / "photo.jpg", f"{'a' * 300}.jpg", "--json")
    good, bad = map(json.loads, ended.stdout.splitlines())
    assert (ended.returncode, good["error"], bad["error"]["reason"]) == (1, None, "UNUSABLE_INPUT")


def test_a_photo_that_is_named_twice_is_answered_once(
    server: str, tmp_path: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    monkeypatch.chdir(tmp_path)
    ended = facenet(server, "detect", "photo.jpg", tmp_path, "./photo.jpg", "--json")
    assert len(ended.stdout.splitlines()) == 1


def test_drawings_of_a_continued_run_lie_beside_the_earlier_ones(server: str, tmp_path: Path, photo: bytes) -> None:
    for name in ("ann", "bob"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.jpg").write_bytes(photo)
    (tmp_path / "in" / "bob" / "1.png").write_bytes(photo)
    drawn = ("--out", tmp_path / "faces.jsonl", "--draw", tmp_path / "drawn")
    for part in (tmp_path / "in" / "ann", tmp_path / "in"):
        assert facenet(server, "detect", part, *drawn).returncode == 0
    names = sorted(str(path.relative_to(tmp_path / "drawn")) for path in (tmp_path / "drawn").rglob("*.png"))
    assert names == ["1.faces.png", "bob/1.faces.2.png", "bob/1.faces.png"]


def test_an_interrupted_archive_has_what_was_answered(tmp_path: Path) -> None:
    out, files = tmp_path / "faces.npz", [tmp_path / name for name in ("a.jpg", "b.jpg")]
    embedding = Embedding(np.eye(1, 4, dtype=np.float32)[0], "m")
    answer = Detection((Face((0, 0, 1, 1), 1.0, ((0.0, 0.0),) * 5, embedding),), 9, 9)

    def run() -> list[Path]:
        with results.opened(files, tables.detections(model("m", 4)), {}, as_json=False, as_csv=False, out=out) as found:
            found.write(found.missing[0], answer)
            if len(found.missing) > 1:
                raise KeyboardInterrupt
            return list(found.missing)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == files[1:]
    with np.load(out) as arrays:
        assert arrays["images"].tolist() == arrays["paths"].tolist() == list(map(str, files))


def model(name: str, dimension: int) -> ModelInfo:
    return ModelInfo(name, "embedder", "", "", "", "", 160, dimension, 0.0, 0.0, None, "fp32", ())


def test_what_was_answered_before_a_server_was_lost_is_kept_and_the_rest_is_answered_later(
    server: str, models: Path, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "faces.csv"
    with server_process("--models", str(models)) as (target, first):
        ended = run_until(5, target, "detect", many, "--csv", "--timeout-s", 2, then=lambda _: first.kill())
    assert ended.code == 3
    assert "cut short" in ended.error
    out.write_text(ended.out)
    assert 4 <= len(set(csv_paths(out))) < 600
    again = facenet(server, "detect", many, "--out", out)
    assert again.returncode == 0, again.stderr
    assert Counter(csv_paths(out)) == Counter(str(many / f"{number:03d}.jpg") for number in range(600))


def csv_paths(out: Path) -> list[str]:
    with out.open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file) if row["face"] == "0"]


def test_without_a_terminal_a_run_says_where_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    said = ""
    with Progress(3, "photos", tell_s=0.001) as progress:
        progress.advance()
        while "1 of 3 photos" not in said:
            said += capfd.readouterr().err
    assert "/s" in said
