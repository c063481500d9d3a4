"""The page of promises: what a run of the checks writes into it, and that it is in the form that a run writes."""

import math
from pathlib import Path

import pytest
from conftest import ROOT

from chaos.checks import CHECKS
from chaos.page import HEAD, MOST, Row, parse, replaced, rows, write
from chaos.report import Figure, Report

PAGE = ROOT / "docs" / "promises.md"
TEXT = PAGE.read_text("utf-8")


def page(*table: Row) -> str:
    """A page with that table, and something before and after it."""
    lines = ("| " + " | ".join(row) + " |" for row in [*HEAD, *table])
    return "\n".join(["# Promises", "", *lines, "", "| held by tests | |", "|---|---|", "| what | test |", ""])


def report(*figures: Figure, error: str = "") -> Report:
    return Report(list(figures), error=error)


def test_the_page_is_in_the_form_that_a_run_of_the_checks_writes() -> None:
    assert replaced(TEXT, {}) == TEXT


def test_the_page_tells_each_promise_once_and_before_its_figures() -> None:
    firsts = {row.check: row.promise for row in reversed(parse(TEXT)[1])}
    assert firsts == {name: check.promise for name, check in CHECKS.items()}


def test_the_rows_of_a_check_are_replaced_and_those_of_others_stay() -> None:
    old = page(Row("Promise one.", "T1"), Row("goodput", "T1", "≥ 0.9", "0.5", "0.1"), Row("calls", "T2", "", "7", "8"))
    new = replaced(old, {"T1": [Row("Promise one.", "T1"), Row("goodput", "T1", "≥ 0.9", "0.95", "0.2")]})
    assert parse(new)[1] == [
        Row("Promise one.", "T1"),
        Row("goodput", "T1", "≥ 0.9", "0.95", "0.2"),
        Row("calls", "T2", "", "7", "8"),
    ]
    assert parse(new)[0] == "# Promises\n\n"
    assert parse(new)[2] == parse(old)[2]


def test_what_was_written_is_read_back_and_written_the_same() -> None:
    written = replaced(page(), {"T1": [Row("a | b", "T1", "", "", "c"), Row("d", "T1")], "T9": [Row("e", "T9")]})
    assert parse(written)[1] == [Row("a | b", "T1", "", "", "c"), Row("d", "T1"), Row("e", "T9")]
    assert replaced(written, {}) == written


def test_rows_are_in_the_order_of_the_checks() -> None:
    names = list(CHECKS)
    backwards = replaced(page(*(Row("old", name) for name in reversed(names))), {"T5": [Row("new", "T5")]})
    assert [row.check for row in parse(backwards)[1]] == names


def test_a_check_that_ended_without_figures_keeps_those_that_it_had() -> None:
    old = page(Row("old", "T1"), Row("calls", "T1", "≥ 5", "7"))
    new = replaced(old, {"T1": rows("T1", CHECKS["T1"], report(error="OSError: away"), None)})
    assert [(row.figure.partition("; ")[2] or row.figure, row.bound) for row in parse(new)[1]] == [
        ("**FAILS**: OSError: away", ""),
        ("7", "≥ 5"),
    ]


def test_a_row_of_a_check_that_is_no_more_goes() -> None:
    assert parse(replaced(page(Row("old", "T999")), {}))[1] == []


def test_a_check_has_its_promise_and_a_row_for_each_figure() -> None:
    found = report(Figure("calls", 15_377, at_least=10_000), Figure("failures", 0, at_most=0))
    control = report(Figure("calls", 300, at_least=300), Figure("failures", 13, at_most=0))
    assert rows("T10", CHECKS["T10"], found, control) == [
        Row(CHECKS["T10"].promise, "T10", "", "calls 10000, beside 1000", "calls 300, hard True, retry False"),
        Row("calls", "T10", "≥ 10,000", "15,377", ""),
        Row("failures", "T10", "≤ 0", "0", "13"),
    ]


@pytest.mark.parametrize("value", [0.85, math.nan], ids=["below", "no number"])
def test_a_figure_that_does_not_hold_is_marked(value: float) -> None:
    (_, row) = rows("T2", CHECKS["T2"], report(Figure("goodput", value, at_least=0.9)), None)
    assert row == Row("goodput", "T2", "≥ 0.9", f"**FAILS**: {value}", "")


def test_a_check_without_figures_tells_its_error() -> None:
    (row,) = rows("T2", CHECKS["T2"], report(error="TimeoutError: "), None)
    assert row.figure == "seconds 60, clients 50; **FAILS**: TimeoutError: "


def test_a_control_that_breaks_no_bound_is_marked() -> None:
    good = report(Figure("failures", 0, at_most=0))
    assert "**FAILS**" in rows("T10", CHECKS["T10"], good, good)[0].control


def test_no_cell_is_too_long() -> None:
    error = "ExceptionGroup: " + 99 * "many things | "
    written = replaced(page(), {"T2": rows("T2", CHECKS["T2"], report(error=error), None)})
    (row,) = parse(written)[1]
    assert row.figure.endswith("…")
    assert max(map(len, row)) <= MOST
    assert replaced(written, {}) == written


def test_a_page_is_written_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "promises.md"
    path.write_text(page(Row("old", "T1"), Row("old", "T2")), "utf-8")
    write(path, {"T2": [Row("new", "T2")]})
    assert [row.promise for row in parse(path.read_text("utf-8"))[1]] == ["old", "new"]
