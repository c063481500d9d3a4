"""Servers that cannot start: models that are not whole, settings that make no sense, a port or a device that is not to
be had."""

import asyncio
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import trustme

from chaos.children import environment
from chaos.report import Report

_FILE = "rnet.onnx"

# What a start may say before its one line: its log, gRPC's own of a port and its TLS, how to use the command.
_USUAL = re.compile(r"\d{4}-\d\d-\d\d \S+ (INFO|WARNING) |E\d{4} .* (add_port|ssl_\w+)\.cc|Usage: |Try '|$")


@dataclass(frozen=True)
class Fault:
    """What keeps a server from starting, and what its one line must name: a file, a setting, or what to do. ``flags``
    may name the models' folder: {folder}."""

    name: str
    told: str
    damage: Callable[[Path], object] = lambda folder: None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """How a start that came to nothing ended. ``line``: all that it said of why; empty where that is not one line, or
    begins otherwise than its exit code's should, or where it listened."""

    code: int
    line: str
    seconds: float


def refusal(*flags: str) -> Refusal:
    """Start a server, which must end by itself."""
    command, start = [sys.executable, "-m", "facenet_server", *flags], time.monotonic()
    env = environment()
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=30)
    lines = [line for line in ended.stderr.splitlines() if not _USUAL.match(line)]
    begins = {1: "facenet-server: ", 2: "Error: "}.get(ended.returncode, "nothing else is right")
    is_so = len(lines) == 1 and lines[0].startswith(begins) and "listening on" not in ended.stderr
    return Refusal(ended.returncode, lines[0] if is_so else "", time.monotonic() - start)


def _file(change: Callable[[bytes], bytes], *, listed: bool = False) -> Callable[[Path], None]:
    """A model file that was changed, with the manifest's hash of it, or without."""

    def damage(folder: Path) -> None:
        data = change((folder / _FILE).read_bytes())
        (folder / _FILE).write_bytes(data)
        if listed:
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["files"][_FILE] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _without_golden_answer(data: bytes) -> bytes:
    model = onnx.load_from_string(data)
    kept = {each.key: each.value for each in model.metadata_props if each.key != "golden"}
    onnx.helper.set_model_props(model, kept)
    return bytes(model.SerializeToString())


def _weights_in(location: str, place: Callable[[Path, Path], object] = Path.rename) -> Callable[[Path], None]:
    """A model whose weights are a file of their own, which ``place`` has brought from the folder to the one above and
    left there in one way or another."""

    def damage(folder: Path) -> None:
        model = onnx.load(folder / _FILE)
        onnx.save_model(model, folder / _FILE, save_as_external_data=True, location="weights", size_threshold=0)
        model = onnx.load(folder / _FILE, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location.format(folder=folder)
        place(folder / "weights", folder.parent / "weights")
        _file(lambda _: bytes(model.SerializeToString()), listed=True)(folder)

    return damage


def _and_link(weights: Path, elsewhere: Path) -> None:
    weights.rename(elsewhere)
    weights.symlink_to(elsewhere)


def _and_second_name(weights: Path, elsewhere: Path) -> None:
    elsewhere.hardlink_to(weights)


def _folder_for(name: str) -> Callable[[Path], None]:
    """A file that nobody can read, the superuser neither: a folder of its name."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def _garbage_key(folder: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    (folder / "server.key").write_bytes(bytes(range(256)))


def _of(name: str) -> Callable[[Path], None]:
    return lambda folder: _file(lambda _: (folder / name).read_bytes(), listed=True)(folder)


_CHAIN_AND_KEY = ("{folder}/server.pem", "--tls-key", "{folder}/server.key")

FAULTS = [
    Fault("no folder", "manifest.json", shutil.rmtree),
    Fault("no manifest", "manifest.json", lambda folder: (folder / "manifest.json").unlink()),
    Fault(
        "garbage manifest", "manifest.json", lambda folder: (folder / "manifest.json").write_bytes(bytes(range(256)))
    ),
    Fault("a folder for a manifest", "manifest.json", _folder_for("manifest.json")),
    Fault("no file", _FILE, lambda folder: (folder / _FILE).unlink()),
    Fault("empty", _FILE, _file(lambda data: b"")),
    Fault("a folder for a file", _FILE, _folder_for(_FILE)),
    Fault("truncated", _FILE, _file(lambda data: data[:-1])),
    Fault("one bit flipped", _FILE, _file(_flipped)),
    Fault("truncated, and listed so", _FILE, _file(lambda data: data[:-1], listed=True)),
    Fault("another network's, and listed so", "no rnet", _of("onet.onnx")),
    Fault("no golden answer, and listed so", _FILE, _file(_without_golden_answer, listed=True)),
    *(
        Fault(f"weights elsewhere, {how}", "weights in another file", damage)
        for how, damage in {
            "above": _weights_in("../weights"),
            "by the whole path": _weights_in("{folder}/../weights"),
            "behind a link": _weights_in("weights", _and_link),
            "by a second name": _weights_in("weights", _and_second_name),
        }.items()
    ),
    Fault("nowhere to listen", "HOST:PORT", flags=("--listen", "nowhere")),
    Fault("no such embedder", "default embedder", flags=("--default-embedder", "x")),
    Fault("batches of no rows", "--max-batch-rows", flags=("--max-batch-rows", "0")),
    Fault("a key that is none", "server.key is not the key", _garbage_key, ("--tls-certificate", *_CHAIN_AND_KEY)),
    Fault("no certificate", "nowhere.pem", flags=("--tls-certificate", "nowhere.pem", "--tls-key", "nowhere.key")),
    Fault("a key without a certificate", "--tls-certificate", flags=("--tls-key", "server.key")),
    Fault("no tokens", "nobody", flags=("--tokens", "nobody")),
    Fault("tokens in plain text", "tokens are secret", flags=("--tokens", "tokens", "--listen", "0.0.0.0:0")),
    Fault("no such flag", "--models", flags=("--models-folder", "models")),
]
if not Path("/dev/nvidiactl").exists():
    FAULTS.append(Fault("no GPU", "device cuda cannot be had", flags=("--device", "cuda")))


def _named(flags: tuple[str, ...], folder: Path) -> list[str]:
    return [flag.format(folder=folder) for flag in flags]


async def refused_starts(*, models: str, rounds: int, every: int = 1) -> Report:
    """T20: each fault, or each ``every``-th of them, so many times, on a copy of the models."""
    report, otherwise, slowest_s = Report(), list[str](), 0.0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        faults = [*FAULTS, Fault("a port that is taken", port, flags=("--listen", f"127.0.0.1:{port}"))]
        for fault in rounds * faults[::every]:
            with tempfile.TemporaryDirectory() as room:
                folder = Path(room) / "models"
                await asyncio.to_thread(shutil.copytree, models, folder)
                fault.damage(folder)
                ended = await asyncio.to_thread(refusal, "--models", str(folder), *_named(fault.flags, folder))
            slowest_s = max(slowest_s, ended.seconds)
            if fault.told not in ended.line:
                otherwise.append(f"{fault.name}: {ended.code} {ended.line!r}")
    report.note = f"{len(faults[::every])} faults, {rounds} times; {otherwise or 'each named in one line'}"
    report.most("starts that ended otherwise than in one line that names the cause", len(otherwise), 0)
    report.most("seconds until the slowest of them ended", slowest_s, 5)
    return report
