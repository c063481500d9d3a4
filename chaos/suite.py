"""Checks that the test suite makes by itself, whose figure is how many of their cases hold."""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from chaos.children import environment
from chaos.report import Report

_TESTS = Path(__file__).parent.parent / "tests"


def cases_of(file: str, at_least: int) -> Callable[..., Coroutine[Any, Any, Report]]:
    """A check: all cases of a test file, of which there must be so many, hold each time that they are run."""

    async def hold(*, rounds: int) -> Report:
        report, ran, failed = Report(), 0, list[str]()
        for _ in range(rounds):
            for name, holds in await _cases(_TESTS / file):
                ran += 1
                if not holds:
                    failed.append(name)
        report.note = f"tests/{file}, {rounds} times{': ' if failed else ''}{', '.join(sorted(set(failed)))}"
        report.least("cases", ran, at_least * rounds)
        report.most("cases that fail, or are left out", len(failed), 0)
        return report

    return hold


async def _cases(file: Path) -> list[tuple[str, bool]]:
    """Each case of it, run, and whether it holds."""
    with tempfile.TemporaryDirectory() as room:
        results = Path(room) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", str(file), f"--junitxml={results}"]
        env = environment()
        quiet = asyncio.subprocess.DEVNULL
        run = await asyncio.create_subprocess_exec(*command, cwd=_TESTS.parent, env=env, stdout=quiet, stderr=quiet)
        try:
            await run.wait()
        finally:
            if run.returncode is None:
                run.kill()
                await run.wait()
        cases = ElementTree.parse(results).iter("testcase")
        return [
            (str(case.get("name")), not {"failure", "error", "skipped"} & {each.tag for each in case}) for case in cases
        ]
