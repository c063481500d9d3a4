"""The process's own memory and open files: that memory stays flat, that looking through it stops nobody."""

import asyncio
import ctypes
import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from facenet_server.telemetry import cgroups

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MOST_FILES = 1 << 20  # where the system has no limit
_M_ARENA_MAX = -8  # glibc, malloc.h


def limit_heaps(count: int) -> None:
    """Have the C library share so many heaps among all threads. Unasked, glibc gives threads heaps of their own, up to
    eight a core: a server's memory goes on rising for hours. Elsewhere nothing happens."""
    if mallopt := _of_glibc("mallopt"):
        mallopt(_M_ARENA_MAX, count)


@asynccontextmanager
async def given_back(every_s: float) -> AsyncIterator[None]:
    """Meanwhile memory that is free goes back to the system again and again: glibc would keep what a burst of calls
    took, in pieces. Elsewhere nothing happens."""

    async def keep_giving() -> None:
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(give_back)

    giving = asyncio.create_task(keep_giving())
    try:
        yield
    finally:
        giving.cancel()
        await asyncio.wait({giving})


def give_back() -> None:
    """Give memory that is free back to the system."""
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def private_bytes() -> int:
    """The memory that this process holds and shares with no other; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def usable_bytes(limits: Iterable[Path] | None = None) -> int | None:
    """The memory that this process may use: the machine's, or its container's or unit's where that is less. None where
    the system does not tell. ``limits``: files with a number of bytes, or "max"."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in cgroups.memory_limits() if limits is None else limits:
        with suppress(OSError, ValueError):  # no such file; "max"
            found.append(int(limit.read_text()))
    return min(found)


def open_files() -> int:
    """How many files and connections this process may have open."""
    if resource is None:
        return _MOST_FILES
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_FILES if soft == resource.RLIM_INFINITY else soft


def allow_open_files() -> None:
    """Let this process have as many files open as it may: systems' own first limit, often 1,024, is for programs that
    use ``select``."""
    if resource is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, open_files()), hard))


def freeze_gc() -> None:
    """Whatever is there by now stays: Python's collector need not look through it, which stops all calls for some 60
    milliseconds each time."""
    gc.collect()
    gc.freeze()


def _of_glibc(name: str) -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
