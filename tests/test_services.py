"""The SDK in web services and task queues, as docs/services.md shows it: real servers and workers run the examples."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

pytestmark = pytest.mark.timeout(120)

EXAMPLES = ROOT / "examples"


@pytest.fixture
def pictures(tmp_path: Path, astronaut: np.ndarray, hopper: np.ndarray) -> Path:
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    Image.fromarray(hopper).save(tmp_path / "b.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "nobody.png")
    return tmp_path


def place(example: str, folder: Path, server: str) -> dict[str, str]:
    """The example in a folder, with the server's address in place of the default one; the environment to run it in."""
    code = (EXAMPLES / example).read_text()
    assert "127.0.0.1:50051" in code
    (folder / example).write_text(code.replace("127.0.0.1:50051", server))
    path = os.pathsep.join([str(folder), *(str(ROOT / room) for room in ("protos", "client"))])
    return {**os.environ, "PYTHONPATH": path}


@contextmanager
def running(command: list[str], env: Mapping[str, str], folder: Path, pattern: str) -> Iterator["re.Match[str]"]:
    """A process, from when its log has the pattern; SIGTERM ends it, and it must end in order."""
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", *command], env=env, cwd=folder, stdout=file, stderr=file)
    try:
        while not (found := re.search(pattern, log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield found
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


GUNICORN = ["gunicorn", "--preload", "--workers", "2", "-k", "uvicorn_worker.UvicornWorker", "--bind", "127.0.0.1:0"]


def post(url: str, folder: Path, a: str, b: str) -> Any:
    with httpx2.Client() as http, (folder / a).open("rb") as one, (folder / b).open("rb") as other:
        return http.post(f"{url}/compare", files={"a": one, "b": other}, timeout=30)


def test_a_fastapi_service_under_gunicorn_with_its_application_preloaded(server: str, pictures: Path) -> None:
    env = place("fastapi_service.py", pictures, server)
    command = [*GUNICORN, "fastapi_service:app"]
    with running(command, env, pictures, r"Listening at: (http://\S+)") as listening:
        with httpx2.Client() as http:
            assert http.get(f"{listening[1]}/health").status_code == 200
        for _ in range(8):  # both workers
            assert post(listening[1], pictures, "a.png", "a.png").json()["same"] is True
        told = post(listening[1], pictures, "a.png", "fastapi_service.py")
        assert (told.status_code, "side b" in told.json()["detail"]) == (422, True)
        assert post(listening[1], pictures, "nobody.png", "b.png").status_code == 422


def test_a_fastapi_service_without_a_server_says_that_it_is_unavailable(pictures: Path) -> None:
    env = place("fastapi_service.py", pictures, "127.0.0.1:1")
    command = [*GUNICORN, "fastapi_service:app"]
    with running(command, env, pictures, r"Listening at: (http://\S+)") as listening:
        with httpx2.Client() as http:
            assert http.get(f"{listening[1]}/health", timeout=30).status_code == 503
        told = post(listening[1], pictures, "a.png", "b.png")
    assert told.status_code == 503
    assert "no server within 5 s" in told.json()["detail"]


CALLER = """
import celery_tasks, pickle, sys
from celery.exceptions import TimeoutError
for path in ("a.png", "missing.png"):
    try:
        print([len(vector) for vector in celery_tasks.embed.delay(path).get(timeout=60)])
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_celery_worker_of_forked_processes(server: str, pictures: Path) -> None:
    env = place("celery_tasks.py", pictures, server)
    (pictures / "broker").mkdir()
    (pictures / "results").mkdir()
    env |= {"BROKER_URL": "filesystem://", "RESULT_BACKEND": f"file://{pictures / 'results'}"}
    (pictures / "celeryconfig.py").write_text(
        "broker_transport_options = {'data_folder_in': 'broker', 'data_folder_out': 'broker'}\n"
    )
    (pictures / "celery_tasks.py").write_text(
        (pictures / "celery_tasks.py").read_text() + "\napp.config_from_object('celeryconfig')\n"
    )
    command = ["celery", "-A", "celery_tasks", "worker", "--loglevel", "info", "--concurrency", "2"]
    with running(command, env, pictures, r"celery@\S+ ready"):
        ended = subprocess.run(
            [sys.executable, "-c", CALLER],
            env=env,
            cwd=pictures,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    first, second = ended.stdout.splitlines()
    assert first == "[128]", ended.stdout + ended.stderr
    assert second.startswith("ImageError cannot read")
