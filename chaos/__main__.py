"""The command: ``python -m chaos``."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from chaos import failures, order, overload, restarts, soak
from chaos.process import SERVER_CORE
from chaos.report import Report


@dataclass(frozen=True)
class Check:
    """A check in its short and its long form, and its control: the same with the protection switched off."""

    run: Callable[..., Awaitable[Report]]
    short: dict[str, Any]
    long: dict[str, Any]
    control: dict[str, Any] | None = None
    long_control: dict[str, Any] | None = None  # where it is another than the short one

    async def report(self, how: dict[str, Any]) -> Report:
        """Run it so."""
        return await self.run(**how)


CHECKS = {
    "T1": Check(overload.sustained, {"seconds": 6}, {"seconds": 300}, {"seconds": 6, "protected": False}),
    "T4": Check(
        overload.uploads,
        {"seconds": 5},
        {"seconds": 120, "streams": 400},
        {"seconds": 4, "streams": 40, "protected": False},
    ),
    "T6": Check(failures.killed_callers, {"rounds": 2}, {"rounds": 40}),
    "T9": Check(restarts.drain, {"repeats": 1}, {"repeats": 20}, {"repeats": 1, "protected": False}),
    "T10": Check(restarts.rolling, {"calls": 1000}, {"calls": 10_000}, {"calls": 500, "hard": True, "retry": False}),
    "T11": Check(partial(restarts.rolling, kill=True), {"calls": 1000}, {"calls": 10_000}),
    "T22": Check(failures.failing_engine, {"seconds": 4}, {"seconds": 120}),
    "T27": Check(
        soak.soak,
        {"seconds": 30, "slope_mb_h": 400},
        {"seconds": 1200},
        {"seconds": 30, "slope_mb_h": 400, "leak_bytes": 2000},
        {"seconds": 600, "leak_bytes": 200},
    ),
    "T29": Check(
        order.once_and_in_order,
        {"streams": 20, "items": 1000, "restarts": 2},
        {"streams": 200, "items": 5000, "restarts": 20},
        {"streams": 20, "items": 1000, "restarts": 0, "swap_every": 100},
    ),
    "T30": Check(overload.fairness, {"seconds": 5}, {"seconds": 60}),
}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--short", is_flag=True, help="Seconds instead of minutes; bounds of time and memory slope are wider.")
@click.option("--no-controls", is_flag=True, help="Leave out the runs whose checks must fail.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The figures as JSON.")
def main(names: tuple[str, ...], short: bool, no_controls: bool, out: Path | None) -> None:
    """Prove the promises under load and faults, by name or all: servers on loopback, each figure with its bound.

    Ends with 0 where every bound holds, and every control fails its check.
    """
    if unknown := set(names) - set(CHECKS):
        raise click.BadParameter(f"no check {', '.join(sorted(unknown))}; there is {', '.join(CHECKS)}")
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {SERVER_CORE})
    ok, results = True, {}
    for name in names or CHECKS:
        check = CHECKS[name]
        report = _run(check, check.short if short else check.long)
        report.show(f"{name} {'PASS' if report.holds else 'FAIL'}")
        results[name] = asdict(report)
        ok &= report.holds
        if check.control is not None and not no_controls:
            control = _run(check, check.control if short else check.long_control or check.control)
            control.show(f"{name} control {'FAIL: its check passed' if control.holds else 'failed as it must: PASS'}")
            results[f"{name} control"] = asdict(control)
            ok &= not control.holds
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2, ensure_ascii=False))
    sys.exit(0 if ok else 1)


def _run(check: Check, how: dict[str, Any]) -> Report:
    start = time.monotonic()
    report = asyncio.run(check.report(how))
    report.note += f" [{time.monotonic() - start:.0f} s]"
    return report


if __name__ == "__main__":
    main()
