"""Commands, in this process or in one of their own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

from click.testing import CliRunner
from conftest import ROOT
from facenet_client.cli import commands

from chaos.starts import refusal


def facenet(
    server: str, *arguments: object, before: str = "", environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the command against a server, in this process where that is the same; ``before`` is code that runs first in a
    process of its own, ``environment`` what is different there."""
    if before or environment or threading.current_thread() is not threading.main_thread():  # signals are the main one's
        return facenet_process(server, *arguments, before=before, environment=environment)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    runner = CliRunner(env={"FACENET_SERVER": server, "COLUMNS": "250"})
    try:
        ran = runner.invoke(commands.facenet, [str(each) for each in arguments], prog_name="facenet")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return subprocess.CompletedProcess(["facenet"], ran.exit_code, ran.stdout, ran.stderr)


def facenet_process(
    server: str, *arguments: object, before: str = "", environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """The same, always in a process of its own."""
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
