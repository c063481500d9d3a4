"""A server with worker processes, as a process: what it loads, what ends with it, what travels between them."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calls import until
from conftest import ServerProcess, server_process
from facenet_client import Client
from facenet_server.workers import channel
from facenet_server.workers.channel import Channel, arrays_of, packed, told
from tiny_models import tiny_model, write


@contextmanager
def with_workers(folder: Path) -> Iterator[tuple[str, ServerProcess, list[int]]]:
    """A server on models that compute nothing, and the ids of its two workers and the spare one."""
    kinds = ("pnet", "rnet", "onet", "embedder")
    models = write(folder, {f"{kind}.onnx": tiny_model(kind) for kind in kinds})
    with server_process("--models", str(models), "--workers", "2") as (target, server):
        with Client(target) as client:
            while client.server_stats().workers.standing_by == 0:
                time.sleep(0.05)
        yield target, server, children(server.process.pid)


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT], ids=lambda number: number.name)
def test_workers_end_with_the_server_whatever_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    with with_workers(tmp_path) as (_, server, workers):
        assert len(workers) == 3
        server.process.send_signal(number)
        server.process.wait()
        while any(map(is_alive, workers)):  # the test's own timeout bounds it
            time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_that_are_the_servers_end_no_worker(number: signal.Signals, tmp_path: Path) -> None:
    with with_workers(tmp_path) as (target, _, workers), Client(target) as client:
        for worker in workers:
            os.kill(worker, number)
        client.embed_crops([np.zeros((160, 160, 3), np.uint8)])
        assert client.server_stats().workers.ended == 0


def test_the_front_has_loaded_no_decoder_and_no_network(tmp_path: Path) -> None:
    with with_workers(tmp_path) as (target, server, workers), Client(target) as client:
        client.detect([np.zeros((60, 60, 3), np.uint8)])
        loaded = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in (server.process.pid, workers[0])}
    for library in ("onnxruntime", "cv2", "PIL", "simplejpeg"):
        assert f"/{library}/" in loaded[workers[0]]
        assert f"/{library}/" not in loaded[server.process.pid]


def test_a_worker_is_offered_to_the_out_of_memory_killer_before_the_front(tmp_path: Path) -> None:
    with with_workers(tmp_path) as (_, server, workers):
        scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (server.process.pid, *workers)]
    assert all(score > scores[0] for score in scores[1:])


# ---- what travels ----


@contextmanager
def connected(on_message: Callable[..., object]) -> Iterator[tuple[Channel, list[str]]]:
    ours, theirs = socket.socketpair()
    ended: list[str] = []
    there = Channel(theirs, on_message, lambda: ended.append("there"))
    here = Channel(ours, lambda *_: None, lambda: ended.append("here"))
    try:
        yield here, ended
    finally:
        here.close()
        there.close()


@pytest.mark.parametrize("has_memory", [True, False], ids=["memory is passed", "all goes through the socket"])
async def test_arrays_of_any_size_arrive_as_they_were_and_leave_no_descriptor(
    has_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_HAS_MEMORY", has_memory and channel._HAS_MEMORY)
    sent = [np.arange(size, dtype=np.float32).reshape(-1, 1) for size in (0, 1, 5_000, 3_000_000, 7)]
    received: list[Any] = []

    def take(header: Any, payload: Any) -> None:
        received.append(arrays_of(payload, header["arrays"]))

    before = len(os.listdir("/proc/self/fd"))
    with connected(take) as (here, _):
        for each in sent:
            here.send({"arrays": told([each])}, await packed([each]))
        here.send({"arrays": told(sent)}, await packed(sent))
        await until(lambda: len(received) == len(sent) + 1)
    for one, (other,) in zip(sent, received, strict=False):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(sent, received[-1], strict=True):
        np.testing.assert_array_equal(one, other)
    del received[:], other
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_copy_that_nobody_waits_for_leaves_no_memory() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        copying = asyncio.create_task(packed([bytes(20 << 20)]))
        await asyncio.sleep(0.001)
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)
    await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_a_side_that_goes_is_noticed_and_what_was_to_be_sent_is_dropped() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    ended: list[str] = []
    here = Channel(ours, lambda *_: None, lambda: ended.append("here"))
    for _ in range(200):
        here.send({}, await packed([bytes(40_000)]))
    theirs.close()
    await until(lambda: ended)
    here.send({}, await packed([bytes(40_000)]))
    await asyncio.sleep(0)
    assert ended == ["here"]
    assert len(os.listdir("/proc/self/fd")) == before
