"""The SDK in forked and spawned processes, on several event loops, and where it cannot work."""

import asyncio
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, server_process
from facenet_client import AsyncClient, Client
from nets import fake_server, square

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own: one in this process would be copied by a fork."""
    from facenet_server.models.contract import PORTS
    from tiny_models import tiny_model, write

    folder = tmp_path_factory.mktemp("models")
    write(folder, {f"{kind}.onnx": tiny_model(kind) for kind in (*PORTS, "embedder")})
    with server_process("--models", str(folder)) as (address, _):
        yield address


PHOTO = np.zeros((32, 32, 3), np.uint8)


def use(target: str, kind: str) -> str:
    """In a worker: what a call of a new client gives, or the error."""
    try:
        if kind == "sync":
            with Client(target, timeout_s=5) as client:
                return str(client.detect([PHOTO])[0].width)
        return str(asyncio.run(use_async(target)))
    except RuntimeError as error:
        return f"{error}"


async def use_async(target: str) -> int:
    async with AsyncClient(target, timeout_s=5) as client:
        return (await client.detect([PHOTO]))[0].width


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("is_open", [True, False], ids=["the parent's is open", "the parent's is closed"])
def test_a_worker_that_is_no_fork_has_clients_of_its_own(is_open: bool, method: str, kind: str, target: str) -> None:
    assert in_workers(method, is_open, kind, target) == ["32", "32"]


def in_workers(method: str, is_open: bool, kind: str, target: str) -> list[str]:
    """What two workers say of their own clients, after this process has used one."""
    context = multiprocessing.get_context(method)
    with Client(target) as client:
        client.detect([PHOTO])
        if is_open:
            with context.Pool(1) as pool, ProcessPoolExecutor(1, mp_context=context) as executor:
                return [pool.apply_async(use, (target, kind)).get(20), executor.submit(use, target, kind).result(20)]
    with context.Pool(1) as pool, ProcessPoolExecutor(1, mp_context=context) as executor:
        return [pool.apply_async(use, (target, kind)).get(20), executor.submit(use, target, kind).result(20)]


def run(code: str, target: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(str(ROOT / room) for room in ("protos", "client"))
    env = {**os.environ, "PYTHONPATH": path, "TARGET": target}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)


FORKS = """
import asyncio, multiprocessing, os, sys, numpy as np
from concurrent.futures import ProcessPoolExecutor
from facenet_client import AsyncClient, Client

TARGET, PHOTO = os.environ["TARGET"], np.zeros((32, 32, 3), np.uint8)

def sync():
    with Client(TARGET, timeout_s=5) as client:
        return client.detect([PHOTO])

async def wait():
    async with AsyncClient(TARGET, timeout_s=5) as client:
        return await client.detect([PHOTO])

def inherited():
    try:
        return parent.detect([PHOTO])
    finally:
        parent.close()

def work(name):
    try:
        return {"sync": sync, "async": lambda: asyncio.run(wait()), "inherited": inherited}[name]()
    except RuntimeError as error:
        return str(error)

def fork():
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        print(*pool.map(work, sys.argv[2:]), sep=chr(10))
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        print(*executor.map(work, sys.argv[2:]), sep=chr(10))

with Client(TARGET) as parent:
    parent.detect([PHOTO])
    if sys.argv[1] == "open":
        fork()
        print(parent.detect([PHOTO])[0].width)  # the parent's own goes on
if sys.argv[1] == "closed":
    fork()
"""


@pytest.mark.parametrize("state", ["open", "closed"])
def test_a_worker_that_is_forked_after_a_client_was_used_is_told_the_remedy_at_once(state: str, target: str) -> None:
    kinds = ["sync", "async", "inherited"] if state == "open" else ["sync", "async"]
    ended = run(FORKS, target, state, *kinds)
    assert ended.returncode == 0, ended.stderr
    told = ended.stdout.splitlines()
    if state == "open":
        assert told.pop() == "32"
    assert len(told) == 2 * len(kinds)
    assert all("forked" in line and "spawn" in line for line in told)


FORK_FIRST = """
import multiprocessing, os, numpy as np
from facenet_client import Client

def work(_):
    with Client(os.environ["TARGET"]) as client:
        return client.detect([np.zeros((32, 32, 3), np.uint8)])[0].width

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(work, range(4)))
"""


def test_a_fork_before_the_first_client_may_open_one(target: str) -> None:
    ended = run(FORK_FIRST, target)
    assert ended.stdout == "[32, 32, 32, 32]\n", ended.stderr


GEVENT = """
import os
from gevent import monkey
monkey.patch_all({patch})
from facenet_client import Client
with Client(os.environ["TARGET"], timeout_s=5) as client:
    print(client.detect([b""])[0].error.reason)
"""


@pytest.mark.parametrize("patch", ["", "thread=False", "select=False"])
def test_threads_that_gevent_has_replaced_are_refused_with_the_remedy(patch: str, target: str) -> None:
    ended = run(GEVENT.format(patch=patch), target)
    assert "RuntimeError: gevent has replaced this process's threads or select" in ended.stderr
    assert "patch_all(thread=False, select=False)" in ended.stderr


def test_the_remedy_for_gevent_is_one(target: str) -> None:
    assert run(GEVENT.format(patch="thread=False, select=False"), target).stdout == "EMPTY\n"


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_is_not_asked_for_this_machine(
    host: str, variable: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with Client(target.replace("127.0.0.1", host), timeout_s=10) as client:
        assert client.detect([PHOTO])[0].width == 32


def test_an_error_says_that_a_proxy_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with Client("photos.invalid:50051", timeout_s=2) as client, pytest.raises(Exception, match="no_proxy=photos"):
        client.detect([PHOTO])


async def test_a_client_on_another_event_loop_is_refused_and_can_be_closed() -> None:
    async with fake_server() as target, AsyncClient(target) as client:
        await client.detect([square()])

        async def elsewhere() -> str:
            with pytest.raises(RuntimeError) as raised:
                await client.detect([square()])
            return str(raised.value)

        assert "opened on another event loop" in await asyncio.to_thread(asyncio.run, elsewhere())
        assert len((await client.detect([square()]))[0].faces) == 1


async def test_a_client_that_is_closed_on_another_event_loop_is_closed() -> None:
    async with fake_server() as target:
        client = AsyncClient(target)
        await client.open()
        await client.detect([square()])
        await asyncio.to_thread(asyncio.run, client.aclose())
        with pytest.raises(RuntimeError, match="not open"):
            await client.detect([square()])


def test_a_client_is_opened_and_closed_without_with(target: str) -> None:
    client = Client(target)
    with pytest.raises(RuntimeError, match=r"call open\(\) first"):
        client.detect([PHOTO])
    client.open()
    client.open()
    assert client.detect([PHOTO])[0].width == 32
    client.close()
    client.close()
    client.open()
    assert client.is_ready()
    client.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("again", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_cannot_be_pickled_or_copied(kind: Any, again: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="open one in each process"):
        again(kind("127.0.0.1:1"))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("target", "settings", "error", "told"),
    [
        (50051, {}, TypeError, "a target is a text"),
        (b"127.0.0.1:50051", {}, TypeError, "a target is a text"),
        ([1], {}, TypeError, "a target is a text"),
        ("", {}, ValueError, "names no server"),
        ("localhost", {}, ValueError, "has no port"),
        ("a:1,photos.example.org", {}, ValueError, "has no port"),
        ("[::1]", {}, ValueError, "has no port"),
        ("::1", {}, ValueError, "in brackets"),
        ("ipv4:127.0.0.1", {}, ValueError, "has no port"),
        ("ipv6:[::1]", {}, ValueError, "has no port"),
        ("localhost:", {}, ValueError, "has no port"),
        (":50051", {}, ValueError, "has no port"),
        ("127.0.0.1:port", {}, ValueError, "has no port"),
        ("localhost:99999", {}, ValueError, "has no port from 1 to 65535"),
        ("localhost:0", {}, ValueError, "has no port from 1"),
        ("127.0.0.1:50051/", {}, ValueError, "has no port"),
        ("http://localhost:50051", {}, ValueError, "is a URL"),
        ("a:1", {"timeout_s": 1e10}, ValueError, "at most"),
        ("a:1", {"credentials": "s3cret"}, TypeError, "credentials are gRPC's"),
        ("dns:///photos.example.org", {}, ValueError, "has no port"),
        ("a:1", {"timeout_s": float("inf")}, ValueError, "timeout_s is inf"),
        ("a:1", {"timeout_s": float("nan")}, ValueError, "timeout_s is nan"),
        ("a:1", {"timeout_s": -1}, ValueError, "timeout_s is -1"),
        ("a:1", {"timeout_s": 0}, ValueError, "timeout_s is 0"),
        ("a:1", {"timeout_s": "30"}, ValueError, "timeout_s is '30'"),
        ("a:1", {"connections": 0}, ValueError, "connections is 0"),
        ("a:1", {"connections": 1.5}, ValueError, r"connections is 1\.5"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused_at_construction(
    kind: Any, target: Any, settings: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        kind(target, **settings)


@pytest.mark.parametrize("target", ["unix:/tmp/socket", "unix:socket", "ipv4:127.0.0.1:1,127.0.0.1:2", "[::1]:50051"])
def test_targets_of_other_forms_are_taken(target: str) -> None:
    Client(target)
