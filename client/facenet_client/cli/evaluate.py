"""``facenet evaluate lfw | parity``: figures about a served model, each from one command."""

import json
import os
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
@click.option(
    "--subtract-mean/--no-subtract-mean",
    default=False,
    help="Subtract the mean of the other folds from all embeddings.",
)
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
    _check_extras()
    walk = Walk()
    official, files = _find_pairs(folder, pairs_path, walk)
    start_s = time.monotonic()
    with connect() as client:
        about = embedder(client.server_info(), model or None)
        vectors, failed = _embed(client, sorted(set(files.values())), about.name, flip)
    console.note(f"{len(vectors):,} images embedded in {time.monotonic() - start_s:.0f} s")
    console.tell_passed_over(walk, verbose=verbose)
    named = {name: vectors[files[name]] for pair in official.pairs for name in (pair.a, pair.b) if name in files}
    report = _Report(official, named, about, pairs_path.name)
    result = report.verify(subtract_mean=subtract_mean, metric=metric)
    _print_verification(result, report.counts())
    try:
        fitted = report.calibrate()
    except ValueError as error:
        raise click.ClickException(f"too few pairs with a face in both images for a calibration: {error}") from error
    _print_calibration(fitted)
    if out is not None:
        report.write(out, result, fitted, {"flip": flip, "subtract_mean": subtract_mean, "metric": metric})
    if failed or walk.unreadable or report.counts()["pairs_missing"]:
        raise SystemExit(1)


def _check_extras() -> None:
    for package in ("matplotlib", "sklearn"):
        if find_spec(package) is None:
            raise click.ClickException(f'evaluating needs {package}: pip install "facenet-serve[evaluate]"')


def _find_pairs(folder: Path, pairs_path: Path, walk: Walk) -> tuple[PairsFile, dict[str, Path]]:
    """The pairs, and their images that are there, by name. Raises UsageError where they make no evaluation."""
    try:
        official = read_pairs(pairs_path)
        files = _find_images(folder, official.pairs, walk)
        official = official._replace(pairs=_one_name_each(official.pairs, files))
        there = [place for place, pair in enumerate(official.pairs) if pair.a in files and pair.b in files]
        if not there:
            raise ValueError(f"{pairs_path}: none of the {len(official.pairs)} pairs is below {folder}")
        _check_folds(pairs_path, np.array([official.pairs[place].same for place in there]), official.folds[there])
    except ValueError as error:
        raise click.UsageError(console.shown(error)) from error
    return official, files


def _check_folds(path: Path, same: NDArray[np.bool_], folds: NDArray[np.intp]) -> None:
    try:
        lfw.check_folds(same, folds)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Report:
    """The figures of one evaluation. ``vectors`` holds each image's views, (1, D), or (2, D) with its mirror image,
    NaN where no face was found."""

    def __init__(
        self, official: PairsFile, vectors: dict[str, NDArray[np.float64]], model: ModelInfo, data: str
    ) -> None:
        present = np.array([pair.a in vectors and pair.b in vectors for pair in official.pairs])
        pairs = [pair for pair, there in zip(official.pairs, present, strict=True) if there]
        self._model, self._vectors, self._data = model, vectors, data
        self._names_people = official.names_people
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
        if self._names_people:  # then every two images are a pair
            identities = np.array([name.partition("/")[0] for name in known])
            different, same = calibration.all_distances(np.array(list(known.values())), identities)
        else:
            different, same = (np.sort(self._distances[mask]) for mask in (~same_of_seen, same_of_seen))
        fitted, quality = calibration.fit_probability(self._distances, same_of_seen, self._folds[self._seen])
        n_folds = len(np.unique(self._folds))
        return {
            "model": self._model.name,
            "threshold_unit": "L2",
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
        figures["threshold_unit"] = ("squared L2", "angle / pi")[flags["metric"]]
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


def _find_images(folder: Path, pairs: Sequence[Pair], walk: Walk) -> dict[str, Path]:
    """The pairs' images that are there, by their name in the pairs file, with its suffix or without. Of images that
    differ in their suffix alone, the first counts."""
    by_name: dict[str, Path] = {}
    for path in walk.photos([folder]):
        within = path.relative_to(folder)
        for name in (within.as_posix(), within.with_suffix("").as_posix()):
            by_name.setdefault(name, path)
    wanted = sorted({side for pair in pairs for side in (pair.a, pair.b)})
    found = {name: by_name.get(name) or _named(folder, name) for name in wanted}
    files = {name: path for name, path in found.items() if path is not None}
    missing = [name for name in wanted if name not in files]
    for name in missing[:_MAX_NAMED]:
        console.note(f"no image of the name {console.shown(name)}")
    if len(missing) > _MAX_NAMED:
        console.note(f"and {len(missing) - _MAX_NAMED:,} more")
    return files


def _one_name_each(pairs: Sequence[Pair], files: dict[str, Path]) -> list[Pair]:
    """The pairs with one name for each image: with its suffix and without are two."""
    first = {path: name for name, path in reversed(files.items())}
    names = {name: first[path] for name, path in files.items()}
    return [Pair(names.get(pair.a, pair.a), names.get(pair.b, pair.b), pair.same) for pair in pairs]


def _named(folder: Path, name: str) -> Path | None:
    """A file that is named in full, whatever its name; also of an absolute path, outside the folder."""
    path = folder / name
    return path if os.path.isfile(path) else None


def _embed(
    client: Client, files: Sequence[Path], model: str, flip: bool
) -> tuple[dict[Path, NDArray[np.float64]], int]:
    """Each image's views: its embedding, and its mirror image's where asked, (1 or 2, D); NaN without a face. And how
    many images failed."""
    request: Any = {"faces": "most_central", "margin_px": options.MARGIN_PX, "model": model, "return_crops": flip}
    views: dict[Path, list[NDArray[np.float64]]] = {}
    crops: dict[Path, NDArray[np.uint8]] = {}
    failed = 0
    with console.Progress(len(files)) as progress:
        for path, found in answers(partial(client.embed_stream, **request), files):
            progress.advance()
            if found.error is not None:
                failed += 1
                console.note_of(path, f"{found.error}; as without a face")
            for face in found.faces:
                if face.crop is not None:
                    crops[path] = np.ascontiguousarray(face.crop[:, ::-1])
                if not flip or path in crops:  # a face outside the image has no crop
                    views[path] = [np.asarray(face.embedding, np.float64)]
    if not views:
        raise click.ClickException("no face was found in any image")
    with console.Progress(len(crops), "mirror images") as progress:
        for path, embedding in zip(crops, client.embed_crops_stream(crops.values(), model=model), strict=True):
            views[path].append(np.asarray(embedding, np.float64))
            progress.advance()
    shape = 1 + flip, len(next(iter(views.values()))[0])
    return {path: np.array(views[path]) if path in views else np.full(shape, np.nan) for path in files}, failed


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
    best = fitted["operating_points"][0]["threshold"]
    console.note(
        f"compare and identify take such an L2 distance as --threshold {best:.4f}; `facenet-convert calibrate` writes "
        "calibration.json of --out into a model"
    )


evaluate.add_command(evaluate_lfw, "pairs")


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
