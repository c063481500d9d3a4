"""The group ``facenet`` with ``detect | embed | info``; each other command has its own module."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from facenet_client import Client, FaceNetError
from facenet_client.cli import console, options, tables
from facenet_client.cli.access import Access, credentials, of_callers
from facenet_client.cli.align import align
from facenet_client.cli.bench import bench
from facenet_client.cli.cluster import cluster
from facenet_client.cli.compare import compare
from facenet_client.cli.drawing import annotate
from facenet_client.cli.evaluate import evaluate
from facenet_client.cli.identify import identify


class _Group(click.Group):
    """Our errors, and those of files, as one line and exit code 1, not as a traceback; options of the original tools
    with the one that stands for them here."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise options.old_spelling(error) from error
        except FaceNetError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has left: click ends quietly
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"auto_envvar_prefix": "FACENET", "max_content_width": 100})
@click.option(
    "--server",
    default="127.0.0.1:50051",
    show_default=True,
    show_envvar=True,
    help="Where the server listens.",
)
@click.option("--timeout-s", default=300.0, show_default=True, show_envvar=True, help="Wait for each answer, seconds.")
@of_callers
@click.pass_context
def facenet(ctx: click.Context, /, server: str, timeout_s: float, **given: Any) -> None:
    """Find, embed and compare faces on a FaceNet Serve server.

    A PATH is an image or a folder, whose images count. The exit code is 1 where any item failed.
    """
    ctx.obj = Access(server, timeout_s, credentials(**given))


@facenet.command()
@options.detection
@options.DRAW
@click.pass_obj
def detect(
    connect: Callable[[], Client], /, paths: Sequence[Path], as_json: bool, draw: Path | None, **given: Any
) -> None:
    """Find the faces of each image."""
    files = console.image_files(paths)
    with connect() as client:
        found = list(console.progress(client.detect_stream(files, **options.request(given)), len(files)))
    if draw is not None:
        annotate(files, found, draw)
    console.show(as_json, tables.detections(files, found), map(tables.detection_record, files, found))
    console.exit_code(found)


@facenet.command()
@options.detection
@options.DRAW
@options.faces(options.SELECTIONS)
@options.MODEL
@click.pass_obj
def embed(
    connect: Callable[[], Client], /, paths: Sequence[Path], as_json: bool, draw: Path | None, **given: Any
) -> None:
    """Find the faces of each image and embed them; the vectors are in the JSON."""
    files = console.image_files(paths)
    with connect() as client:
        found = list(console.progress(client.embed_stream(files, **options.request(given)), len(files)))
    if draw is not None:
        annotate(files, found, draw)
    console.show(as_json, tables.detections(files, found), map(tables.detection_record, files, found))
    console.exit_code(found)


@facenet.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.pass_obj
def info(connect: Callable[[], Client], /, as_json: bool) -> None:
    """What the server runs, and its limits."""
    with connect() as client:
        server = client.server_info()
    console.show(as_json, tables.server_info(server), [tables.server_info_record(server)])


for command in (align, bench, cluster, compare, evaluate, identify):
    facenet.add_command(command)
