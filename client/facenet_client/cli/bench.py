"""``facenet bench``: how fast a server is, under a load of one's own choice."""

import asyncio
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import astuple
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageOps
from rich.console import Console

from facenet_client import AsyncClient, ImageError, ImageLike, load
from facenet_client._targets import addresses
from facenet_client.cli import console, options, tables
from facenet_client.cli.access import START_S, Access
from facenet_client.cli.photos import Walk
from facenet_client.cli.tables import milliseconds
from facenet_client.load import Report, Workload

_METHODS = ("detect", "embed", "embed-crops")
_GENERATED = 64
_COUNT, _POSITIVE = click.IntRange(min=1), click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(_METHODS), help="[default: detect; embed-crops without PATHs]")
@click.option("--crops", is_flag=True, help="The images are ready crops of 160×160 pixels: --method embed-crops.")
@click.option("--raw", is_flag=True, help="Send pixels, not files.")
@click.option(
    "--max-images",
    type=_COUNT,
    default=256,
    show_default=True,
    help="Use only the first images, this many, and repeat them.",
)
@click.option("--batch", type=_COUNT, default=1, show_default=True, help="Images of a message.")
@click.option("--concurrency", type=_COUNT, default=8, show_default=True, help="Callers, each with its stream.")
@click.option("--window", type=_COUNT, default=1, show_default=True, help="Messages that each caller has under way.")
@click.option("--connections", type=_COUNT, help="To each address.  [default: as many as the callers need]")
@click.option("--duration-s", type=_POSITIVE, help="Seconds to send for.  [default: 10, without --count]")
@click.option("--count", type=_COUNT, help="Images to send, in whole messages.")
@click.option("--rate", type=_POSITIVE, help="Open loop: messages per second, however late the answers are.")
@click.option(
    "--arrivals",
    type=click.Choice(("poisson", "constant")),
    default="poisson",
    show_default=True,
    help="When the messages of --rate are due: at random, or evenly.",
)
@click.option(
    "--warm-up-s",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Seconds of load before the measurement begins.",
)
@click.option("--min-face-px", type=_COUNT, help="Smallest face looked for, px.  [default: 20]")
@options.MODEL
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.pass_obj
def bench(access: Access, /, paths: Sequence[Path], as_json: bool, **given: Any) -> None:
    """Load the server with images, and tell how fast it answers and what it waits for.

    PATHs are images or folders; without any, crops are generated, or for --method detect and embed a portrait is used.
    --server may be several addresses with commas between. Latency is that of a message; with --rate it counts from the
    time at which the message was due.
    """
    _check_paths(paths)
    try:
        work = _workload(paths, given)
        report = asyncio.run(_run(access, work, given))
    except (ValueError, ImageError) as error:  # what no server was asked for, or what its limits forbid
        raise click.UsageError(str(error)) from error
    if as_json:
        console.show(True, None, [_settings(access, work, given) | report.record()])
    else:
        _print(report, given)
    if not report.is_clean:
        raise SystemExit(1)


def _check_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        if not os.path.exists(path):
            is_address = bool(re.fullmatch(r"\S+:\d+", str(path)))
            told = f"the server is given by --server {path}" if is_address else "there is no such file or folder"
            raise click.UsageError(f"{path}: {told}")


async def _run(access: Access, work: Workload, given: dict[str, Any]) -> Report:
    duration_s = given["duration_s"] or (None if given["count"] else 10.0)
    plan = load.Plan(
        callers=given["concurrency"],
        window=given["window"],
        duration_s=duration_s,
        messages=math.ceil(given["count"] / given["batch"]) if given["count"] else None,
        rate_per_s=given["rate"],
        poisson=given["arrivals"] == "poisson",
        warm_up_s=given["warm_up_s"],
    )
    async with AsyncClient(access.server, **access.settings) as client:
        await client.wait_until_ready(START_S)
        limits = (await client.server_info()).limits
    per_connection = (limits["max_streams_per_connection"] - 1) * len(addresses(access.server))
    connections = given["connections"] or math.ceil(plan.callers / max(1, per_connection))
    is_terminal = sys.stderr.isatty()
    err = Console(stderr=True, force_terminal=is_terminal)
    with err.status("warming up") if is_terminal else nullcontext() as status:
        tell = _teller(console.note, console.TELL_S) if status is None else _teller(status.update)
        async with AsyncClient(access.server, connections=connections, **access.settings) as client:
            return await load.run(client, work, plan, tell)


def _teller(update: Callable[[str], None], every_s: float = 0.0) -> Callable[[load.Progress], None]:
    """What tells a load's progress, so often at most."""
    next_s = every_s

    def tell(progress: load.Progress) -> None:
        nonlocal next_s
        if progress.elapsed_s >= next_s:
            next_s = progress.elapsed_s + every_s
            rate = progress.items / progress.elapsed_s
            update(f"{progress.elapsed_s:.0f} s, {progress.items:,} images, {rate:,.1f}/s, {progress.errors:,} errors")

    return tell


# ---- what is sent ----


def _workload(paths: Sequence[Path], given: dict[str, Any]) -> Workload:
    method = given["method"] or ("embed-crops" if given["crops"] or not paths else "detect")
    if given["crops"] and method != "embed-crops":
        raise click.UsageError(f"--crops goes with --method embed-crops, not {method}")
    asked: dict[str, Any] = {"model": given["model"] or ""} if method != "detect" else {}
    if given["min_face_px"] is not None and method != "embed-crops":
        asked["min_face_px"] = given["min_face_px"]
    images = _images(paths, given) if paths else _made(method, given["raw"])
    return load.workload(method.replace("-", "_"), images, batch=given["batch"], **asked)


def _images(paths: Sequence[Path], given: dict[str, Any]) -> Sequence[ImageLike]:
    files = console.image_files(paths, Walk())
    if len(files) > given["max_images"]:
        console.note(f"the first {given['max_images']:,} of {len(files):,} images")
    files = files[: given["max_images"]]
    return [_pixels(file) for file in files] if given["raw"] else [file.read_bytes() for file in files]


def _pixels(file: Path) -> ImageLike:
    try:
        with Image.open(file) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise click.UsageError(f"{file}: {error}: without --raw it is sent as it is") from error


def _made(method: str, raw: bool) -> Sequence[ImageLike]:
    """Crops, or the one portrait that some installations carry."""
    made = load.random_crops(_GENERATED) if method == "embed-crops" else [_portrait()]
    return made if raw else [_jpeg(pixels) for pixels in made]


def _portrait() -> Any:
    try:
        import skimage.data  # carries the astronaut Eileen Collins, 512×512
    except ImportError:
        raise click.UsageError("give PATHs of photos: without scikit-image there is no portrait to use") from None
    return skimage.data.astronaut()


def _jpeg(pixels: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


# ---- what came of it ----


def _settings(access: Access, work: Workload, given: dict[str, Any]) -> dict[str, Any]:
    return given | {"target": access.server, "method": work.method, "distinct_messages": len(work.messages)}


def _print(report: Report, given: dict[str, Any]) -> None:
    out = Console(highlight=False)
    out.print(
        f"[bold]{report.items_per_s:,.1f} images/s[/bold]: {report.items:,} in {report.elapsed_s:.2f} s, messages of "
        f"{given['batch']}, {given['concurrency']} callers"
    )
    p50, p95, p99, worst, _ = (milliseconds(seconds) for seconds in astuple(report.latency))
    out.print(f"latency p50 {p50}, p95 {p95}, p99 {p99}, worst {worst}")
    if given["rate"] is not None:
        p50, _, p99, _, _ = (milliseconds(seconds) for seconds in astuple(report.late))
        out.print(f"of that waiting for a free caller: p50 {p50}, p99 {p99}")
    out.print(f"errors: {', '.join(_errors(report)) or 'none'}", style="" if report.is_clean else "red")
    out.print(f"this process used {report.client_cpu_s / report.elapsed_s:.0%} of a core")
    if report.server is None:
        out.print("the server tells no statistics")
        return
    late, memory = milliseconds(report.server.loop_lag.p99_s), report.server.resident_bytes / tables.MIB
    out.print(f"server: event loop late by p99 {late}, memory {memory:,.0f} MiB")
    console.show(False, tables.server_stats(report.server), ())


def _errors(report: Report) -> Iterable[str]:
    for reason, count in report.errors.items():
        yield f"{count:,} × {reason}"
    for name, count in report.failures.items():
        yield f"{count:,} messages without an answer, {name}: {report.first_failure}"
