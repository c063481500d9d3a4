"""The group ``facenet``; each command has its own module."""

import errno
from importlib.metadata import entry_points
from typing import Any

import click

from facenet_client import CallError, FaceNetError, OptionError, RequestRefused, ServerUnavailable, TemporaryError
from facenet_client.cli import console, options
from facenet_client.cli.access import Access, after_command, before_command
from facenet_client.cli.align import align
from facenet_client.cli.bench import bench
from facenet_client.cli.cluster import cluster
from facenet_client.cli.compare import compare
from facenet_client.cli.evaluate import evaluate
from facenet_client.cli.find import detect, embed
from facenet_client.cli.identify import identify
from facenet_client.cli.state import health, info, stats

OTHERS = "facenet.commands"  # entry points: commands of rooms that stand on this one
ITEMS_FAILED, USAGE, NO_SERVER, INTERRUPTED = 1, 2, 3, 130


class _Group(click.Group):
    """Our errors, and those of files, as one line and an exit code, not as a traceback; options of the original tools
    with the one that stands for them here. Commands of other rooms are found by their entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group=OTHERS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for found in () if cmd_name in self.commands else entry_points(group=OTHERS, name=cmd_name):
            command: click.Command = found.load()
            after_command(command)
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise options.old_spelling(error) from error
        except FaceNetError as error:
            hint = "; --server says where one listens" if isinstance(error, ServerUnavailable) else ""
            click.echo(f"Error: {console.shown(error)}{hint}", err=True)
            return ctx.exit(_exit_code(error))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            return ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has left: click ends quietly
                raise
            raise click.ClickException(console.shown(error)) from error


def _exit_code(error: FaceNetError) -> int:
    """Of what ended a command: no server, none with room, and none that answers in time are one."""
    if isinstance(error, RequestRefused | OptionError):
        return USAGE
    return NO_SERVER if isinstance(error, CallError) and isinstance(error, TemporaryError) else ITEMS_FAILED


_SETTINGS = {"auto_envvar_prefix": "FACENET", "max_content_width": 100, "help_option_names": ["-h", "--help"]}


@click.group(cls=_Group, context_settings=_SETTINGS)
@click.version_option(package_name="facenet-serve", prog_name="facenet")
@click.pass_context
def facenet(ctx: click.Context, /, **given: Any) -> None:
    """Find, embed and compare faces on a FaceNet Serve server.

    A PATH is an image or a folder: all photos below it. The options here may stand after the command, too.

    Exit codes: 0; 1, some items failed; 2, usage; 3, no server that answers; 130, interrupted.
    """
    console.set_up_streams()
    console.end_on_sigterm()
    ctx.obj = Access(**given)


before_command(facenet)
for command in (align, bench, cluster, compare, detect, embed, evaluate, health, identify, info, stats):
    after_command(command)
    facenet.add_command(command)
