"""The rig's checks in their short form, each on a machine that does nothing else, and controls that fail theirs."""

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

from chaos.checks import CHECKS
from chaos.children import environment
from chaos.process import SERVER_CORE
from chaos.report import Figure, Report

WIDER = 5.0  # times its bound a figure may be: how fast a machine is, is a matter of `make chaos`
IN_TEST = ("T1", "T9", "T29")  # in `make test`; the others are for `make test-slow`

# Left to `make chaos`, since others here differ little from them: T23-real, and the control of T1-shipped.
STAND_IN = [name for name, check in CHECKS.items() if not check.real and not check.in_suite]
CONTROLS = [name for name in STAND_IN if CHECKS[name].control and name != "T1-shipped"]
REAL = [name for name, check in CHECKS.items() if check.real and not check.in_suite and name != "T23-real"]
ON_RAY = ("T42",)

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180)]


def run(name: str, models: Path = Path(), *, control: bool = False) -> Report:
    check = CHECKS[name]
    return asyncio.run(check.run(**check.how(short=True, models=models, control=control)))


def holds(figure: Figure) -> bool:
    """Its bound, or the wider one. Where nothing is allowed, nothing is."""
    most, least = figure.at_most, figure.at_least
    return figure.holds or (
        (most is None or figure.value <= most * WIDER) and (least is None or figure.value >= least / WIDER)
    )


def broken(name: str, models: Path = Path()) -> list[str]:
    """The figures that do not hold, of two runs: whatever else a machine did in the first, in the second they hold."""
    for _ in range(2):
        report = run(name, models)
        if not (failed := [str(figure) for figure in report.figures if not holds(figure)]):
            return []
    return [*failed, report.note]


@pytest.fixture(autouse=True)
def _noise(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if len(cores) > 1:  # callers beside the server, not on its core
        os.sched_setaffinity(0, cores - {SERVER_CORE})
    yield
    if len(cores) > 1:
        os.sched_setaffinity(0, cores)
    capfd.readouterr()  # gRPC's own log of connections that were cut, as they were meant to be


@pytest.mark.parametrize(
    "figure",
    [
        Figure("goodput within the load, share of capacity", 0.17, at_least=0.9),
        Figure("event-loop lag p99, ms", 101, at_most=20),
        Figure("seconds until latency is as before", math.inf, at_most=4),
        Figure("lost", 1, at_most=0),
        Figure("embeddings off by, at most", math.nan, at_most=1e-5),
    ],
    ids=str,
)
def test_a_wider_bound_can_be_broken(figure: Figure) -> None:
    assert not holds(figure)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_TEST else pytest.mark.slow) for name in STAND_IN]
)
def test_the_promise_holds(name: str) -> None:
    assert not broken(name)


@pytest.mark.slow
@pytest.mark.timeout(400)  # a Ray cluster takes its time
@pytest.mark.parametrize("name", REAL)
def test_the_promise_holds_on_the_real_networks(name: str, models: Path) -> None:
    if name in ON_RAY and find_spec("ray") is None:
        pytest.skip("Ray is not installed (run `make install`)")
    assert not broken(name, models)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_without_its_protection_the_check_fails(name: str) -> None:
    """Of two runs at least one, since what a fault hits is chance."""
    reports = []
    for _ in range(2):
        reports.append(run(name, control=True))
        if CHECKS[name].is_broken(reports[-1]):
            return
    pytest.fail("; ".join(f"{each.note}: {', '.join(map(str, each.figures))}" for each in reports))


@pytest.mark.slow
def test_clients_that_come_and_go_leave_nothing_and_those_left_open_are_found() -> None:
    """In a process of its own: what this one frees of other tests would count."""
    command = [sys.executable, "-m", "chaos", "T27-sdk", "--short"]
    ended = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "control failed as it must: PASS" in ended.stdout
