"""Commands as processes."""

import os
import subprocess
import sys

from conftest import ROOT

from chaos.starts import refusal


def facenet(server: str, *arguments: object, before: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command against a server; ``before`` is code that runs first in its process."""
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "client"))
    code = f"{before}\nfrom facenet_client.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": path, "FACENET_SERVER": server, "COLUMNS": "250"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def error_line(*flags: str) -> str:
    """All that a server says of why it does not start."""
    ended = refusal(*flags)
    assert ended.line, ended
    return ended.line
