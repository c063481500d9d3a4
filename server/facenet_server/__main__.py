"""The command ``facenet-server``."""

import signal

if hasattr(signal, "SIGHUP"):  # Windows has none
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until ``serve`` logs it: the imports below take a second

import asyncio
import logging
import os
import sys
from dataclasses import Field
from functools import partial
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

from facenet_server.config import (
    GROUPS,
    VARIABLE_PREFIX,
    Config,
    default_of,
    fault_of,
    flag_of,
    range_of,
    settings,
    unknown_variables,
)
from facenet_server.errors import FatalError, StartError
from facenet_server.server import serve

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


class _Command(click.Command):
    """A command whose help has the settings in groups: first those that users set first, then the others."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        options = {param.name: param for param in self.get_params(ctx)}
        headings = [_heading(group, is_advanced) for is_advanced in (False, True) for group in GROUPS]
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in headings}
        for setting in settings():
            about, option = setting.metadata, options.pop(setting.name)
            sections[_heading(about["group"], about["advanced"])] += filter(None, [option.get_help_record(ctx)])
        sections["Help"] = [record for option in options.values() if (record := option.get_help_record(ctx))]
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _heading(group: str, is_advanced: bool) -> str:
    return f"Advanced: {group}" if is_advanced else group.capitalize()


class _Option(click.Option):
    """An option whose errors name the environment variable, too: the value may come from there."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The flag and the variable."""
        return f"{super().get_error_hint(ctx)} ({self.envvar})"


def _option(setting: Field[Any]) -> click.Option:
    """A setting as a flag and an environment variable."""
    flag, choices = flag_of(setting), setting.metadata.get("choices")
    default = f"default: {default_of(setting)}" if default_of(setting) else ""
    told = "; ".join(filter(None, (default, range_of(setting))))
    return _Option(
        [f"{flag}/--no-{flag[2:]}" if setting.type is bool else flag],
        type=click.Choice(choices) if choices else setting.type,
        default=setting.default,
        envvar=VARIABLE_PREFIX + setting.name.upper(),
        callback=partial(_checked, setting),
        help=setting.metadata["help"] + (f"  [{told}]" if told else ""),
    )


def _checked(setting: Field[Any], _: click.Context, __: click.Parameter, value: Any) -> Any:
    if fault := fault_of(setting, value):
        raise click.BadParameter(fault)
    return value


main = _Command(
    "facenet-server",
    params=[_option(setting) for setting in settings()],
    callback=_run,
    help="Serve face detection, embedding and comparison over gRPC. Ctrl-C or SIGTERM finishes what is in "
    "flight and ends; a second one ends at once.\n\nEach option is an environment variable, too: --max-streams is "
    "FACENET_MAX_STREAMS.",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
click.version_option(package_name="facenet-serve", prog_name="facenet-server")(main)

if __name__ == "__main__":
    main()
