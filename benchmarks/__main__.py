"""The command: ``python -m benchmarks``."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import (
    bulk,
    bursts,
    capacity,
    detection,
    embedding,
    importing,
    scaling,
    serving,
    serving_gpu,
    sweep,
    work,
)
from benchmarks.environments import FOLDER
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Section, proven
from benchmarks.machine import OthersLoad, describe
from benchmarks.plan import Plan
from benchmarks.racing import Pace
from benchmarks.report import Report, as_json, as_markdown

PARTS: dict[str, Callable[[Plan], Section]] = {
    "a": detection.measure,
    "b": embedding.measure,
    "c": serving.measure,
    "d": work.measure,
    "e": importing.measure,
    "f": capacity.measure,
    "g": bursts.measure,
    "scaling": scaling.measure,
    "bulk": bulk.measure,
}
ON_CUDA = {**PARTS, "b": sweep.measure, "c": serving_gpu.measure}
THOROUGH, QUICK = Pace(rounds=15, slice_s=0.5), Pace(rounds=3, slice_s=0.2)


@click.command(context_settings={"max_content_width": 100})
@click.option("--models", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("models"))
@click.option("--only", default=",".join(PARTS), show_default=True, help="The parts to run.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where our networks run.")
@click.option("--quick", is_flag=True, help="Rough figures in a tenth of the time.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=FOLDER.parent / "results")
def main(models: Path, only: str, device: str, quick: bool, out: Path) -> None:
    """Measure FaceNet Serve beside its peers: a table on standard output, it and latest.json in the --out folder.

    Parts: (a) detection, (b) embedding, (c) the server over loopback, (d) cost against work, (e) the SDK's import, (f)
    cost against load, (g) bursts of callers, (scaling) what one front carries, (bulk) bulk runs. Ends with 0 where
    every bound holds, 1 where one does not or was not measured, 2 where something is missing.
    """
    if unknown := set(only.split(",")) - set(PARTS):
        raise click.BadParameter(f"no part {', '.join(sorted(unknown))}", param_hint="--only")
    start, others = time.monotonic(), OthersLoad()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - start:5.0f} s] {text}", err=True)

    parts = ON_CUDA if device == "cuda" else PARTS
    plan = Plan(models.resolve(), device, QUICK if quick else THOROUGH, out, say)
    try:
        sections = [parts[part](plan) for part in sorted(only.split(","))]
    except BenchmarkError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(2)
    versions = {name: version for section in sections for name, version in section.versions.items()}
    minutes = (time.monotonic() - start) / 60
    report = Report(describe(device, versions), quick, minutes, others.share(), sections)
    out.mkdir(parents=True, exist_ok=True)
    (out / "latest.json").write_text(as_json(report))
    (out / "latest.md").write_text(as_markdown(report))
    click.echo(as_markdown(report))
    sys.exit(0 if proven(report.figures, quick=quick) else 1)


if __name__ == "__main__":
    main()
