"""What a user installs: the wheel alone, with the base dependencies alone."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

pytestmark = pytest.mark.timeout(300)

TALK = """
import sys
before = set(sys.modules)
import facenet_client
added = {name.partition(".")[0] for name in set(sys.modules) - before if "cython" not in name} - sys.stdlib_module_names
# What it imports decides what it costs; the time itself is the benchmark's to say.
assert added <= {"facenet_client", "facenet_proto", "google", "grpc", "numpy", "typing_extensions"}, added
import numpy, google.protobuf
with facenet_client.Client(sys.argv[1]) as client:
    (found,) = client.detect([numpy.load(sys.argv[2])])
    assert len(found.faces) == 1, found
print(f"protobuf {google.protobuf.__version__}")
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.parametrize("protobuf", ["protobuf==6.31.1", "protobuf>=7,<8"])
def test_the_bare_wheel_talks_to_a_server(
    wheel: Path, server: str, tmp_path: Path, protobuf: str, astronaut: np.ndarray
) -> None:
    np.save(tmp_path / "astronaut.npy", astronaut)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install: list[Any] = [python, "-m", "pip", "install", "--quiet", wheel, protobuf]
    subprocess.run(install, check=True, capture_output=True)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    names = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    installed = {line.partition("==")[0].lower() for line in names.split()} - {"pip", "setuptools"}
    assert installed == {"facenet-serve", "grpcio", "numpy", "protobuf", "typing_extensions"}
    talk: list[Any] = [python, "-c", TALK, server, tmp_path / "astronaut.npy"]
    said = subprocess.run(talk, env=clean, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"protobuf {protobuf[10]}.")

    for command, extra in (("facenet", "cli"), ("facenet-server", "server"), ("facenet-convert", "convert")):
        bare = subprocess.run([python.parent / command], capture_output=True, text=True, env=clean, check=False)
        assert bare.returncode == 1
        assert f"facenet-serve[{extra}]" in bare.stderr
        assert "Traceback" not in bare.stderr


@pytest.mark.parametrize("module", ["facenet_server.engine", "facenet_convert.verify"])
def test_onnx_runtime_tells_nobody_of_its_use(module: str, tmp_path: Path) -> None:
    """It would keep what it has to tell in the user's folder."""
    code = f"import {module}, onnxruntime as ort; ort.get_available_providers(); ort.SessionOptions()"
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "server", "convert"))
    subprocess.run([sys.executable, "-c", code], check=True, env={**kept, **homes, "PYTHONPATH": path})
    assert not [file for file in tmp_path.rglob("*") if "onnxruntime" in str(file)]
