"""The command ``facenet-server``."""

import asyncio
import logging
import sys
from dataclasses import fields
from typing import Any

try:
    import click
    import cv2  # noqa: F401  (one of the extra's packages: is it installed?)
    import grpc_health  # noqa: F401
    import onnxruntime  # noqa: F401
except ImportError as error:
    sys.exit(f"facenet-server needs its extra packages ({error.name}): pip install 'facenet-serve[server]'")

from facenet_server.app import serve
from facenet_server.config import Config
from facenet_server.errors import FatalError, StartError

_TYPES = {int: click.IntRange(min=0), float: click.FloatRange(min=0)}


def _run(**values: Any) -> None:
    config = Config(**values)
    level = logging.getLevelNamesMapping()[config.log_level.upper()]
    # At "debug" other packages say too much: Pillow, what a photo's EXIF holds.
    logging.basicConfig(
        level=max(level, logging.INFO), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("facenet_server").setLevel(level)
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
        envvar=f"FACENET_{field.name.upper()}",
        show_envvar=True,
        help=field.metadata["help"],
    )


main = click.Command(
    "facenet-server",
    params=[_option(field) for field in fields(Config)],
    callback=_run,
    help="Serve face detection, embedding and comparison over gRPC. Ctrl-C or SIGTERM finishes what is in "
    "flight and ends; a second one ends at once.",
    context_settings={"max_content_width": 100},
)

if __name__ == "__main__":
    main()
