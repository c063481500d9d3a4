"""Pairs of images, each of one person or of two, from the files that list them: LFW's ``pairs.txt``, CSV and JSON.

The format is recognised by the content, not by the suffix. Every ValueError names the file and the line.
"""

import csv
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

N_FOLDS = 10
_MAX_HEADER = 40  # characters of the first line of LFW's format

_COLUMNS = (
    {"a": "a", "b": "b", "left": "a", "right": "b", "first": "a", "second": "b"}
    | {f"{stem}{side}": "a" for stem in ("image", "img", "file", "path", "photo") for side in ("a", "1")}
    | {f"{stem}{side}": "b" for stem in ("image", "img", "file", "path", "photo") for side in ("b", "2")}
    | {"same": "same", "issame": "same", "label": "same", "match": "same", "fold": "fold"}
)
_ORDER = ("a", "b", "same", "fold")  # of columns without names
_SAME = dict.fromkeys(("1", "1.0", "true", "yes", "same"), True)
_SAME |= dict.fromkeys(("0", "0.0", "false", "no", "different"), False)

_Line = tuple[str, str]  # its number, from 1, and its text
_Fields = dict[str, str]  # by the names in _ORDER
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Pair(NamedTuple):
    """Two images, and whether they show one person.

    An image is a path below the data set's folder, or an absolute path. It has slashes, and a suffix where the file
    of pairs gives one.
    """

    a: str
    b: str
    same: bool


class PairsFile(NamedTuple):
    """The pairs in the order of their file, and the fold of each, (n_pairs,), from 0. ``names_people``: the first part
    of an image's path is its person's name, as in LFW's format."""

    pairs: list[Pair]
    folds: NDArray[np.intp]
    names_people: bool = False


def read_pairs(path: Path) -> PairsFile:
    """Read pairs from a file of LFW's format, from CSV (comma, semicolon or tab), a JSON list, or JSON lines.

    CSV and JSON name two images (``a`` and ``b``, ``image_a`` and ``image_b``, ``file1`` and ``file2``, …), ``same``,
    and perhaps ``fold``. Columns without names have this order. Folds are numbered as they first appear. Pairs
    without folds get N_FOLDS, or as many as there are pairs of the rarer kind; the pairs of a kind take turns.
    Raises ValueError where the file has no such format, or a line is no pair.
    """
    text = _decode(path)
    lines = [(str(number), line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}:1: the file is empty; pairs are expected, in LFW's format, CSV or JSON")
    first = lines[0][1].strip()
    if re.fullmatch(r"\d+(\s+\d+)?", first):
        return _read_lfw(path, lines)
    # The name of an image may begin with a bracket: the next character tells whether this is JSON.
    is_json = re.match(r'[\[{]\s*(["\[\]{}]|$)', first)
    records = _read_json(path, text) if is_json else _read_csv(path, lines)
    if not records:
        raise ValueError(f"{path}:{lines[-1][0]}: the file holds no pairs")
    has_folds = bool(records[0][1].get("fold"))
    pairs = [pair for _, pair in _parse(path, records, partial(_pair, has_folds=has_folds))]
    labels = [record["fold"] for _, record in records] if has_folds else None
    return PairsFile(pairs, _deal([pair.same for pair in pairs]) if labels is None else _number(labels))


def _decode(path: Path) -> str:
    """The text of a file, with ``\\n`` as its line end."""
    with path.open("rb") as file:
        is_utf16 = file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", "cp1252", "latin-1"):
        with suppress(UnicodeDecodeError):
            return path.read_text(encoding)
    raise ValueError(f"{path}:1: the file begins like UTF-16 text, but cannot be read as such")


def _parse(
    path: Path, items: Iterable[tuple[str, _Item]], parse: Callable[[_Item], _Result]
) -> list[tuple[str, _Result]]:
    """Parse items, each given with its place in the file, such as ``17``; the results keep these places.

    Raises ValueError, which tells the first bad item and counts the others.
    """
    results, problems = [], []
    for place, item in items:
        try:
            results.append((place, parse(item)))
        except ValueError as error:
            problems.append(f"{path}:{place}: {error}")
    if problems:
        others = f" (and {len(problems) - 1} more bad lines)" if len(problems) > 1 else ""
        raise ValueError(problems[0] + others)
    return results


def _pair(fields: _Fields, *, has_folds: bool) -> Pair:
    expected = _ORDER if has_folds else _ORDER[:3]
    if missing := [name for name in expected if not fields.get(name)]:
        raise ValueError(f"{' and '.join(missing)} missing; a pair has {', '.join(expected)}")
    if fields.get("fold") and not has_folds:
        raise ValueError(f"fold {fields['fold']!r:.60} given; the first pair has no fold, so none may have one")
    same = _SAME.get(fields["same"].casefold())
    if same is None:
        raise ValueError(f"same is 1 or 0, true or false, yes or no, same or different; not {fields['same']!r:.60}")
    return Pair(_path(fields["a"]), _path(fields["b"]), same)


def _path(text: str) -> str:
    return normpath(text.replace("\\", "/"))


def _number(labels: Sequence[str]) -> NDArray[np.intp]:
    """Labels as numbers from 0, in the order of their first appearance, (n,)."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], np.intp)


def _deal(same: Sequence[bool]) -> NDArray[np.intp]:
    """Folds for pairs without any, (n_pairs,): each gets its share of the same and of the different pairs."""
    is_same = np.array(same)
    kinds = [np.flatnonzero(is_same), np.flatnonzero(~is_same)]
    n_folds = max(1, min(N_FOLDS, *map(len, kinds)))
    folds = np.empty(len(is_same), np.intp)
    for places in kinds:
        folds[places] = np.arange(len(places)) % n_folds
    return folds


# LFW's format


def _read_lfw(path: Path, lines: Sequence[_Line]) -> PairsFile:
    """Pairs after a header: the folds and the pairs of a kind in each; or the pairs of a kind in the only fold."""
    (header_number, header), *rest = lines
    if len(header) > _MAX_HEADER:
        raise ValueError(f"{path}:{header_number}: the header promises more pairs than there can be")
    *folds, half_fold = (int(field) for field in header.split())
    n_folds = folds[0] if folds else 1
    pairs = [pair for _, pair in _parse(path, rest, _lfw_pair)]
    promised = 2 * n_folds * half_fold
    if len(pairs) != promised or not pairs:
        raise ValueError(f"{path}:{header_number}: the header promises {promised} pairs, the file holds {len(pairs)}")
    return PairsFile(pairs, np.arange(len(pairs)) * n_folds // len(pairs), names_people=True)


def _lfw_pair(line: str) -> Pair:
    fields = [field.strip() for field in line.strip().split("\t")]  # between tabs, names may hold spaces
    if len(fields) not in (3, 4):
        fields = line.split()
    if len(fields) == 3:
        name, first, second = fields
        return Pair(_lfw_image(name, first), _lfw_image(name, second), True)
    if len(fields) == 4:
        name, first, other, second = fields
        return Pair(_lfw_image(name, first), _lfw_image(other, second), False)
    raise ValueError(f"a pair has three fields (same) or four (different), not {line.strip()!r:.60}")


def _lfw_image(name: str, number: str) -> str:
    if not number.isdecimal():
        raise ValueError(f"the number of an image of {name:.60} is expected, not {number!r:.60}")
    return f"{name}/{name}_{int(number):04d}"


# CSV


class _Layout(NamedTuple):
    separator: str
    n_columns: int
    places: dict[str, int]  # of the known columns, from 0
    has_header: bool


def _read_csv(path: Path, lines: Sequence[_Line]) -> list[tuple[str, _Fields]]:
    ((_, layout),) = _parse(path, lines[:1], _layout)
    return _parse(path, lines[layout.has_header :], partial(_csv_fields, layout=layout))


def _layout(first: str) -> _Layout:
    """How a file is laid out that has this first line."""
    separator = max(",;\t", key=lambda separator: len(_cells(first, separator)))
    cells = _cells(first, separator)
    if {"a", "b", "same"} <= {_column(cell) for cell in cells}:
        return _Layout(separator, len(cells), _places(cells), True)
    if len(cells) in (3, 4) and cells[2].casefold() in _SAME:
        return _Layout(separator, len(cells), {name: place for place, name in enumerate(_ORDER[: len(cells)])}, False)
    raise ValueError(
        "the first line gives the folds and the pairs of a kind in each (LFW), names the columns a, b, same and "
        f"perhaps fold, or is a pair in this order (CSV); not {first.strip()!r:.60}"
    )


def _places(names: Iterable[str]) -> dict[str, int]:
    """The places, from 0, of the columns whose names are known."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        column = _column(name)
        if column in places:
            raise ValueError(f"{name!r:.60} is the second column for {column}")
        if column is not None:
            places[column] = place
    return places


def _column(name: str) -> str | None:
    return _COLUMNS.get(re.sub(r"[\W_]", "", name.casefold()))


def _csv_fields(line: str, layout: _Layout) -> _Fields:
    cells = _cells(line, layout.separator)
    if len(cells) > layout.n_columns:
        raise ValueError(f"{layout.n_columns} columns are expected, as in the first line; not {len(cells)}")
    return {name: cells[place] for name, place in layout.places.items() if place < len(cells)}


def _cells(line: str, separator: str) -> list[str]:
    """The columns of a line, without empty ones at its end."""
    try:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    except csv.Error as error:
        raise ValueError(f"CSV is expected, but here is: {error}") from error
    while cells and not cells[-1]:
        cells.pop()
    return cells


# JSON


def _read_json(path: Path, text: str) -> list[tuple[str, _Fields]]:
    try:
        values = list(_json_values(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: JSON is expected, but here is: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # brackets within brackets, a number of thousands of digits
        raise ValueError(f"{path}:1: no list of pairs can be read: {error}") from error
    items = ((f"{line}: item {number}", value) for number, (line, value) in enumerate(values, 1))
    return _parse(path, items, _json_fields)


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    """The items of a list, or values that follow one another (JSON lines); each with its line's number, from 1."""
    position, end = _json_bounds(text)
    line = text.count("\n", 0, position) + 1
    while position < end:
        if text[position] in " \t\n,":
            line += text[position] == "\n"
            position += 1
            continue
        value, after = json.JSONDecoder().raw_decode(text, position)
        yield line, value
        line += text.count("\n", position, after)
        position = after


def _json_bounds(text: str) -> tuple[int, int]:
    """Where the values begin and end: inside a list of pairs, or in the whole text."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":  # what follows the first value is JSON lines
            raise
        return 0, len(text)
    is_list = isinstance(whole, list) and (not whole or isinstance(whole[0], list | dict))
    return (text.index("[") + 1, text.rindex("]")) if is_list else (0, len(text))


def _json_fields(value: Any) -> _Fields:
    if isinstance(value, dict):
        cells = list(value.values())
        return {name: _json_cell(cells[place]) for name, place in _places(value).items()}
    if isinstance(value, list) and len(value) in (3, 4):
        return {name: _json_cell(cell) for name, cell in zip(_ORDER, value, strict=False)}
    raise ValueError(f"a pair is an object, or a list of a, b, same and perhaps fold; not {value!r:.60}")


def _json_cell(value: Any) -> str:
    if isinstance(value, list | dict):
        raise ValueError(f"a text, a number or a truth value is expected, not {value!r:.60}")
    return "" if value is None else str(value).strip()
