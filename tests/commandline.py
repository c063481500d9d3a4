"""Commands as processes."""

import os
import subprocess
import sys
from collections.abc import Mapping

from conftest import ROOT

from chaos.starts import refusal


def facenet(
    server: str, *arguments: object, before: str = "", environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the command against a server; ``before`` is code that runs first in its process."""
    command, env = command_of(server, *arguments, before=before)
    env |= environment or {}
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="backslashreplace", check=False)


def command_of(server: str, *arguments: object, before: str = "") -> tuple[list[str], dict[str, str]]:
    """The command as a process's arguments, and its environment."""
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "client"))
    code = f"{before}\nfrom facenet_client.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": path, "FACENET_SERVER": server, "COLUMNS": "250"}
    return [sys.executable, "-c", code, *map(str, arguments)], environment


def error_line(*flags: str) -> str:
    """All that a server says of why it does not start."""
    ended = refusal(*flags)
    assert ended.line, ended
    return ended.line
