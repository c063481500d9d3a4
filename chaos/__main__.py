"""The command: ``python -m chaos``."""

import asyncio
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from chaos.checks import CHECKS, Check
from chaos.page import rows, write
from chaos.process import SERVER_CORE
from chaos.report import Report
from chaos.stub import WORKERS


def _estimates() -> str:
    each = ", ".join(f"{name} {check.minutes:g}" for name, check in CHECKS.items())
    return (
        f"Minutes of the long forms with their controls: {each}; {sum(c.minutes for c in CHECKS.values()):.0f} in all."
    )


@click.command(epilog=_estimates())
@click.argument("names", nargs=-1)
@click.option("--short", is_flag=True, help="Seconds instead of minutes; bounds of time and memory slope are wider.")
@click.option("--no-controls", is_flag=True, help="Leave out the runs whose checks must fail.")
@click.option(
    "--models",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("models"),
    show_default=True,
    help="The real networks, for T20 and the checks whose names end in -real.",
)
@click.option(
    "--workers", type=click.IntRange(min=0), help="Worker processes of each server.  [default: 0, but for T38 to T40]"
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The figures as JSON.")
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Write the figures of long forms into this page's table, unless --no-controls or --workers is given.",
)
def main(
    names: tuple[str, ...],
    short: bool,
    no_controls: bool,
    models: Path,
    workers: int | None,
    out: Path | None,
    page: Path | None,
) -> None:
    """Prove the promises under load and faults, by name or all: servers on loopback, each figure with its bound.

    Ends with 0 where every bound holds, and every control breaks the bound that its protection is for.
    """
    if unknown := set(names) - set(CHECKS):
        raise click.BadParameter(f"no check {', '.join(sorted(unknown))}; there is {', '.join(CHECKS)}")
    chosen = names or tuple(CHECKS)
    if workers is not None:
        os.environ[WORKERS] = str(workers)
    if any(CHECKS[name].real for name in chosen) and not (models / "manifest.json").exists():
        raise click.UsageError(f"no models in {models}, which checks on the real networks need: run `make models`")
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {SERVER_CORE})
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a rig that is told to end takes its servers along
    ok, results = True, dict[str, Any]()
    for name in chosen:  # what they find is kept after each, so that a run that is cut off leaves it
        report, control = _measured(name, short=short, models=models, controls=not no_controls)
        ok &= report.holds and (control is None or CHECKS[name].is_broken(control))
        results |= {name: asdict(report)} | ({f"{name} control": asdict(control)} if control else {})
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=2, ensure_ascii=False))
        if page is not None and not short and not no_controls and workers is None:
            write(page, {name: rows(name, CHECKS[name], report, control)})
    click.echo("PASS" if ok else "FAIL")
    sys.exit(0 if ok else 1)


def _measured(name: str, *, short: bool, models: Path, controls: bool) -> tuple[Report, Report | None]:
    """A check's report, and its control's; both are shown."""
    check, control = CHECKS[name], None
    report = _run(check, check.how(short=short, models=models))
    report.show(f"{name} {'PASS' if report.holds else 'FAIL'}")
    if check.control is not None and controls:
        control = _run(check, check.how(short=short, models=models, control=True))
        failed = check.is_broken(control)
        control.show(f"{name} control {'failed as it must: PASS' if failed else 'did not fail as it must: FAIL'}")
    return report, control


def _run(check: Check, how: dict[str, Any]) -> Report:
    start = time.monotonic()

    async def run() -> Report:
        async with asyncio.timeout(60 + 2 * 60 * check.minutes):  # what hangs is not to keep the others from being run
            return await check.run(**how)

    try:
        report = asyncio.run(run())
    except Exception as error:  # noqa: BLE001 (the other checks are to be run, too)
        traceback.print_exc()
        report = Report(error=f"{type(error).__name__}: {error}")
    report.note += f" [{time.monotonic() - start:.0f} s]"
    return report


if __name__ == "__main__":
    main()
