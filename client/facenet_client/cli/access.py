"""How commands reach the server: where it listens, with what credentials."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc

from facenet_client import Client, ServerUnavailable
from facenet_client.cli.options import Command

CommandT = TypeVar("CommandT", bound=Command)

START_S = 10.0  # of waiting for a server
_SILENT_S = 1.0  # of it, before that is told
_PEM = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Access:
    """What a client of the commands is opened with."""

    server: str
    timeout_s: float
    credentials: grpc.ChannelCredentials | None

    @contextmanager
    def __call__(self) -> Iterator[Client]:
        """An open client. Says so where it has to wait for a server; raises CallError where none comes."""
        with Client(self.server, **self.settings) as client:
            try:
                client.wait_until_ready(_SILENT_S)
            except ServerUnavailable:
                click.echo(f"waiting for a server at {self.server}, {START_S:g} s at most", err=True)
                client.wait_until_ready(START_S)
            yield client

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a client of either kind."""
        return {"timeout_s": self.timeout_s, "credentials": self.credentials}


def of_callers(command: CommandT) -> CommandT:
    """``--tls`` and what goes with it, for ``credentials``."""
    for option in (
        click.option(
            "--token", show_envvar=True, help="What the server knows this caller by. Others may see command lines."
        ),
        click.option("--key", type=_PEM, show_envvar=True, help="PEM file with the key of --certificate."),
        click.option("--certificate", type=_PEM, show_envvar=True, help="PEM file with this caller's chain, for TLS."),
        click.option(
            "--ca",
            type=_PEM,
            show_envvar=True,
            help="PEM file with the authorities to trust, for TLS.  [default: public ones]",
        ),
        click.option("--tls", is_flag=True, show_envvar=True, help="Speak TLS, as with --ca and --certificate."),
    ):
        command = option(command)
    return command


def credentials(
    tls: bool, ca: Path | None, certificate: Path | None, key: Path | None, token: str | None
) -> grpc.ChannelCredentials | None:
    """gRPC's credentials; None for plain text. Raises UsageError where something is missing."""
    if (certificate is None) != (key is None):
        raise click.UsageError("--certificate and --key go together")
    if not (tls or ca or certificate):
        if token:
            raise click.UsageError("a token goes over TLS only: --tls, or --ca")
        return None
    files = (None if file is None else file.read_bytes() for file in (ca, key, certificate))
    channel = grpc.ssl_channel_credentials(*files)
    if token:
        return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token.strip()))
    return channel
