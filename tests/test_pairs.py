"""Files of pairs: LFW's format, CSV and JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facenet_client.evaluation.pairs import Pair, PairsFile, read_pairs

Read = Callable[..., PairsFile]

LFW = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t3\nBob\t1\t2\nCy\t1\tBob\t2\n"
SAME, DIFFERENT = Pair("a.jpg", "b.jpg", True), Pair("a.jpg", "c.jpg", False)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a file of this content; its suffix is the same for every format."""

    def read_content(content: str | bytes, encoding: str = "utf-8") -> PairsFile:
        path = tmp_path / "pairs.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return read_pairs(path)

    return read_content


def lines(*rows: str) -> str:
    return "\n".join(rows) + "\n"


# LFW's format


def test_lfw_pairs_keep_their_order_and_folds(read: Read) -> None:
    official = read(LFW)
    assert official.pairs[0] == ("Ann/Ann_0001", "Ann/Ann_0002", True)
    assert official.pairs[1] == ("Ann/Ann_0001", "Bob/Bob_0003", False)
    assert official.folds.tolist() == [0, 0, 1, 1]
    assert read(LFW.replace("\t", "  ")).pairs == official.pairs


def test_lfw_names_may_hold_spaces_between_tabs(read: Read) -> None:
    official = read("1\t1\nMary Ann\t1\t2\nMary Ann\t1\tBob B\t12\n")
    assert official.pairs[0] == ("Mary Ann/Mary Ann_0001", "Mary Ann/Mary Ann_0002", True)
    assert official.pairs[1].b == "Bob B/Bob B_0012"


def test_an_lfw_header_of_one_number_makes_one_fold(read: Read) -> None:
    official = read("2\nAnn\t1\t2\nBob\t1\t2\nAnn\t1\tBob\t3\nCy\t1\tBob\t2\n")
    assert [pair.same for pair in official.pairs] == [True, True, False, False]
    assert official.folds.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Ann 1 2\n", "pairs.txt:1: the first line"),
        ("1 1\nAnn 1 2\n", "pairs.txt:1: the header promises 2 pairs, the file holds 1"),
        ("1 0\n", "pairs.txt:1: the header promises 0 pairs"),
        ("1 1\nAnn 1 2\nAnn 1\n", "pairs.txt:3: a pair has three fields"),
        ("1 1\nAnn one 2\nAnn 1 Bob 2\n", "pairs.txt:2: the number of an image of Ann is expected, not 'one'"),
    ],
)
def test_a_broken_lfw_file_is_refused(read: Read, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(text)


# CSV


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
@pytest.mark.parametrize("header", [("a", "b", "same"), None])
def test_csv_has_any_separator_and_needs_no_header(read: Read, separator: str, header: tuple[str, ...] | None) -> None:
    rows = [*([header] if header else []), ("a.jpg", "b.jpg", "1"), ("a.jpg", "c.jpg", "0")]
    assert read(lines(*map(separator.join, rows))).pairs == [SAME, DIFFERENT]


@pytest.mark.parametrize(
    "header",
    ["a,b,same", "image_a,image_b,same", "Image A,Image B,Same", "image1,image2,is_same", "file1,file2,same",
     "path_a,path_b,same", "left,right,same"],
)  # fmt: skip
def test_a_csv_header_names_the_columns_in_usual_words(read: Read, header: str) -> None:
    assert read(lines(header, "a.jpg,b.jpg,1", "a.jpg,c.jpg,0")).pairs == [SAME, DIFFERENT]


def test_csv_columns_may_come_in_any_order_beside_others(read: Read) -> None:
    text = lines("kind,fold,image_b,image_a,same", "FF,1,b.jpg,a.jpg,1", "FP,2,c.jpg,a.jpg,0")
    assert read(text).pairs == [SAME, DIFFERENT]
    assert read(text).folds.tolist() == [0, 1]


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("true", "False"), ("YES", "no"), ("same", "Different")])
def test_same_is_said_in_several_ways(read: Read, yes: str, no: str) -> None:
    assert read(lines("a,b,same", f"a.jpg,b.jpg,{yes}", f"a.jpg,c.jpg,{no}")).pairs == [SAME, DIFFERENT]
    assert read(lines(f"a.jpg,b.jpg,{yes}", f"a.jpg,c.jpg,{no}")).pairs == [SAME, DIFFERENT]


def test_folds_are_numbered_as_they_first_appear(read: Read) -> None:
    rows = ("a,b,1,B", "a,c,0,B", "a,b,1,A", "a,c,0,10")
    assert read(lines(*rows)).folds.tolist() == [0, 0, 1, 2]
    assert read(lines("a,b,same,fold", *rows)).folds.tolist() == [0, 0, 1, 2]


def test_quotes_hold_separators_and_spaces(read: Read) -> None:
    assert read('"x, y.jpg","z z.jpg" ,1\n').pairs == [("x, y.jpg", "z z.jpg", True)]
    assert read('"x, y, z.jpg";"b";1\n').pairs == [("x, y, z.jpg", "b", True)]


def test_backslashes_become_slashes_and_absolute_paths_stay(read: Read) -> None:
    assert read("ann\\1.jpg,/data/b.jpg,1\n").pairs == [("ann/1.jpg", "/data/b.jpg", True)]
    assert read("C:\\data\\a.jpg,D:\\b.jpg,0\n").pairs == [("C:/data/a.jpg", "D:/b.jpg", False)]


def test_images_may_be_named_like_columns(read: Read) -> None:
    assert read("a,a,1\nleft,file1,0\n").pairs == [("a", "a", True), ("left", "file1", False)]
    assert read("x,y,same\n").pairs == [("x", "y", True)]


def test_names_in_brackets_are_not_json(read: Read) -> None:
    assert read("[1].jpg,{2}.jpg,1\n").pairs == [("[1].jpg", "{2}.jpg", True)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "pairs.txt:1: the file is empty"),
        ("\n \n", "pairs.txt:1: the file is empty"),
        ("a,b,same\n", "pairs.txt:1: the file holds no pairs"),
        ("x,y,label\n", "pairs.txt:1: the first line gives the folds"),
        ("\n\njust words\n", "pairs.txt:3: the first line gives the folds"),
        ("a,file1,b,same\n", "pairs.txt:1: 'file1' is the second column for a"),
        ("a,b,same\nx,y,1\nx,y,maybe\n", "pairs.txt:3: same is 1 or 0, .* not 'maybe'"),
        ("a,b,same\nx,y,1\n\n,y,1\n", "pairs.txt:4: a missing"),
        ("a,b,same\nx,y,1\nx\n", "pairs.txt:3: b and same missing"),
        ("x,y,1\nx,y,z,1\n", "pairs.txt:2: 3 columns are expected, as in the first line; not 4"),
        ("x,y,1,1\nx,y,0\n", "pairs.txt:2: fold missing"),
        ("a,b,same,fold\nx,y,1,\nx,y,0,2\n", "pairs.txt:3: fold '2' given; the first pair has no fold"),
        ("x,y,1\n" + "x" * 200_000 + ",y,1\n", "pairs.txt:2: CSV is expected, but here is: field larger"),
    ],
)
def test_a_broken_csv_file_is_refused(read: Read, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(text)


def test_the_first_bad_line_is_told_and_the_others_are_counted(read: Read) -> None:
    with pytest.raises(ValueError, match=r"pairs\.txt:3: same is .* \(and 2 more bad lines\)$"):
        read(lines("a,b,same", "x,y,1", "x,y,2", "x,y,1", "x,y,3", "x,,1"))


# JSON


OBJECTS: list[Any] = [
    {"image_a": "a.jpg", "image_b": "b.jpg", "same": True, "fold": 1, "kind": "FF"},
    {"same": 0, "image_b": "c.jpg", "image_a": "a.jpg", "fold": "2"},
]
LISTS: list[Any] = [["a.jpg", "b.jpg", "yes", 1], ["a.jpg", "c.jpg", False, 2]]


@pytest.mark.parametrize("items", [OBJECTS, LISTS])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_a_list_of_objects_or_of_lists(read: Read, items: list[Any], indent: int | None) -> None:
    found = read(json.dumps(items, indent=indent))
    assert found.pairs == [SAME, DIFFERENT]
    assert found.folds.tolist() == [0, 1]


@pytest.mark.parametrize("items", [OBJECTS, LISTS, OBJECTS[:1], LISTS[:1]])
def test_json_lines_have_a_pair_each(read: Read, items: list[Any]) -> None:
    assert read(lines("", *map(json.dumps, items))).pairs == [SAME, DIFFERENT][: len(items)]


def test_json_escapes_are_undone_before_backslashes_become_slashes(read: Read) -> None:
    assert read(json.dumps([["ann\\é.jpg", "b", 1]])).pairs == [("ann/é.jpg", "b", True)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "pairs.txt:1: the file holds no pairs"),
        ('[["x","y",1],\n\n["x","y",2]]', "pairs.txt:3: item 2: same is 1 or 0"),
        ('[\n{"a":"x","b":"y","same":1},\n{"a":"x","b":"y"}\n]', "pairs.txt:3: item 2: same missing"),
        ('[["x","y",1],\n7]', "pairs.txt:2: item 2: a pair is an object, or a list"),
        ('[["x","y"]]', "pairs.txt:1: item 1: a pair is an object, or a list"),
        ('[["x",["y"],1]]', "pairs.txt:1: item 1: a text, a number or a truth value is expected"),
        ('[["x","y",null]]', "pairs.txt:1: item 1: same missing"),
        ('[["x","y",1]\n["x","y",1]]', "pairs.txt:2: JSON is expected, but here is: Expecting ',' delimiter"),
        ('{"a":"x","b":"y","same":1}\n{"a":"x",}\n', "pairs.txt:2: JSON is expected, but here is"),
        ('{"a":"x","b":"y","same":1}\n{"a":"x","b":"y","same":5}\n', "pairs.txt:2: item 2: same is 1 or 0"),
        ('[["x","y",1],["x","y",2],["x","y",3]]', r"item 2: .* \(and 1 more bad lines\)"),
    ],
)  # fmt: skip
def test_a_broken_json_file_is_refused(read: Read, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(text)


# All formats


def test_pairs_without_folds_get_ten_with_their_share_of_each_kind(read: Read) -> None:
    found = read(lines("a,b,same", *(f"x{i},y{i},{int(i < 25)}" for i in range(65))))
    kinds = [(int(fold), pair.same) for fold, pair in zip(found.folds, found.pairs, strict=True)]
    assert {fold for fold, _ in kinds} == set(range(10))
    assert {kinds.count((fold, True)) for fold in range(10)} == {2, 3}
    assert {kinds.count((fold, False)) for fold in range(10)} == {4}


@pytest.mark.parametrize(("kinds", "folds"), [("1100", [0, 1, 0, 1]), ("10100", [0, 0, 1, 1, 0]), ("111", [0, 0, 0])])
def test_few_pairs_get_fewer_folds(read: Read, kinds: str, folds: list[int]) -> None:
    assert read(lines(*(f"x,y,{kind}" for kind in kinds))).folds.tolist() == folds


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"],
)  # fmt: skip
def test_any_usual_encoding_is_read(read: Read, encoding: str) -> None:
    assert read("zoë,é.jpg,1\n", encoding).pairs == [("zoë", "é.jpg", True)]
    assert read("1 1\nzoë 1 2\nzoë 1 ann 2\n", encoding).pairs[0].a == "zoë/zoë_0001"
    assert read('[["zoë", "é.jpg", 1]]', encoding).pairs == [("zoë", "é.jpg", True)]


def test_big_endian_utf_16_is_read(read: Read) -> None:
    assert read(b"\xfe\xff" + "é,b,1\n".encode("utf-16-be")).pairs == [("é", "b", True)]


def test_text_that_only_begins_like_utf_16_is_refused(read: Read) -> None:
    with pytest.raises(ValueError, match=r"pairs\.txt:1: .*UTF-16"):
        read(b"\xff\xfea")


@pytest.mark.parametrize("text", [LFW, "a.jpg,b.jpg,1\na.jpg,c.jpg,0\n", lines(*map(json.dumps, OBJECTS))])
@pytest.mark.parametrize("line_end", ["\r\n", "\r", "  \n", "\n\n"])
def test_line_ends_blank_lines_and_trailing_spaces_do_not_matter(read: Read, text: str, line_end: str) -> None:
    assert read(text.replace("\n", line_end)).pairs == read(text).pairs
