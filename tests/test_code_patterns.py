"""Patterns that lose messages or swallow cancellations, looked for in the source; each with examples that must be
found, and some that must not. What ruff can look for it does: `asyncio.wait_for`, pickles, blind exceptions."""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from code_patterns import Finding, Source, cancelled_readings, unended_reads

ROOT = Path(__file__).parent.parent
ROOMS = ("client/facenet_client", "server/facenet_server", "convert/facenet_convert")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
SERVED = [path for path in FILES if "facenet_convert" not in path.parts]
CALLING = [path for path in SERVED if not {"cli", "evaluation"} & set(path.parts)]  # these read and write files alone

READS_AND_WRITES = frozenset({"read", "write", "done_writing", "anext", "__anext__"})
CANCELLATIONS = frozenset({"CancelledError", "BaseException", "BaseExceptionGroup"})
QUEUES = frozenset({"Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"})

REASON = re.compile(r"not passed on: \w+( \S+)+")  # in the comment of a line that swallows a cancellation
BOUND = re.compile(r"bounded by \w+")  # of one that makes a queue


Check = Callable[[Source], Iterator[Finding]]


def cancelled_reads(source: Source) -> Iterator[Finding]:
    """Reads and writes of a call under a time limit that cancels them, in this function or in one that it calls. What
    was begun elsewhere may be one, too."""
    names = readers(source)
    for name, _, body in source.withs():
        if name not in ("timeout", "timeout_at"):
            continue
        for called, call in source.calls(*body):
            if called in names:
                yield call.lineno, f"{called} under a {name}"
        for node in (node for each in body for node in ast.walk(each)):
            if isinstance(node, ast.AsyncFor):
                yield node.lineno, f"async for under a {name}"
            if isinstance(node, ast.Await) and isinstance(node.value, ast.Name | ast.Attribute):
                yield node.lineno, f"{ast.unparse(node.value)}, begun elsewhere, awaited under a {name}"


def readers(source: Source) -> set[str]:
    """What reads or writes: those by name, and this file's coroutines that call one."""
    functions = [node for node in ast.walk(source.tree) if isinstance(node, ast.AsyncFunctionDef)]
    names: set[str] = set(READS_AND_WRITES)
    while new := {f.name for f in functions if names & {name for name, _ in source.calls(f)}} - names:
        names |= new
    return names


def swallowed_cancellations(source: Source) -> Iterator[Finding]:
    """Cancellations that are caught and not passed on, without a word why."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type is None or source.names(node.type) & CANCELLATIONS
            passed_on = any(isinstance(each, ast.Raise) for each in ast.walk(node))
            if caught and not passed_on and not REASON.search(source.comment(node)):
                yield node.lineno, source.lines[node.lineno - 1].strip()
    for name, call, body in source.withs():
        swallowed = name == "suppress" and source.names(*call.args) & CANCELLATIONS
        if swallowed and not REASON.search(source.comment(call)):
            yield call.lineno, "; ".join(map(ast.unparse, body))


def unbounded_queues(source: Source) -> Iterator[Finding]:
    """Queues without a bound of their own that do not say what bounds them."""
    for name, call in source.calls():
        size = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "maxsize")]
        bounded = size and not re.fullmatch(r"0|-\d+", ast.unparse(size[0]))
        if name in QUEUES and not bounded and not BOUND.search(source.comment(call)):
            yield call.lineno, source.lines[call.lineno - 1].strip()


def writers_and_readers(source: Source) -> list[tuple[str, int]]:
    """Each place that reads, then each that writes."""
    return sorted((name, call.lineno) for name, call in source.calls() if name in ("read", "write"))


def assert_none(check: Check, path: Path, known: dict[str, list[str]] | None = None) -> None:
    """Nothing is found, but for what is known of a file by its function and what is there."""
    where = str(path.relative_to(ROOT))
    found = list(check(Source(path.read_text())))
    assert [what for _, what in found] == (known or {}).get(where, []), (where, found)


@pytest.mark.parametrize("path", SERVED, ids=lambda path: path.stem)
def test_numpy_runs_nothing_that_it_reads(path: Path) -> None:
    assert "allow_pickle" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_wait_cancels_a_read(path: Path) -> None:
    """On a server it loses a message; on a client it ends the call."""
    assert_none(cancelled_reads, path)


@pytest.mark.parametrize("path", SERVED, ids=lambda path: path.stem)
def test_nobody_cancels_a_read_that_is_a_task_of_its_own(path: Path) -> None:
    assert_none(cancelled_readings, path)


@pytest.mark.parametrize("path", SERVED, ids=lambda path: path.stem)
def test_whoever_takes_what_was_read_asks_whether_it_is_the_end(path: Path) -> None:
    assert_none(unended_reads, path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_whoever_catches_a_cancellation_passes_it_on(path: Path) -> None:
    assert_none(swallowed_cancellations, path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_queue_says_what_bounds_it(path: Path) -> None:
    assert_none(unbounded_queues, path)


CLIENTS = [f"client/facenet_client/{name}.py" for name in ("_call", "_health", "_exchange_stream", "load/engine")]
PLACES: dict[str, list[str]] = {path: ["read", "write"] for path in CLIENTS} | {
    "server/facenet_server/rpc/stream.py": ["read", "write"],  # the read is unary calls', too
    "server/facenet_server/rpc/health.py": ["write"],  # who watches is told; unary has read the question
    "server/facenet_server/rpc/unary.py": ["write"],  # an answer
    "server/facenet_server/telemetry/counters.py": ["read"],  # a file
    "server/facenet_server/workers/worker.py": ["read"],  # a pipe
    "client/facenet_client/_images.py": ["read"],  # an open file
}


@pytest.mark.parametrize("path", CALLING, ids=lambda path: path.stem)
def test_a_stream_has_one_place_that_writes_and_one_that_reads(path: Path) -> None:
    """Two writes at once lose all answers but one. Whatever else reads or writes is known."""
    found = [name for name, _ in writers_and_readers(Source(path.read_text()))]
    assert found == PLACES.get(str(path.relative_to(ROOT)), [])


PLANTED: dict[Check, Sequence[str]] = {
    cancelled_reads: (
        "async with asyncio.timeout(1):\n    data = await call.read()",
        "async with asyncio.timeout(1):\n    await call.write(data)",
        "async with asyncio.timeout_at(when), other():\n    await anext(call)",
        "async with asyncio.timeout(1):\n    while True:\n        seen.append(await call.__anext__())",
        "async with asyncio.timeout(1):\n    async for message in call:\n        print(message)",
        "async with asyncio.timeout(1):\n    return await operation",
        "from asyncio import timeout as within\nasync with within(1):\n    await call.read()",
        "async def one():\n    return await call.read()\nasync def two():\n    return await one()\n"
        "async with asyncio.timeout(1):\n    await two()",
    ),
    cancelled_readings: (
        "reading = asyncio.create_task(call.read())\nawait asyncio.sleep(1)\nreading.cancel()",
        "self._reading = asyncio.ensure_future(self._call.read())\nself._reading.cancel()",
        "self.reading: Any = create_task(call.read())\ndef close(self):\n    self.reading.cancel()",
        "from asyncio import create_task as begin\nreading = begin(anext(call))\nreading.cancel()",
        "reading = group.create_task(call.read())\nloop.call_later(1, reading.cancel)",
        "reading = None if over else create_task(call.read())\nlater = reading\nlater.cancel()",
        "def start(call):\n    reading = ensure_future(call.read())\n    return reading\n"
        "def stop():\n    start(call).cancel()",
        "reading = create_task(call.read())\ndone, pending = await asyncio.wait({reading}, timeout=1)\n"
        "for task in pending:\n    task.cancel()",
        "readings = [create_task(call.read()) for call in calls]\n[each.cancel() for each in readings]",
        "def begun(operation):\n    task = create_task(operation)\n    tasks.add(task)\n    return task\n"
        "begun(call.read())\nfor each in tasks:\n    each.cancel()",
        "async def in_time(operation):\n    operation.cancel()\nawait in_time(operation=create_task(call.read()))",
    ),
    unended_reads: (
        "data = await call.read()\nprint(data)",
        "await call.read()",
        "async def one():\n    print(await call.read())\nasync def two(data):\n    return data is grpc.aio.EOF",
        "reading = create_task(call.read())\nawait asyncio.wait({reading})\ndata = reading.result()",
        "reading = create_task(call.read())\ndata = await reading",
        "async def public():\n    return await call.read()",
        "async def mine():\n    return await call.read()\nasync def other():\n    return bytes(await mine())",
        "def parsed(data):\n    return data\ndef other(data):\n    return data is EOF\n"
        "async def mine():\n    return parsed(await call.read())",
        "data = await anext(call)\nif data == b'':\n    pass",
    ),
    swallowed_cancellations: (
        "try:\n    pass\nexcept asyncio.CancelledError:\n    pass",
        "try:\n    pass\nexcept (ValueError, CancelledError):  # it does not matter\n    pass",
        "try:\n    pass\nexcept BaseException:  # not passed on: \n    pass",
        "try:\n    pass\nexcept:\n    pass",
        "from asyncio import CancelledError as Left\ntry:\n    pass\nexcept Left:\n    pass",
        "with contextlib.suppress(asyncio.CancelledError):\n    await task",
        "with suppress(ValueError, BaseException):  # whatever comes\n    await task",
    ),
    unbounded_queues: (
        "queue = asyncio.Queue()",
        "queue = asyncio.Queue[int]()",
        "queue = asyncio.Queue(maxsize=0)  # no bound",
        "queue: Queue[int] = Queue(0)",
        "queue = asyncio.LifoQueue(-1)",
        "signals = asyncio.PriorityQueue()",
        "Messages = asyncio.Queue[int | None]\nqueue = Messages()",
    ),
}

INNOCENT: dict[Check, Sequence[str]] = {
    cancelled_reads: (
        "reading = asyncio.create_task(call.read())\nasync with asyncio.timeout(1):\n    await event.wait()",
        "done, _ = await asyncio.wait({reading}, timeout=1)",
    ),
    cancelled_readings: (
        "reading = create_task(call.read())\nwriting = create_task(call.write(1))\nwriting.cancel()",
        "reading = create_task(call.read())\nawait asyncio.wait({reading})\nreading.result()\ncall.cancel()",
        "def begun(operation):\n    return create_task(operation)\n"
        "reading = begun(call.read())\nwriting = begun(call.write(1))\nwriting.cancel()",
        "reading = create_task(call.read())\nif reading.cancelled():\n    pass",
    ),
    unended_reads: (
        "data = await call.read()\nif data is grpc.aio.EOF:\n    pass",
        "while (data := await call.read()) is not EOF:\n    pass",
        "reading = create_task(call.read())\nawait asyncio.wait({reading})\n"
        "while reading.result() is not EOF:\n    pass",
        "def parsed(data):\n    return None if data is EOF else data\nasync def mine():\n"
        "    print(parsed(await call.read()))",
        "async def mine():\n    return await call.read()\n"
        "async def other():\n    data = await mine()\n    return data is EOF",
        "def begun(operation):\n    return create_task(operation)\nasync def two():\n    begun(call.read())\n"
        "    await begun(call.write(1))",
        "text = file.read()",
        "from facenet_client._call import Channel\ndata = await call.read()",
    ),
    swallowed_cancellations: (
        "try:\n    pass\nexcept asyncio.CancelledError:\n    forget()\n    raise",
        "try:\n    pass\nexcept BaseException as error:  # not passed on: the caller's own, handed over\n    pass",
        "try:\n    pass\nexcept Exception:\n    pass",
        "with suppress(ValueError):\n    await task",
    ),
    unbounded_queues: ("asyncio.Queue(5)", "asyncio.Queue(maxsize=n)", "asyncio.Queue[int]()  # bounded by the window"),
}


def examples(of: dict[Check, Sequence[str]]) -> list[Any]:
    return [
        pytest.param(check, text, id=f"{check.__name__}: {text}".replace("\n", "; "))
        for check, texts in of.items()
        for text in texts
    ]


@pytest.mark.parametrize(("check", "text"), examples(PLANTED))
def test_what_is_planted_is_found(check: Check, text: str) -> None:
    assert list(check(Source(text)))


@pytest.mark.parametrize(("check", "text"), examples(INNOCENT))
def test_what_is_innocent_is_not_found(check: Check, text: str) -> None:
    assert not list(check(Source(text)))


def test_a_second_place_that_writes_is_found() -> None:
    text = "async def one():\n    await call.write(1)\n    await call.read()\nasync def two():\n    await call.write(2)"
    assert [name for name, _ in writers_and_readers(Source(text))] == ["read", "write", "write"]
