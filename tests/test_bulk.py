"""Bulk runs on the stand-in networks: every image exactly once, whatever happens to the run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bulk_runs import COMMAND, OPTIONS, FakeEngine, blank, fake_engine, names, parts, photo, photos, rows, run
from conftest import ROOT
from facenet_bulk import BulkError, OtherRun
from facenet_bulk.engines import Done, OnImage
from facenet_bulk.engines.local import LocalEngine
from facenet_bulk.output import Output, Record
from fake_bulk_worker import CRASH, HANG, SLOW

TESTS = str(ROOT / "tests")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


def test_a_face_is_a_row_and_so_is_an_image_without_one_and_one_that_failed(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    photo(folder / "000.png", 20)
    photo(folder / "001.png", 60)
    blank(folder / "a blank one.png")
    (folder / "broken.jpg").write_bytes(b"no photo")
    tally = run(folder, tmp_path / "out", fake_engine())
    assert (tally.images, tally.faces, tally.without_face, tally.failed) == (4, 2, 1, {"UNSUPPORTED_FORMAT": 1})
    face, other, without, broken = rows(tmp_path / "out")
    assert names([face, other, without, broken]) == ["000.png", "001.png", "a blank one.png", "broken.jpg"]
    assert (face["face_index"], face["reason"], len(face["embedding"]), len(face["landmarks"])) == (0, None, 4, 10)
    assert (face["image_height"], face["image_width"], face["damaged"]) == (120, 160, False)
    assert face["box"] != other["box"]
    assert (without["face_index"], without["reason"], without["embedding"], without["image_height"]) == (
        None, None, None, 120,
    )  # fmt: skip
    assert (broken["face_index"], broken["reason"], broken["image_height"]) == (None, "UNSUPPORTED_FORMAT", None)
    assert broken["message"].startswith("not an image")
    assert all(len(row["image_sha256"]) == 64 for row in (face, other, without, broken))


def test_each_part_says_what_made_it(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    run(photos(tmp_path / "photos", 5), tmp_path / "out", model="colour")
    metadata = [pq.read_schema(part).metadata for part in parts(tmp_path / "out")]
    assert [each[b"facenet.model"] for each in metadata] == [b"colour", b"colour"]
    assert metadata[0][b"facenet.onnx_sha256"] == b"colour"
    assert b"mtcnn-pnet" in metadata[0][b"facenet.detector_sha256s"]


def test_a_second_run_does_what_is_missing_and_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 11), tmp_path / "out"
    run(folder, out)
    before, all_rows = {part: part.read_bytes() for part in parts(out)}, rows(out)
    assert len(before) == 3
    parts(out)[1].unlink()
    assert run(folder, out).images == 4
    assert rows(out) == all_rows
    after = {part: part.read_bytes() for part in parts(out)}
    assert [part.name for part in before if before[part] != after[part]] in ([], ["part-000001.parquet"])
    assert run(folder, out).images == 0


@pytest.mark.slow
def test_several_workers_give_the_same_rows_as_one(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 25)
    run(folder, tmp_path / "one", fake_engine())
    run(folder, tmp_path / "three", fake_engine(3))
    assert rows(tmp_path / "one") == rows(tmp_path / "three")


def test_an_image_that_ends_its_worker_fails_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 7)
    photo(folder / "003x.png", ending=CRASH)
    photo(folder / "005x.png", ending=CRASH)
    tally = run(folder, tmp_path / "out", fake_engine(2))
    assert tally.failed == {"WORKER_CRASHED": 2}
    failed = [row for row in rows(tmp_path / "out") if row["reason"]]
    assert names(failed) == ["003x.png", "005x.png"]
    assert tally.faces == 7


@pytest.mark.slow
def test_an_image_that_never_ends_fails_after_its_limit(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 3)
    photo(folder / "001x.png", ending=HANG)
    tally = run(folder, tmp_path / "out", fake_engine(image_limit_s=0.5))
    assert (tally.faces, tally.failed) == (3, {"WORKER_CRASHED": 1})


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="make the models with"):
        run(photos(tmp_path / "photos", 1), tmp_path / "out", LocalEngine(tmp_path / "nowhere", "cpu", 1))


def test_workers_that_end_by_themselves_again_and_again_end_the_run(tmp_path: Path) -> None:
    engine = fake_engine()
    engine._command = (sys.executable, "-c", "import sys; sys.stdin.readline()")
    with pytest.raises(BulkError, match="again and again"):
        run(photos(tmp_path / "photos", 2), tmp_path / "out", engine)


# ---- another source, another model ----


def test_a_source_that_has_changed_is_told_and_nothing_is_mixed(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 6), tmp_path / "out"
    run(folder, out)
    parts(out)[1].unlink()
    photo(folder / "005.png", 90, ending=b"more")
    with pytest.raises(OtherRun, match=r"005\.png has changed.*--as-listed"):
        run(folder, out)
    tally = run(folder, out, as_listed=True)
    assert (tally.faces, tally.failed) == (1, {"SOURCE_CHANGED": 1})


@pytest.mark.parametrize("what", ["new", "gone"])
def test_photos_that_come_and_go_are_told(tmp_path: Path, what: str) -> None:
    folder, out = photos(tmp_path / "photos", 6), tmp_path / "out"
    run(folder, out)
    if what == "new":
        photo(folder / "zzz.png")
    else:
        (folder / "005.png").unlink()
    with pytest.raises(OtherRun, match="nothing"):
        run(folder, out)


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"model": "other"}, r"model\.name colour, now other"),
        ({"options": {**OPTIONS, "min_face_px": 40}}, r"options\.min_face_px None, now 40"),
    ],
)
def test_a_run_with_another_model_or_other_options_is_refused(tmp_path: Path, plan: dict[str, Any], told: str) -> None:
    folder, out = photos(tmp_path / "photos", 2), tmp_path / "out"
    run(folder, out, model="colour")
    with pytest.raises(OtherRun, match=told):
        run(folder, out, **{"model": "colour", **plan})


def test_a_run_with_another_source_is_refused(tmp_path: Path) -> None:
    run(photos(tmp_path / "photos", 2), tmp_path / "out")
    with pytest.raises(OtherRun, match=r"source\.place"):
        run(photos(tmp_path / "others", 2), tmp_path / "out")


def test_a_folder_that_holds_something_else_is_no_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear diary")
    with pytest.raises(BulkError, match=r"holds diary\.txt"):
        run(photos(tmp_path / "photos", 2), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["diary.txt"]


def test_verify_finds_an_image_whose_bytes_are_others_though_its_size_and_time_are_the_same(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 3), tmp_path / "out"
    run(folder, out)
    run(folder, out, verify=True)
    changed = folder / "001.png"
    status, data = changed.stat(), changed.read_bytes()
    changed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(folder, out).images == 0
    with pytest.raises(OtherRun, match=r"001\.png is not the image that was answered"):
        run(folder, out, verify=True)


def test_parts_with_failures_that_may_pass_are_done_again_where_that_is_asked_for(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 8), tmp_path / "out"
    (folder / "000a.jpg").write_bytes(b"no photo, at any time")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{each}\n" for each in [*sorted(folder.iterdir()), tmp_path / "later.png"]))
    assert run(listed, out).failed == {"UNSUPPORTED_FORMAT": 1, "UNREADABLE": 1}
    photo(tmp_path / "later.png")
    again = run(listed, out, redo_failed=True, as_listed=True)
    assert again.images == 2  # its part alone
    assert again.failed == {"SOURCE_CHANGED": 1}


def test_a_run_stops_where_nothing_at_all_can_be_read(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 30), tmp_path / "out"
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{each}\n" for each in sorted(folder.iterdir())))
    run(listed, out, shard_images=30)
    parts(out)[0].unlink()
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(BulkError, match="mounted"):
        run(listed, out, as_listed=True)
    assert not parts(out)


def test_photos_that_were_never_there_are_rows_however_many(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{tmp_path}/{number}.jpg\n" for number in range(30)))
    assert run(listed, tmp_path / "out", shard_images=30).failed == {"UNREADABLE": 30}


def test_an_out_that_a_worker_does_not_find_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 2), tmp_path / "out"
    run(folder, out)
    parts(out)[0].unlink()

    class Misled(FakeEngine):
        def shards(self, record: Record, out: str, numbers: Sequence[int], on_image: OnImage) -> Iterator[Done]:
            return super().shards(record, str(tmp_path / "elsewhere"), numbers, on_image)

    engine = Misled(Path("models"), "cpu", 1, command=COMMAND)
    with pytest.raises(BulkError, match="elsewhere"):  # as on a node of a cluster that has no such place
        run(folder, out, engine)


@pytest.mark.parametrize("formats", ["JPG", "JPEG,PGN"])
def test_a_format_that_there_is_not_is_told_before_anything_is_listed(tmp_path: Path, formats: str) -> None:
    with pytest.raises(BulkError, match="unknown image formats"):
        run(photos(tmp_path / "photos", 1), tmp_path / "out", LocalEngine(tmp_path, "cpu", 1, formats))
    assert not (tmp_path / "out" / "_bulk" / "run.json").exists()


# ---- ends ----


@contextmanager
def bulk_process(folder: Path, out: Path) -> Iterator["subprocess.Popen[str]"]:
    """A run in a process of its own, which has written a part."""
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]; from bulk_runs import *\n"
        "with fake_engine(2) as e, begun(Plan(source=find(sys.argv[1]), out=sys.argv[2], options=OPTIONS,"
        " model='colour', shard_images=4), e, Walk(), print) as r:\n"
        "    for part in r.parts(lambda count, reason: None): print('part', part.shard, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(out), TESTS, str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("part") for line in process.stdout)
            yield process
        finally:
            process.kill()


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Photos that take a while."""
    folder = tmp_path / "photos"
    for number in range(20):
        photo(folder / f"{number:03}.png", 20 + number, SLOW)
    return folder


def of_session(session: int) -> set[int]:
    """The processes of a session that are there."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.add(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes")
def test_a_run_that_is_killed_leaves_whole_parts_alone_and_a_second_one_ends_it(tmp_path: Path, slow: Path) -> None:
    out = tmp_path / "out"
    with bulk_process(slow, out) as process:
        process.send_signal(signal.SIGKILL)
    before = {part: part.read_bytes() for part in parts(out)}
    assert 0 < len(before) < 5
    end_s = time.monotonic() + 10
    while of_session(process.pid) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not of_session(process.pid)  # its workers have ended with it
    tally = run(slow, out, fake_engine(2))
    assert tally.images == 20 - 4 * len(before)
    assert all(part.read_bytes() == data for part, data in before.items())
    assert names(rows(out)) == [f"{number:03}.png" for number in range(20)]
    assert not list(out.glob("**/.bulk-unfinished*"))
    run(slow, tmp_path / "whole", fake_engine(2))
    assert rows(out) == rows(tmp_path / "whole")


@pytest.mark.slow
def test_two_runs_at_once_are_refused(tmp_path: Path, slow: Path) -> None:
    out = tmp_path / "out"
    with bulk_process(slow, out), pytest.raises(BulkError, match="another run is at work"):
        run(slow, out)


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    folder, out = photos(tmp_path / "photos", 1), tmp_path / "out"
    run(folder, out)
    record = out / "_bulk" / "run.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(BulkError, match="another version"):
        run(folder, out)
    record.write_text("{")
    with pytest.raises(BulkError, match="cannot be read"):
        Output(str(out)).read_record()
