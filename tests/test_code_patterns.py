"""Patterns that lose messages, swallow cancellations or run foreign code, looked for in the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("client/facenet_client", "server/facenet_server", "convert/facenet_convert")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call, by the last part of its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_wait_cancels_a_read(path: Path) -> None:
    """asyncio.wait_for cancels what it waits for: on a server's read() it loses a message."""
    assert not [node.lineno for name, node in calls(parsed(path)) if name == "wait_for"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_whoever_catches_a_cancellation_passes_it_on(path: Path) -> None:
    lines = path.read_text().splitlines()
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type is not None else "BaseException"
        if "CancelledError" not in caught and "BaseException" not in caught:
            continue
        passed_on = any(isinstance(each, ast.Raise) for each in ast.walk(node))
        explained = "#" in lines[node.lineno - 1]
        assert passed_on or explained, f"line {node.lineno}: {lines[node.lineno - 1].strip()}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_queue_says_what_bounds_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    for name, node in calls(parsed(path)):
        if name == "Queue" and not node.args and not node.keywords:
            line = lines[node.lineno - 1]
            assert "bounded by" in line or "signal" in line or "received" in line, f"line {node.lineno}: {line.strip()}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_the_converter_reads_foreign_objects(path: Path) -> None:
    if "facenet_convert" in path.parts:
        return
    tree = parsed(path)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not imported & {"pickle", "joblib", "dill", "shelve"}
    assert not [node for _, node in calls(tree) for keyword in node.keywords if keyword.arg == "allow_pickle"]


@pytest.mark.parametrize("path", ["server/facenet_server/streams.py", "client/facenet_client/_lane.py"])
def test_a_stream_has_one_place_that_writes_and_one_that_reads(path: str) -> None:
    """Two writes at once lose all answers but one."""
    names = [name for name, _ in calls(parsed(ROOT / path))]
    assert names.count("write") == 1
    assert names.count("read") == 1
