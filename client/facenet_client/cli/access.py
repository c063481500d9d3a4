"""How commands reach the server: where it listens, with what credentials. These options may stand before a command's
name or after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import grpc

from facenet_client import Client, ServerUnavailable

START_S = 10.0  # of waiting for a server
_SILENT_S = 1.0  # of it, before that is told
_PEM = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what a value is; what is said of it
    "--server": ({"type": str}, {"default": "127.0.0.1:50051", "help": "Where the server listens."}),
    "--timeout-s": ({"type": float}, {"default": 300.0, "help": "Wait for each answer, seconds."}),
    "--tls": ({"is_flag": True}, {"help": "Speak TLS, as with --ca and --certificate."}),
    "--ca": ({"type": _PEM}, {"help": "PEM file with the authorities to trust, for TLS.  [default: public ones]"}),
    "--certificate": ({"type": _PEM}, {"help": "PEM file with this caller's chain, for TLS."}),
    "--key": ({"type": _PEM}, {"help": "PEM file with the key of --certificate."}),
    "--token": ({"type": str}, {"help": "What the server knows this caller by. Others may see command lines."}),
}
EPILOG = f"Also those of `facenet --help`: {', '.join(_OPTIONS)}."


@dataclass(frozen=True)
class Access:
    """What a client of the commands is opened with: an address or several with commas between, seconds for each
    answer, PEM files and a token for TLS."""

    server: str
    timeout_s: float
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[Client]:
        """An open client. Says so where it has to wait for a server; raises CallError where none comes."""
        with self.client() as client:
            try:
                client.wait_until_ready(_SILENT_S)
            except ServerUnavailable:
                click.echo(f"waiting for a server at {self.server}, {START_S:g} s at most", err=True)
                client.wait_until_ready(START_S)
            yield client

    def client(self) -> Client:
        """One that is not open yet."""
        try:
            return Client(self.server, **self.settings)
        except ValueError as error:  # no address
            raise click.UsageError(f"--server: {error}") from error

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a client of either kind."""
        return {"timeout_s": self.timeout_s, "credentials": self._credentials()}

    def _credentials(self) -> grpc.ChannelCredentials | None:
        """gRPC's credentials; None for plain text. Raises UsageError where something is missing."""
        if (self.certificate is None) != (self.key is None):
            raise click.UsageError("--certificate and --key go together")
        if not (self.tls or self.ca or self.certificate):
            if self.token:
                raise click.UsageError("a token goes over TLS only: --tls, or --ca")
            return None
        files = (None if file is None else file.read_bytes() for file in (self.ca, self.key, self.certificate))
        channel = grpc.ssl_channel_credentials(*files)
        if self.token:
            return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(self.token.strip()))
        return channel


def before_command(group: click.Group) -> None:
    """Give a group the options; its callback takes them all, for ``Access``."""
    for name, (kind, said) in _OPTIONS.items():
        group.params.append(click.Option([name], show_envvar=True, show_default="default" in said, **kind, **said))


def after_command(command: click.Command) -> None:
    """Let the options stand after the name of a command, or of one of its commands, too: there they win."""
    for each in set(command.commands.values()) if isinstance(command, click.Group) else ():
        after_command(each)
    if isinstance(command, click.Group):
        return
    command.epilog = EPILOG
    for name, (kind, _) in _OPTIONS.items():
        command.params.append(
            click.Option([name], default=None, hidden=True, expose_value=False, callback=_override, **kind)
        )


def _override(ctx: click.Context, option: click.Parameter, value: object) -> None:
    if value is not None and option.name is not None:
        ctx.obj = replace(ctx.obj, **{option.name: value})
