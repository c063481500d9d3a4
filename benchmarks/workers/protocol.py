"""How the benchmark talks to what it measures: the worker's end. Needs nothing but the standard library and numpy.

The benchmark hands down one end of a pipe. A worker says once what it has loaded and what it can run, and then
answers one request after the other, so that only the worker that is asked computes.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Function = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""What is timed: pixels to boxes (N, 5: x1 y1 x2 y2 score), or crops (N, 160, 160, 3) to embeddings."""

StageTimes = Mapping[str, tuple[int, int]]
"""By stage: rows so far, and the nanoseconds that they took."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The versions of what is loaded, and the names of the functions."""

    versions: Mapping[str, str]
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """Run a function over and over, for about so many seconds and at least once."""

    function: str
    rows: NDArray[np.uint8]
    seconds: float


@dataclass(frozen=True, slots=True)
class Slice:
    """How long each call took, what the last one gave, and what each stage did in all of them."""

    durations_s: list[float]
    result: NDArray[Any]
    stages: StageTimes


def serve(
    functions: Mapping[str, Function], versions: Mapping[str, str], stages: Callable[[], StageTimes] = dict
) -> None:
    """Answer until the benchmark hangs up. ``stages`` tells the stages' sums, where there are any."""
    with Connection(int(sys.argv[1])) as benchmark:
        benchmark.send(Hello(dict(versions), tuple(functions)))
        while True:
            try:
                request: Request = benchmark.recv()
            except EOFError:
                return
            benchmark.send(_timed(functions[request.function], request, stages))


def repeated(call: Callable[[], T], seconds: float) -> tuple[list[float], T]:
    """How long each call took, over about so many seconds and at least one, and what the last one gave."""
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        result = call()
        durations.append(time.perf_counter() - start)
        if time.perf_counter() >= end:
            return durations, result


def _timed(function: Function, request: Request, stages: Callable[[], StageTimes]) -> Slice:
    function(request.rows)  # another worker ran before: caches and clocks come back untimed
    before = stages()
    durations, result = repeated(lambda: function(request.rows), request.seconds)
    return Slice(durations, result, _difference(before, stages()))


def _difference(before: StageTimes, after: StageTimes) -> StageTimes:
    return {
        name: (rows - before.get(name, (0, 0))[0], elapsed_ns - before.get(name, (0, 0))[1])
        for name, (rows, elapsed_ns) in after.items()
    }
