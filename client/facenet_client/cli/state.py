"""``facenet health``, ``info`` and ``stats``: what a server says of itself."""

import time
from collections.abc import Callable
from dataclasses import asdict

import click

from facenet_client import Client, ServerUnavailable
from facenet_client.cli import console, options, tables
from facenet_client.cli.access import Access


@click.command()
@click.option(
    "--wait-s",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds to wait for the server.",
)
@click.pass_obj
def health(access: Access, /, wait_s: float) -> None:
    """Whether the server is ready, for probes.

    The exit code is 0 where it serves, and 3 where none does within --wait-s.
    """
    with access.client() as client:
        try:
            client.wait_until_ready(wait_s)
        except ServerUnavailable as error:
            raise ServerUnavailable(f"not serving: {access.server}: {error}") from error
    click.echo("serving")


@click.command()
@options.AS_JSON
@click.pass_obj
def info(connect: Callable[[], Client], /, as_json: bool) -> None:
    """What the server runs, and its limits."""
    with connect() as client:
        server = client.server_info()
    console.show(as_json, tables.server_info(server), [tables.server_info_record(server)])


@click.command()
@click.option(
    "--over-s", type=click.FloatRange(min=0, min_open=True), help="Only the work of this many seconds from now."
)
@options.AS_JSON
@click.pass_obj
def stats(connect: Callable[[], Client], /, over_s: float | None, as_json: bool) -> None:
    """What the server has done since its start: items, and each stage's batches, waiting and computing."""
    with connect() as client:
        seen = client.server_stats()
        if over_s is not None:
            time.sleep(over_s)
            seen = client.server_stats().since(seen)
    if not as_json:
        click.echo(tables.server_state(seen))
    console.show(as_json, tables.server_stats(seen), [asdict(seen)])
