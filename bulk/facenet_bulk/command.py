"""``facenet bulk``. What it stands on is imported when it runs: ``facenet --help`` shows it without."""

import json
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from facenet_client.cli import console, options
from facenet_client.cli.access import Access
from facenet_client.cli.photos import Walk

if TYPE_CHECKING:
    from facenet_bulk.engines import Engine
    from facenet_bulk.run import Run
    from facenet_bulk.table import Tally

ENGINES = ("local", "ray", "server")
_DEFAULTS = {"min_face_px": 20, "thresholds": (0.6, 0.7, 0.7), "margin_px": options.MARGIN_PX, "faces": "all"}
_OF_ENGINES = ("engine", "models", "device", "workers", "image_formats", "target", "ray_address", "gpus_per_worker")
_OF_PLANS = ("model", "precision", "shard_images", "as_listed", "verify", "redo_failed")


@click.command()
@click.argument("source")
@click.argument("out")
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Who does the work.")
@click.option("--models", type=click.Path(path_type=Path), default=Path("models"), show_default=True,
              help="local, ray: folder with the ONNX files.")  # fmt: skip
@click.option("--target", help="server: addresses, with commas between.  [default: --server]")
@click.option("--ray-address", help="ray: the cluster.  [default: RAY_ADDRESS, one that runs here, or a new one]")
@click.option("--workers", type=click.IntRange(min=1),
              help="Worker processes; server: shards at once.  [default: one a core; two a server]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True,
              help="local, ray: where the networks run; ray without --gpus-per-worker: on the CPU.")  # fmt: skip
@click.option(
    "--gpus-per-worker",
    type=click.FloatRange(min=0),
    default=0.0,
    help="ray: GPUs of each worker; with 0.25, four workers share a GPU.",
)
@click.option("--model", help="The embedder.  [default: that of the models folder, or the server's]")
@click.option("--precision", type=click.Choice(["fp32", "int8", "fp16"]), help="The model's form of this precision.")
@options.looking
@options.max_faces
@options.faces(options.SELECTIONS)
@click.option("--image-formats", default="JPEG,PNG,WEBP", show_default=True,
              help="local, ray: formats to decode; a server has its own.")  # fmt: skip
@click.option("--image-column", default="", help="The column of Parquet files that holds images or their paths.")
@click.option("--shard-images", type=click.IntRange(min=1), help="Photos of a part.  [default: 32 to 10,000]")
@click.option("--as-listed", is_flag=True, help="Go on with what was listed, without comparing SOURCE with it.")
@click.option("--verify", is_flag=True, help="First read the images of whole parts again, and compare their SHA-256.")
@click.option("--redo-failed", is_flag=True, help="Do parts again that have images which may succeed another time.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON, for programs.")
@click.pass_obj
def bulk(access: Access, /, source: str, out: str, as_json: bool, verbose: bool, **given: Any) -> None:
    """Turn the photos of SOURCE into Parquet files of faces and embeddings in OUT.

    SOURCE is a folder, a list of paths (.txt), .tar files or Parquet files with images: local, or a URL that fsspec
    reads. OUT is a folder. Run again, the same command does what is missing.
    """
    try:
        from facenet_bulk import run as runs
        from facenet_bulk import sources
        from facenet_bulk.errors import BulkError, OtherRun
    except ImportError as error:
        raise _missing(error, "bulk") from error
    of_engine, of_plan = ({name: given.pop(name) for name in names} for names in (_OF_ENGINES, _OF_PLANS))
    walk = Walk()
    try:
        where = sources.find(source, given.pop("image_column"))
        plan = runs.Plan(source=where, out=out, options={**_DEFAULTS, **options.request(given)}, **of_plan)
        with _engine(access, **of_engine) as engine, runs.begun(plan, engine, walk, console.note) as run:
            console.tell_passed_over(walk, verbose=verbose)
            console.end_on_sigterm()  # Ray has put its own end in this one's place
            tally = _done(run, as_json)
    except OtherRun as error:
        raise click.UsageError(console.shown(error)) from error
    except BulkError as error:
        raise click.ClickException(console.shown(error)) from error
    if tally.n_failed or walk.unreadable:
        raise SystemExit(1)


def _engine(
    access: Access,
    *,
    engine: str,
    models: Path,
    device: str,
    workers: int | None,
    image_formats: str,
    target: str | None,
    ray_address: str | None,
    gpus_per_worker: float,
) -> AbstractContextManager["Engine"]:
    """The engine that was chosen."""
    if engine == "server":
        from facenet_bulk.engines.servers import ServerEngine

        targets = [each.strip() for each in (target or access.server).split(",")]
        try:
            return ServerEngine(targets, workers, **access.settings)
        except ValueError as error:  # no address
            raise click.UsageError(f"--target: {error}") from error
    try:
        if engine == "local":
            from facenet_bulk.engines.local import LocalEngine

            return LocalEngine(models, device, workers, image_formats)
        from facenet_bulk.engines.ray_data import RayEngine
    except ImportError as error:
        raise _missing(error, "bulk" if engine == "local" else "ray") from error
    return RayEngine(models, device, workers, image_formats, address=ray_address, gpus=gpus_per_worker)


def _done(run: "Run", as_json: bool) -> "Tally":
    """Do what is missing, and sum up: on stderr, and where it is wanted on stdout."""
    from facenet_bulk.table import Tally

    before = run.n_shards - len(run.missing)
    if before:
        console.note(f"{before:,} of {run.n_shards:,} parts are there")
    tally, n_parts, start_s = Tally(), 0, time.monotonic()
    first_s = last_s = start_s
    failed = Counter[str]()
    try:
        with console.Progress(run.n_images) as progress:

            def on_image(count: int, reason: str) -> None:
                if reason:
                    failed[reason] += count
                progress.advance(count, _by_reason(failed))

            for part in run.parts(on_image):
                tally.update(part.tally)
                n_parts, last_s = n_parts + 1, time.monotonic()
                first_s = last_s if n_parts == 1 else first_s
    except BaseException:
        n_whole = len(run.output.finished())
        console.note(f"{n_whole:,} of {run.n_shards:,} parts are there; the same command goes on from there")
        raise
    seconds = time.monotonic() - start_s
    summary = {**asdict(tally), "parts": n_parts, "seconds": seconds, "images_per_s": tally.images / seconds,
               "first_part_s": first_s - start_s, "last_part_s": last_s - start_s}  # fmt: skip
    if as_json:
        click.echo(json.dumps(summary))
    failures = f" ({_by_reason(tally.failed)})" if tally.failed else ""
    console.note(
        f"{tally.images:,} images, {tally.images / seconds:,.1f}/s: {tally.faces:,} faces, {tally.without_face:,} "
        f"images without a face, {tally.n_failed:,} failed{failures}; {n_parts:,} parts in {run.output.files.place}"
    )
    return tally


def _by_reason(failed: "dict[str, int] | Counter[str]") -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(failed.items()) if count)


def _missing(error: ImportError, extra: str) -> click.ClickException:
    return click.ClickException(f'it needs its extra packages ({error.name}): pip install "facenet-serve[{extra}]"')
