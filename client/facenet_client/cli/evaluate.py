"""``facenet evaluate lfw | parity``: figures about a served model, each from one command."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from facenet_client import Client, ModelInfo
from facenet_client.cli import console, options
from facenet_client.cli.answers import answers, embedder
from facenet_client.cli.photos import Walk
from facenet_client.distances import l2
from facenet_client.evaluation import lfw, parity
from facenet_client.evaluation.pairs import Pair, PairsFile, read_pairs

_MAX_NAMED = 10  # of the images that are missing


@click.group()
def evaluate() -> None:
    """Measure the served model."""


@evaluate.command("lfw")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--pairs",
    "pairs_path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="LFW's pairs.txt, or own pairs as CSV or JSON: two images below DIR, same (1 or 0), fold if there is one.",
)
@click.option("--flip/--no-flip", default=False, help="Concatenate each embedding with its mirror image's.")
@click.option("--subtract-mean/--no-subtract-mean", default=False, help="Take the other folds' mean from all.")
@click.option("--metric", type=click.IntRange(0, 1), default=0, show_default=True, help="0: squared L2; 1: angle/π.")
@click.option("--model", default="", help="The embedder.  [default: the server's]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write figures and calibration here.")
@options.VERBOSE
@click.pass_obj
def evaluate_lfw(
    connect: Callable[[], Client],
    /,
    folder: Path,
    pairs_path: Path,
    flip: bool,
    subtract_mean: bool,
    metric: lfw.Metric,
    model: str,
    out: Path | None,
    verbose: bool,
) -> None:
    """The LFW protocol on pairs of images below DIR, and the calibration that they give.

    Each image's most central face counts, cut with a margin of 32 px. --out gets lfw.json, calibration.json,
    roc.png and distances.png.
    """
    for package in ("matplotlib", "sklearn"):
        if find_spec(package) is None:
            raise click.ClickException(f'evaluating needs {package}: pip install "facenet-serve[evaluate]"')
    try:
        official = read_pairs(pairs_path)
    except ValueError as error:
        raise click.UsageError(console.shown(error)) from error
    files, walk = _find_images(folder, official.pairs)
    _tell_missing(files, official.pairs)
    present = np.array([pair.a in files and pair.b in files for pair in official.pairs])
    if not present.any():
        raise click.UsageError(f"none of the {len(present)} pairs is below {folder}")
    try:
        lfw.check_folds(np.array([pair.same for pair in official.pairs])[present], official.folds[present])
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    start = time.monotonic()
    with connect() as client:
        about = embedder(client.server_info(), model or None)
        vectors, failed = _embed(client, files, about.name, flip)
    console.note(f"{len(files):,} images embedded in {time.monotonic() - start:.0f} s")
    console.tell_passed_over(walk, verbose)
    report = _Report(official, present, vectors, about, pairs_path.name)
    result = report.verify(subtract_mean=subtract_mean, metric=metric)
    fitted = report.calibrate()
    _print_verification(result, report.counts())
    _print_calibration(fitted)
    if out is not None:
        report.write(out, result, fitted, {"flip": flip, "subtract_mean": subtract_mean, "metric": metric})
    if failed or walk.unreadable:
        raise SystemExit(1)


def _tell_missing(files: dict[str, Path], pairs: Sequence[Pair]) -> None:
    """Name the first images of pairs that are not there."""
    missing = sorted({side for pair in pairs for side in (pair.a, pair.b)} - files.keys())
    for name in missing[:_MAX_NAMED]:
        console.note(f"no image of the name {console.shown(name)}")
    if len(missing) > _MAX_NAMED:
        console.note(f"and {len(missing) - _MAX_NAMED:,} more")


class _Report:
    """The figures of one evaluation. ``vectors`` holds each image's views, (1, D), or (2, D) with its mirror image,
    NaN where no face was found."""

    def __init__(
        self,
        official: PairsFile,
        present: NDArray[np.bool_],
        vectors: dict[str, NDArray[np.float64]],
        model: ModelInfo,
        data: str,
    ) -> None:
        self._data = data
        pairs = [pair for pair, there in zip(official.pairs, present, strict=True) if there]
        self._model = model
        self._vectors = vectors
        self._folds = official.folds[present]  # a missing pair leaves its fold smaller, and shifts no other
        self._missing = int((~present).sum())
        self._same = np.array([pair.same for pair in pairs])
        self._a = np.array([vectors[pair.a] for pair in pairs])
        self._b = np.array([vectors[pair.b] for pair in pairs])
        self._seen = ~(np.isnan(self._a).any(axis=(1, 2)) | np.isnan(self._b).any(axis=(1, 2)))
        self._distances = l2(self._a[:, 0], self._b[:, 0])[self._seen]

    def counts(self) -> dict[str, int]:
        """What the figures rest on."""
        return {
            "pairs": len(self._same),
            "pairs_missing": self._missing,
            "pairs_undetected": int((~self._seen).sum()),
            "images": len(self._vectors),
            "images_undetected": sum(bool(np.isnan(views).any()) for views in self._vectors.values()),
        }

    def verify(self, *, subtract_mean: bool, metric: lfw.Metric) -> lfw.Verification:
        """The protocol."""
        a, b = (views.reshape(len(views), -1) for views in (self._a, self._b))
        return lfw.verify(a, b, self._same, self._folds, subtract_mean=subtract_mean, metric=metric)

    def calibrate(self) -> dict[str, Any]:
        """Thresholds and probabilities on plain L2 distances of single embeddings."""
        from facenet_client.evaluation import calibration  # scikit-learn, of an extra, takes seconds

        same_of_seen = self._same[self._seen]
        known = {name: views[0] for name, views in self._vectors.items() if not np.isnan(views).any()}
        if all("/" in name for name in known):  # folders say whose each image is: every two of them are a pair
            identities = np.array([name.partition("/")[0] for name in known])
            different, same = calibration.all_distances(np.array(list(known.values())), identities)
        else:
            different, same = (np.sort(self._distances[mask]) for mask in (~same_of_seen, same_of_seen))
        fitted, quality = calibration.fit_probability(self._distances, same_of_seen, self._folds[self._seen])
        n_folds = len(np.unique(self._folds))
        return {
            "model": self._model.name,
            "preprocessing": self._model.preprocessing,
            "data": f"{self._data}: {len(same_of_seen)} pairs in {n_folds} folds, {len(known)} images; most central "
            f"face, margin {options.MARGIN_PX} px",
            "operating_points": calibration.operating_points(self._distances, same_of_seen, different, same),
            "probability_map": fitted,
            "cross_validation": {kind: value._asdict() for kind, value in quality.items()},
        }

    def write(self, out: Path, result: lfw.Verification, fitted: dict[str, Any], flags: dict[str, Any]) -> None:
        """Everything as files."""
        from facenet_client.evaluation import plots  # matplotlib likewise

        out.mkdir(parents=True, exist_ok=True)
        figures = {key: value for key, value in asdict(result).items() if not isinstance(value, np.ndarray)}
        curve = {
            "thresholds": lfw.ACCURACY_THRESHOLDS.tolist(),
            "true_positive_rates": result.true_positive_rates.tolist(),
            "false_positive_rates": result.false_positive_rates.tolist(),
        }
        everything = {"model": self._model.name, **flags, **self.counts(), **figures, "roc": curve}
        (out / "lfw.json").write_text(json.dumps(everything, indent=1) + "\n")
        (out / "calibration.json").write_text(json.dumps(fitted, indent=1) + "\n")
        threshold = fitted["operating_points"][0]["threshold"]
        plots.save_roc(result, out / "roc.png")
        plots.save_histogram(self._distances, self._same[self._seen], threshold, out / "distances.png")


def _find_images(folder: Path, pairs: Sequence[Pair]) -> tuple[dict[str, Path], Walk]:
    """The pairs' images that are there, by their name in the pairs file, with its suffix or without; and the walk that
    found them. Of images that differ in their suffix alone, the first counts."""
    walk = Walk()
    by_name: dict[str, Path] = {}
    for path in walk.photos([folder]):
        within = path.relative_to(folder)
        for name in (within.as_posix(), within.with_suffix("").as_posix()):
            by_name.setdefault(name, path)
    wanted = sorted({side for pair in pairs for side in (pair.a, pair.b)})
    found = {name: by_name.get(name) or _named(name) for name in wanted}
    return {name: path for name, path in found.items() if path is not None}, walk


def _named(name: str) -> Path | None:
    """A file of an absolute path, outside the folder."""
    path = Path(name)
    return path if path.is_absolute() and path.is_file() else None


def _embed(
    client: Client, files: dict[str, Path], model: str, flip: bool
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Each image's views: its embedding, and its mirror image's where asked, (1 or 2, D); NaN without a face. And how
    many images failed."""
    ask = partial(
        client.embed_stream, faces="most_central", margin_px=options.MARGIN_PX, model=model, return_crops=flip
    )
    vectors: dict[str, NDArray[np.float64]] = {}
    crops: list[tuple[str, NDArray[np.uint8]]] = []
    dimension = failed = 0
    with console.Progress(len(files)) as progress:
        for name, (path, found) in zip(files, answers(ask, files.values()), strict=True):
            progress.advance()
            if found.error is not None:
                failed += 1
                console.note(f"{console.shown(path)}: {console.shown(found.error)}; as without a face")
            for face in found.faces:
                vectors[name] = np.asarray(face.embedding, np.float64)[np.newaxis]
                dimension = vectors[name].shape[1]
                if flip and face.crop is not None:
                    crops.append((name, np.ascontiguousarray(face.crop[:, ::-1])))
    mirrored = client.embed_crops_stream((crop for _, crop in crops), model=model)
    for (name, _), embedding in zip(crops, mirrored, strict=True):
        vectors[name] = np.vstack([vectors[name], np.asarray(embedding)])
    if not vectors:
        raise click.ClickException("no face was found in any image")
    missing = np.full((1 + flip, dimension), np.nan)
    return {name: vectors.get(name, missing) for name in files}, failed


def _print_verification(result: lfw.Verification, counts: dict[str, int]) -> None:
    click.echo(f"Accuracy: {result.accuracy:2.5f}+-{result.accuracy_std:2.5f}")
    click.echo(
        f"Validation rate: {result.validation_rate:2.5f}+-{result.validation_rate_std:2.5f} "
        f"@ FAR={result.false_accept_rate:2.5f}"
    )
    click.echo(f"Area Under Curve (AUC): {result.auc:1.3f}")
    click.echo(f"Equal Error Rate (EER): {result.equal_error_rate:1.3f}")
    click.echo(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
    if counts["pairs_missing"]:
        click.echo("Pairs are missing: these are not the figures of the whole benchmark.")


def _print_calibration(fitted: dict[str, Any]) -> None:
    table = Table(
        "operating point",
        "threshold",
        "false accepts",
        "of pairs",
        "FAR",
        "TAR",
        "of pairs",
        title="Calibration, plain L2",
    )
    for point in fitted["operating_points"]:
        table.add_row(
            point["name"],
            f"{point['threshold']:.4f}",
            f"{round(point['false_accept_rate'] * point['different_pairs']):,}",
            f"{point['different_pairs']:,}",
            f"{point['false_accept_rate']:.2e}",
            f"{point['true_accept_rate']:.4f}",
            f"{point['same_pairs']:,}",
        )
    console.show(False, table, ())
    for kind, quality in fitted["cross_validation"].items():
        chosen = " (chosen)" if kind == fitted["probability_map"]["kind"] else ""
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in quality.items())
        click.echo(f"{kind}{chosen}, cross-validated by fold: {figures}")


@evaluate.command("parity")
@click.argument("record", metavar="RECORD", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default=parity.MODEL, show_default=True, help="The embedder whose vectors RECORD holds.")
@click.pass_obj
def evaluate_parity(connect: Callable[[], Client], /, record: Path, folder: Path, model: str) -> None:
    """Compare with what the reference implementation returned for the photos in DIR (RECORD: its JSON).

    The exit code is 1 where any figure is outside its bound.
    """
    recorded = json.loads(record.read_text())
    names = list(recorded)
    seen = parity.Parity()
    with connect() as client:
        embedder(client.server_info(), model)
        for parameters, options in parity.PARAMETERS.items():
            files = [folder / name for name in names]
            for name, found in zip(names, client.detect(files, **options), strict=True):
                seen.add_detection(f"{name} ({parameters})", found, recorded[name][parameters])
        embedded = client.embed(files, model=model, apply_exif_orientation=False, margin_px=parity.MARGIN_PX)
        for name, found in zip(names, embedded, strict=True):
            seen.add_embeddings(f"{name} (embedded)", found, recorded[name]["embeddings"])
            with Image.open(folder / name) as image:
                crops = parity.reference_crops(image, recorded[name]["compare"]["boxes"])
            seen.add_crop_embeddings(client.embed_crops(crops, model=model), recorded[name]["embeddings"])
    _print_parity(seen)
    sys.exit(0 if seen.within_bounds else 1)


def _print_parity(seen: parity.Parity) -> None:
    table = Table("against the reference", "worst", "bound")
    table.add_row("same number of faces, cases", f"{seen.agreed} of {seen.cases}", "all")
    table.add_row(f"boxes of {seen.faces} faces, px", f"{seen.box_px:.5f}", f"{parity.MAX_BOX_PX}")
    table.add_row("landmarks, px", f"{seen.landmark_px:.5f}", f"{parity.MAX_LANDMARK_PX}")
    table.add_row("scores", f"{seen.score:.1e}", f"{parity.MAX_SCORE:.0e}")
    table.add_row("embeddings of encoded files, cosine", f"{seen.cosine:.7f}", f"{parity.MIN_COSINE}")
    table.add_row("embeddings of the same crops, cosine", f"{seen.crop_cosine:.7f}", f"{parity.MIN_CROP_COSINE}")
    console.show(False, table, ())
    for case in seen.miscounted:
        click.echo(case)
    click.echo("PASS" if seen.within_bounds else "FAIL")
