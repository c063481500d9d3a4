"""``facenet detect`` and ``facenet embed``: the faces of images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from facenet_client import Client, Detection
from facenet_client.cli import console, options, results, tables
from facenet_client.cli.answers import answers, embedder
from facenet_client.cli.drawing import Drawings
from facenet_client.cli.photos import Walk
from facenet_client.cli.results import View

_Ask = Callable[[Iterable[Path]], Iterator[Detection]]


@click.command()
@options.PATHS
@options.looking
@options.max_faces
@options.DRAW
@options.results(".jsonl", ".csv")
@click.pass_obj
def detect(connect: Callable[[], Client], /, paths: Sequence[Path], **given: Any) -> None:
    """Find the faces of each image."""

    def asking(client: Client, request: Any) -> tuple[_Ask, View[Detection]]:
        return partial(client.detect_stream, **request), tables.detections()

    _find(connect, paths, given, asking)


@click.command()
@options.PATHS
@options.looking
@options.max_faces
@options.faces(options.SELECTIONS)
@options.MODEL
@options.DRAW
@options.results(".jsonl", ".csv", ".npz")
@click.pass_obj
def embed(connect: Callable[[], Client], /, paths: Sequence[Path], **given: Any) -> None:
    """Find the faces of each image and embed them.

    The vectors are in --json, in --csv, and in --out FILE. numpy.load reads FILE.npz: embeddings (N, D), with paths,
    faces (their number in the image), scores, boxes and landmarks, a row a face; images and errors, one an image.
    """

    def asking(client: Client, request: Any) -> tuple[_Ask, View[Detection]]:
        model = embedder(client.server_info(), request.pop("model", None))
        return partial(client.embed_stream, model=model.name, **request), tables.detections(model)

    _find(connect, paths, given, asking)


def _find(
    connect: Callable[[], Client],
    paths: Sequence[Path],
    given: dict[str, Any],
    asking: Callable[[Client, Any], tuple[_Ask, View[Detection]]],
) -> None:
    """Answer each image, write it when it is there, and tell at the end what came of all."""
    form = {name: given.pop(name) for name in ("as_json", "as_csv", "out")}
    walk, draw = Walk(), given.pop("draw")
    files = console.image_files(paths, walk)
    drawings, tally = Drawings(draw, len(files)), results.Tally()
    with connect() as client:
        ask, view = asking(client, options.request(given))
        with results.opened(files, view, **form) as found, found.progress() as progress:
            for file, detection in answers(ask, found.missing):
                with console.uninterrupted():
                    found.write(file, detection)
                    tally.add(detection, len(detection.faces))
                    drawings.add(file, detection)
                    progress.advance()
    console.tell_passed_over(walk, given["verbose"])
    tally.tell(found)
    if tally.failed or drawings.failed or walk.unreadable:
        raise SystemExit(1)
