"""What a user installs: the wheel alone, with the base dependencies alone; and what the extras hold."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from facenet_convert import installation

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


@pytest.mark.slow
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


@pytest.mark.parametrize("module", ["facenet_server.models.runtime", "facenet_convert.verify"])
def test_onnx_runtime_tells_nobody_of_its_use(module: str, tmp_path: Path) -> None:
    """It would keep what it has to tell in the user's folder."""
    code = f"import {module}, onnxruntime as ort; ort.get_available_providers(); ort.SessionOptions()"
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "server", "convert"))
    subprocess.run([sys.executable, "-c", code], check=True, env={**kept, **homes, "PYTHONPATH": path})
    assert not [file for file in tmp_path.rglob("*") if "onnxruntime" in str(file)]


# ---- the extras ----


def extras() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return found


def requirements(extra: str) -> set[str]:
    """What an extra asks for, with what it asks for by way of other extras."""
    found = set()
    for requirement in extras()[extra]:
        inner = re.fullmatch(r"facenet-serve\[(.*)\]", requirement)
        found |= set().union(*map(requirements, inner[1].split(","))) if inner else {requirement}
    return found


def test_the_light_extra_is_all_of_dev_but_what_the_conversion_and_ray_need() -> None:
    light, convert, ray, dev = map(requirements, ("dev-light", "convert", "ray", "dev"))
    assert dev == light | convert | ray
    assert not [requirement for requirement in light if re.match("ray|tensorflow|tf2onnx", requirement)]


def test_extras_that_share_a_package_ask_for_the_same_versions() -> None:
    of_package: dict[str, set[str]] = {}
    for requirement in set().union(*map(requirements, extras())):
        package, marker = re.match(r"[\w-]+", requirement), requirement.partition(";")[2]
        assert package is not None
        of_package.setdefault(package[0] + marker, set()).add(re.sub(r"\[.*?\]", "", requirement))
    assert [found for found in of_package.values() if len(found) > 1] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/from-facenet.md", "Makefile"])
def test_extras_stand_in_quotes_that_every_shell_knows(page: str) -> None:
    """The shell of Windows, cmd.exe, takes single quotes for part of the name."""
    assert not re.findall(r"'[^' ]*\[[a-z,-]+\]'", (ROOT / page).read_text())


# ---- faults of an installation ----


def convert(*arguments: str, python: str | Path = sys.executable, path: str = "") -> "subprocess.CompletedProcess[str]":
    """Run ``facenet-convert`` with a Python of its own, and a folder more to import from."""
    folders = os.pathsep.join(filter(None, [path, str(ROOT / "convert")]))
    command = [str(python), "-m", "facenet_convert", *arguments]
    env = {**os.environ, "PYTHONPATH": folders}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_where_there_is_no_pip_an_error_names_uvs(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    (binaries,) = [folder for name in ("bin", "Scripts") if (folder := tmp_path / name).is_dir()]
    bare = convert(python=binaries / "python")
    assert bare.returncode == 1
    assert bare.stderr.endswith(': uv pip install "facenet-serve[convert]"\n')


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The metadata of both distributions of ONNX Runtime, as if both were installed."""
    for name, version in (("onnxruntime", "1.30.0"), ("onnxruntime_gpu", "1.31.1")):
        (folder := tmp_path / f"{name}-{version}.dist-info").mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("distribution")
def test_two_distributions_of_onnx_runtime_are_named_with_the_way_to_repair_them() -> None:
    told = installation.conflict()
    assert told is not None
    assert "onnxruntime 1.30.0 and onnxruntime-gpu 1.31.1 are both installed" in told
    assert "remove onnxruntime." in told
    assert told.endswith("pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu")


def test_one_distribution_of_onnx_runtime_is_as_it_should_be() -> None:
    assert installation.conflict() is None


def test_the_rest_that_an_uninstalled_distribution_left_is_no_onnx_runtime(distribution: Path) -> None:
    (distribution / "onnxruntime" / "capi").mkdir(parents=True)
    command = [sys.executable, "-S", "-c", "from facenet_convert import installation; print(installation.fault())"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(distribution), str(ROOT / "convert")])}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=True)  # -S: without the real one
    assert "onnxruntime-gpu 1.31.1: its files are incomplete" in ran.stdout
    assert ran.stdout.endswith("uv pip install onnxruntime-gpu\n")


def test_the_command_warns_of_two_distributions_and_goes_on(distribution: Path) -> None:
    pytest.importorskip("tensorflow", reason="the command needs TensorFlow: `make install`")
    ended = convert("mtcnn", "--help", path=str(distribution))
    assert ended.returncode == 0
    assert ended.stderr.startswith("Warning: onnxruntime 1.30.0 and onnxruntime-gpu 1.31.1")


@pytest.mark.parametrize(
    ("option", "told"),
    [("--version", "facenet-convert, version 0.1.0"), ("-h", "Usage: "), ("--help", "Usage: ")],
)
def test_the_command_tells_its_version_and_its_help(option: str, told: str) -> None:
    pytest.importorskip("tensorflow", reason="the command needs TensorFlow: `make install`")
    ended = convert(option)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(told)
