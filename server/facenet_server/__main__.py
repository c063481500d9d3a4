"""The command ``facenet-server``."""

import signal

if hasattr(signal, "SIGHUP"):  # Windows has none
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until ``serve`` logs it: the imports below take a second

import asyncio
import logging
import os
import sys
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

try:
    import click
    import grpc_health  # noqa: F401  (one of the extra's packages: is it installed?)

    for package in ("cv2", "onnxruntime"):  # which the workers import
        if find_spec(package) is None:
            raise ImportError(name=package)
except ImportError as error:
    sys.exit(f'facenet-server needs its extra packages ({error.name}): pip install "facenet-serve[server]"')

from facenet_server.config import VARIABLE_PREFIX, Config, unknown_variables
from facenet_server.errors import FatalError, StartError
from facenet_server.server import serve

_TYPES = {int: click.IntRange(min=0), float: click.FloatRange(min=0)}

_log = logging.getLogger("facenet_server")  # as a command this module's own name is __main__


def _run(**values: Any) -> None:
    config = Config(**values)
    level = logging.getLevelNamesMapping()[config.log_level.upper()]
    # At "debug" other packages say too much: Pillow, what a photo's EXIF holds.
    logging.basicConfig(
        level=max(level, logging.INFO), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("facenet_server").setLevel(level)
    for line in unknown_variables(os.environ):
        _log.warning("%s", line)
    try:
        asyncio.run(serve(config))
    except (FatalError, StartError) as error:
        sys.exit(f"facenet-server: {error}")


def _option(field: Any) -> click.Option:
    """A configuration field as a flag and an environment variable."""
    choices = field.metadata.get("choices")
    flag = f"--{field.name.replace('_', '-')}"
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if field.type is bool else flag],
        type=click.Choice(choices) if choices else _TYPES.get(field.type, field.type),
        default=field.default,
        show_default=True,
        envvar=VARIABLE_PREFIX + field.name.upper(),
        show_envvar=True,
        help=field.metadata["help"],
    )


main = click.Command(
    "facenet-server",
    params=[_option(field) for field in fields(Config)],
    callback=_run,
    help="Serve face detection, embedding and comparison over gRPC. Ctrl-C or SIGTERM finishes what is in "
    "flight and ends; a second one ends at once.",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
click.version_option(package_name="facenet-serve", prog_name="facenet-server")(main)

if __name__ == "__main__":
    main()
