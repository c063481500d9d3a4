"""What a bulk run's SOURCE may be, and what becomes of sources that are odd."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_runs import names, parts, photo, photos, rows, run
from facenet_bulk import BulkError, OtherRun
from facenet_bulk.manifest import Manifest, write
from facenet_bulk.output import Output
from facenet_bulk.sources import Entry, find


def tar_of(path: Path, folder: Path, mode: str = "w") -> Path:
    """A tar file in WebDataset's layout."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
            about = tarfile.TarInfo(f"{file.stem}.json")
            about.size = 2
            archive.addfile(about, io.BytesIO(b"{}"))
    return path


def test_a_folder_is_walked_as_the_command_line_does(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 2)
    photo(folder / "inner" / "a.PNG")
    photo(folder / ".hidden" / "b.png")
    (folder / "notes.txt").write_text("no photo")
    run(folder, tmp_path / "out")
    assert names(rows(tmp_path / "out")) == ["000.png", "001.png", "a.PNG"]
    assert rows(tmp_path / "out")[0]["source"] == str(folder / "000.png")


def test_a_list_is_taken_as_it_stands_with_its_order_and_its_twins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path / "photos", 3)
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/002.png\nphotos/000.png\r\n\n{folder}/002.png\n{folder}/none.png\n")
    monkeypatch.chdir(tmp_path)
    run(listed, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert names(found) == ["002.png", "000.png", "002.png", "none.png"]
    assert [row["image_index"] for row in found] == [0, 1, 2, 3]
    assert (found[3]["reason"], found[3]["image_sha256"]) == ("UNREADABLE", None)


def test_names_of_any_bytes_are_read_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    odd = ["über.png", "two\nlines.png", os.fsdecode(b"latin-\xe9.png"), "hash#tag.png"]
    for name in odd:
        photo(folder / name)
    run(folder, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert all(row["reason"] is None for row in found)
    assert set(names(found)) == {"über.png", "two\nlines.png", "latin-\\udce9.png", "hash#tag.png"}


def test_a_pipe_in_a_list_fails_and_nothing_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tmp_path}/pipe.jpg\n{photo(tmp_path / 'a.png')}\n{tmp_path}\n")
    assert run(listed, tmp_path / "out").failed == {"UNREADABLE": 2}
    assert rows(tmp_path / "out")[1]["face_index"] == 0


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz")])
def test_tar_files_are_a_shard_each(tmp_path: Path, suffix: str, mode: str) -> None:
    (tmp_path / "tars").mkdir()
    for number, count in enumerate((3, 6)):
        tar_of(tmp_path / "tars" / f"{number}{suffix}", photos(tmp_path / f"photos{number}", count), mode)
    tally = run(tmp_path / "tars", tmp_path / "out")
    assert (tally.images, tally.faces, len(parts(tmp_path / "out"))) == (9, 9, 2)
    assert names(rows(tmp_path / "out"))[:4] == [
        f"0{suffix}#000.png", f"0{suffix}#001.png", f"0{suffix}#002.png", f"1{suffix}#000.png",
    ]  # fmt: skip


def test_a_tar_file_that_breaks_off_gives_what_it_has_and_a_row_that_says_so(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "whole.tar", photos(tmp_path / "photos", 5)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    tally = run(tmp_path / "cut.tar", tmp_path / "out")
    last = rows(tmp_path / "out")[-1]
    assert tally.faces > 0
    assert (last["source"], last["reason"]) == (str(tmp_path / "cut.tar"), "UNREADABLE")
    assert last["message"].startswith("the archive cannot be read on")


def test_a_tar_file_with_a_damaged_header_or_no_end_says_so(tmp_path: Path) -> None:
    data = bytearray(tar_of(tmp_path / "whole.tar", photos(tmp_path / "photos", 5)).read_bytes())
    second = data.index(b"001.png")
    data[second + 150] ^= 0xFF
    (tmp_path / "damaged.tar").write_bytes(data)
    run(tmp_path / "damaged.tar", tmp_path / "damaged")
    first, last = rows(tmp_path / "damaged")
    assert (names([first]), last["reason"]) == (["damaged.tar#000.png"], "UNREADABLE")
    third = (tmp_path / "whole.tar").read_bytes().index(b"002.png")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:third])
    assert run(tmp_path / "cut.tar", tmp_path / "cut").failed == {"UNREADABLE": 1}
    assert run(tmp_path / "whole.tar", tmp_path / "whole").failed == {}


def test_links_and_hidden_files_in_tar_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(photo(tmp_path / "a.png"), "a.png")
        archive.add(tmp_path / "a.png", "._a.png")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        archive.addfile(link)
    run(tmp_path / "a.tar", tmp_path / "out")
    assert [(Path(row["source"]).name, row["reason"]) for row in rows(tmp_path / "out")] == [
        ("a.tar#a.png", None), ("a.tar#link.png", "UNREADABLE"),
    ]  # fmt: skip
    run(tmp_path / "a.tar", tmp_path / "out", verify=True)


def test_a_tar_file_that_is_another_now_is_told_by_verify(tmp_path: Path) -> None:
    made = tar_of(tmp_path / "a.tar", photos(tmp_path / "photos", 3))
    run(made, tmp_path / "out")
    status = made.stat()
    photo(tmp_path / "photos" / "002.png", 99)
    tar_of(made, tmp_path / "photos")
    os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(OtherRun):
        run(made, tmp_path / "out", verify=True, as_listed=True)


def test_a_parquet_file_that_lacks_the_column_fails_and_the_others_are_answered(tmp_path: Path) -> None:
    data = [file.read_bytes() for file in sorted(photos(tmp_path / "photos", 4).iterdir())]
    (tmp_path / "files").mkdir()
    pq.write_table(pa.table({"image": data[:2]}), tmp_path / "files" / "a.parquet")
    pq.write_table(pa.table({"photo": data[2:]}), tmp_path / "files" / "b.parquet")
    pq.write_table(pa.table({"image": ["text", "text"]}), tmp_path / "files" / "c.parquet")
    pq.write_table(pa.table({"image": data[2:]}), tmp_path / "files" / "d.parquet")
    assert run(tmp_path / "files", tmp_path / "out").failed == {"UNREADABLE": 3}
    found = rows(tmp_path / "out")
    assert sum(row["face_index"] == 0 for row in found) == 4
    assert next(row["message"] for row in found if "b.parquet" in row["source"]) == "it has no column image"


def test_parquet_files_with_bytes_are_a_shard_a_row_group(tmp_path: Path) -> None:
    data = [file.read_bytes() for file in sorted(photos(tmp_path / "photos", 5).iterdir())]
    table = pa.table({"id": range(6), "image": pa.array([*data, None], pa.binary())})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=4)
    tally = run(tmp_path / "images.parquet", tmp_path / "out")
    assert (tally.faces, tally.failed, len(parts(tmp_path / "out"))) == (5, {"EMPTY": 1}, 2)
    assert names(rows(tmp_path / "out"))[3:] == [f"images.parquet#{number}" for number in (3, 4, 5)]


def test_parquet_files_as_hugging_face_has_them(tmp_path: Path) -> None:
    data = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(photos(tmp_path / "p", 3).iterdir())]
    pq.write_table(pa.table({"image": data, "label": [0, 1, 0]}), tmp_path / "images.parquet")
    assert run(tmp_path / "images.parquet", tmp_path / "out").faces == 3


def test_parquet_files_with_paths_are_a_list(tmp_path: Path) -> None:
    paths = [str(file) for file in sorted(photos(tmp_path / "photos", 5).iterdir())]
    pq.write_table(pa.table({"path": paths, "caption": ["x"] * 5}), tmp_path / "images.parquet")
    run(tmp_path / "images.parquet", tmp_path / "out")
    assert [row["source"] for row in rows(tmp_path / "out")] == paths


def test_a_parquet_file_whose_column_is_not_clear_says_which_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"]}), tmp_path / "images.parquet")
    with pytest.raises(BulkError, match=r"--image-column.*left \(binary\), right"):
        find(str(tmp_path / "images.parquet"))
    assert find(str(tmp_path / "images.parquet"), "left").column == "left"


def test_a_url_that_fsspec_reads_gives_the_rows_of_the_folder(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 5)
    run(folder, tmp_path / "path")
    run(f"file://{folder}", tmp_path / "url")
    by_url, by_path = rows(tmp_path / "url"), rows(tmp_path / "path")
    assert [row["source"].removeprefix("file://") for row in by_url] == [row["source"] for row in by_path]
    assert [row["embedding"] for row in by_url] == [row["embedding"] for row in by_path]
    run(f"file://{tmp_path}/photos", tmp_path / "url")  # nothing is missing, nothing has changed


def test_out_may_be_a_url(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 5)
    assert run(folder, f"file://{tmp_path}/out").images == 5
    assert len(parts(tmp_path / "out")) == 2
    assert run(folder, f"file://{tmp_path}/out").images == 0


def test_archives_in_the_cloud_are_read_as_they_stream(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", photos(tmp_path / "photos", 3))
    assert run(f"file://{tmp_path}/*.tar", tmp_path / "out").faces == 3


@pytest.mark.parametrize(
    ("source", "told"),
    [("nowhere", "no such file"), ("a.jpg", "a single photo needs no bulk run"), ("no.parquet", "no such file")],
)
def test_a_source_that_is_none_is_told(tmp_path: Path, source: str, told: str) -> None:
    photo(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    with pytest.raises(BulkError, match=told):
        find(str(tmp_path / source))


def test_a_folder_with_photos_and_archives_asks_which(tmp_path: Path) -> None:
    tar_of(tmp_path / "photos.tar", photos(tmp_path / "photos", 2))
    photo(tmp_path / "a.png")
    with pytest.raises(BulkError, match=r"photos and archives"):
        find(str(tmp_path))
    assert find(f"{tmp_path}/*.tar").kind == "tar"
    run(f"{tmp_path}/*.png", tmp_path / "out")
    assert names(rows(tmp_path / "out")) == ["a.png"]


def test_a_folder_that_is_called_like_an_archive_is_none(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 2)
    run(folder, tmp_path / "faces.parquet")
    (tmp_path / "faces.parquet").rename(folder / "faces.parquet")
    assert find(str(folder)).kind == "photos"


def test_a_source_whose_name_is_no_text_is_told_escaped(tmp_path: Path) -> None:
    folder = photos(tmp_path / os.fsdecode(b"caf\xe9"), 1)
    run(folder, tmp_path / "out")
    assert rows(tmp_path / "out")[0]["source"].endswith("caf\\udce9/000.png")


@pytest.mark.parametrize("place", ["nothing://bucket/photos", "hdfs://bucket/photos"])
def test_a_url_that_cannot_be_listed_is_told(place: str) -> None:
    with pytest.raises(BulkError, match=place.partition(":")[0]):
        find(place)


def test_a_broken_parquet_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    with pytest.raises(BulkError, match="cannot list"):
        find(str(tmp_path / "a.parquet"))


def test_an_empty_source_is_told_and_leaves_no_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(BulkError, match="there are no images"):
        run(tmp_path / "photos", tmp_path / "out")
    photo(tmp_path / "photos" / "a.png")
    assert run(tmp_path / "photos", tmp_path / "out").images == 1


@pytest.mark.parametrize(
    ("count", "shard_images", "n_shards"), [(10, None, 1), (6_400, None, 64), (10, 3, 4), (0, 3, 0)]
)
def test_shards_suit_the_number_of_images_or_are_as_given(
    tmp_path: Path, count: int, shard_images: int | None, n_shards: int
) -> None:
    files = Output(str(tmp_path)).files
    listed = [Entry(b"%d.jpg" % number, number, number) for number in range(count)]
    assert write(files, listed, shard_images) == count
    manifest = Manifest(files)
    assert manifest.n_shards == n_shards
    assert [entry for number in range(n_shards) for entry in manifest.shard(number)] == listed
    assert manifest.difference(listed) is None
    manifest.close()
