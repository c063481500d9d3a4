"""``facenet detect`` and ``facenet embed``: the faces of images."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from facenet_client import Client
from facenet_client.cli import console, options, results, tables
from facenet_client.cli.answers import T, answers, embedder
from facenet_client.cli.drawing import Drawings
from facenet_client.cli.photos import Walk
from facenet_client.cli.views import View


@click.command()
@options.PATHS
@options.looking
@options.max_faces
@options.DRAW
@options.results(".jsonl", ".csv")
@click.pass_obj
def detect(connect: Callable[[], Client], /, paths: Sequence[Path], **given: Any) -> None:
    """Find the faces of each image."""
    run = _Run(paths, given)
    with connect() as client:
        run.answer(client.detect_stream, tables.detections(), lambda detection: len(detection.faces))


@click.command()
@options.PATHS
@options.looking
@options.max_faces
@options.faces(options.SELECTIONS)
@click.option("--crops", is_flag=True, help="The images are crops of 160×160 px, as `facenet align` makes them.")
@options.MODEL
@options.DRAW
@options.results(".jsonl", ".csv", ".npz")
@click.pass_obj
def embed(
    connect: Callable[[], Client], /, paths: Sequence[Path], crops: bool, model: str | None, **given: Any
) -> None:
    """Find the faces of each image and embed them; or embed ready crops.

    The vectors are in --json, in --csv, and in --out FILE. numpy.load reads FILE.npz. Its arrays embeddings (N, D),
    paths, faces (the number in the image), scores, boxes and landmarks have a row a face. Its arrays images and errors
    have a row an image.
    """
    run = _Run(paths, given)
    if crops and (run.request.keys() != {"apply_exif_orientation"} or run.drawings.wanted):
        raise click.UsageError("--crops are embedded as they are: leave out the options of finding faces")
    with connect() as client:
        about = embedder(client.server_info(), model)
        run.request |= {"model": about.name}
        if crops:
            run.request = {"model": about.name}
            run.answer(client.embed_crops_stream, tables.embeddings(about), lambda crop: crop.error is None)
        else:
            run.answer(client.embed_stream, tables.detections(about), lambda detection: len(detection.faces))


class _Run:
    """A run over images: each answer is written when it is there; at the end what came of all is told."""

    def __init__(self, paths: Sequence[Path], given: dict[str, Any]) -> None:
        self._form = {name: given.pop(name) for name in ("as_json", "as_csv", "out")}
        self._walk, self._tally, self._is_verbose = Walk(), results.Tally(), given["verbose"]
        self._files = console.image_files(paths, self._walk)
        self.drawings = Drawings(given.pop("draw"), self._files, paths)
        self.request = options.request(given)

    def answer(self, ask: Callable[..., Iterator[T]], view: View[T], n_faces: Callable[[T], int]) -> None:
        """Ask for all that is missing, by the request. Exits with 1 where something failed."""
        made_with = {"method": ask.__name__, **self.request}
        with results.opened(self._files, view, made_with, **self._form) as opened, opened.progress() as progress:
            for file, answer in answers(partial(ask, **self.request), opened.missing):
                opened.write(file, answer)
                self._tally.add(answer, n_faces(answer))
                self.drawings.add(file, answer)
                progress.advance()
        console.tell_passed_over(self._walk, verbose=self._is_verbose)
        self._tally.tell(opened)
        if self._tally.failed or self.drawings.failed or self._walk.unreadable:
            raise SystemExit(1)
