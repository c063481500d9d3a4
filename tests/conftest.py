"""What the tests share: the real models, servers in processes of their own, clients of either kind, portraits, the
optional photos."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
import skimage.data
import trustme
from authority import Authority
from facenet_client import AsyncClient, Client
from facenet_server.models.contract import PORTS
from facenet_server.serving.per_image_detector import warm_up
from hypothesis import settings
from PIL import Image
from tiny_models import tiny_model, write

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as the packages do: some tests import ONNX Runtime before them

# The clock of a busy machine says nothing about behaviour.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

ROOT = Path(__file__).parent.parent
Pixels = np.ndarray
Call = Callable[..., Coroutine[Any, Any, Any]]


# They import TensorFlow, or run `facenet-convert`, which needs it.
collect_ignore = (
    []
    if find_spec("tensorflow")
    else [
        "test_convert.py",
        "test_convert_full_size.py",
        "test_convert_graphs.py",
        "test_convert_keras.py",
        "test_convert_releases.py",
        "test_from_facenet.py",
        "test_quantize.py",
    ]
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which tests were left out is said where it is read: at the end."""
    if collect_ignore:
        left_out = ", ".join(collect_ignore)
        terminalreporter.write_line(f"LEFT OUT, as TensorFlow is not installed (run `make install`): {left_out}")


def pytest_sessionstart() -> None:
    """Compiled code is made (once on a machine: seconds) before any test's time counts."""
    warm_up()


class ServerProcess:
    """A server as a process. Its log is read all along, so that it never waits for a full pipe."""

    def __init__(self, *flags: str, **environment: str) -> None:
        command = [sys.executable, "-m", "facenet_server", "--listen", "127.0.0.1:0", *flags]
        path = os.pathsep.join(str(ROOT / room) for room in ("protos", "server"))
        in_process = {"FACENET_WORKERS": "0"}  # what is not about workers needs none, and starts sooner
        env = {**os.environ, **in_process, "PYTHONPATH": path, **environment}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """The first line of the log that matches, once it is there."""
        with self._news:
            self._news.wait_for(lambda: self._ended or re.search(pattern, "".join(self._lines)), timeout=30)
            found = re.search(pattern, "".join(self._lines))
        assert found, f"the server never said {pattern!r}:\n{self.log()}"
        return found

    def kill(self) -> None:
        """End it without ceremony."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def log(self) -> str:
        """All that it said so far."""
        with self._news:
            return "".join(self._lines)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


@contextmanager
def server_process(*flags: str, **environment: str) -> Iterator[tuple[str, ServerProcess]]:
    """A server on a free port; yields its address and its process, and ends it."""
    server = ServerProcess(*flags, **environment)
    try:
        yield server.wait_for(r"listening on (\S+)")[1], server
    finally:
        server.kill()


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(10)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="session")
def models() -> Path:
    """The converted networks: ``make models``, or the folder named by FACENET_MODELS."""
    folder = Path(os.environ.get("FACENET_MODELS", ROOT / "models"))
    if not (folder / "manifest.json").exists():
        pytest.skip(f"no models in {folder}: run `make models`")
    return folder


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[str]:
    """The address of a server on the real networks, in a worker process."""
    with server_process("--models", str(models), "--workers", "1") as (target, _):
        yield target


@pytest.fixture(scope="session")
def astronaut() -> Pixels:
    """Eileen Collins, public domain (NASA): (512, 512, 3) uint8 RGB."""
    return np.asarray(skimage.data.astronaut())


@pytest.fixture(scope="session")
def hopper() -> Pixels:
    """Grace Hopper, public domain (US Navy): (606, 512, 3) uint8 RGB."""
    path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of research photos, which are not part of the project."""
    folder = Path(os.environ.get("FACENET_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test photos in {folder} (FACENET_TEST_DATA)")
    return folder


@pytest.fixture
def odd_files(photos: Path) -> Sequence[Path]:
    """Valid, strange and broken image files."""
    return sorted(file for file in (photos / "odd_images").iterdir() if file.is_file())


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """``await call(target, method, *args, **options)``: one method of a fresh client of either kind."""

    def sync(target: Any, settings: Any, method: str, *args: Any, **options: Any) -> Any:
        with Client(target, **settings) as client:
            return getattr(client, method)(*args, **options)

    async def run(
        target: Any,
        method: str,
        *args: Any,
        timeout_s: float = 10,
        connections: int = 1,
        credentials: Any = None,
        **options: Any,
    ) -> Any:
        settings: Any = {"timeout_s": timeout_s, "connections": connections, "credentials": credentials}
        if request.param == "sync":
            return await asyncio.to_thread(sync, target, settings, method, *args, **options)
        async with AsyncClient(target, **settings) as client:
            return await getattr(client, method)(*args, **options)

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder of whole models, all of them tiny."""
    (folder := tmp_path / "models").mkdir()
    return write(folder, {f"{kind}.onnx": tiny_model(kind) for kind in (*PORTS, "embedder")})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A certificate authority of the test's own."""
    return Authority(trustme.CA(), tmp_path)


@pytest.fixture
def tls_files(authority: Authority) -> dict[str, str]:
    """The settings of a server that speaks TLS."""
    chain, key = authority.certificate("127.0.0.1")
    return {"tls_certificate": chain, "tls_key": key}
