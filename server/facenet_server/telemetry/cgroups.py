"""What Linux's control groups let this process have: of a container, or of a systemd unit."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_MOUNTED, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNIFIED = ("", "unified")  # where version 2 is mounted: alone, or beside version 1


def folders(controller: str, mounted: Path = _MOUNTED, own: Path = _OWN) -> list[Path]:
    """The folders of this process's groups and of their parents, for a controller ("cpu", "memory"). Each of them has
    limits, which hold together. Elsewhere than on Linux there are none.

    ``own`` has a line ``NUMBER:CONTROLLERS:PATH`` for each hierarchy; version 2 names no controllers.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for _, names, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not names or controller in names.split(","):
            for root in [mounted / name for name in ((controller, names) if names else _UNIFIED)]:
                # In a container the path may be that which the host knows: then the root alone is there.
                group = root / path.strip("/")
                found += [each for each in (group, *group.parents) if each.is_relative_to(root)]
    return list(dict.fromkeys(found))


def usable_cores(groups: Iterable[Path] | None = None) -> int:
    """The cores this process may run on, or as many as its container's quota is worth where that is less; all there are
    where the system does not tell. ``groups``: the control groups whose quotas hold, instead of this process's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, quota_cores(groups) or cores)


def quota_cores(groups: Iterable[Path] | None = None) -> int | None:
    """The cores whose time this process may use up, by the least quota of its groups, rounded up; None without any."""
    quotas = list(_quotas(folders("cpu") if groups is None else groups))
    return max(1, math.ceil(min(quotas))) if quotas else None


def memory_limits(groups: Iterable[Path] | None = None) -> list[Path]:
    """The files in which this process's groups may have a memory limit: bytes, or "max"."""
    names = ("memory.max", "memory.limit_in_bytes")  # version 2, version 1
    return [group / name for group in (folders("memory") if groups is None else groups) for name in names]


def _quotas(groups: Iterable[Path]) -> Iterator[float]:
    """The quotas that there are, in cores."""
    for group in groups:
        with suppress(OSError, ValueError):  # no such file; "max"
            quota_us, period_us = map(int, (group / "cpu.max").read_text().split())
            yield quota_us / period_us
        with suppress(OSError, ValueError):
            quota_us = int((group / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:  # -1: none
                yield quota_us / int((group / "cpu.cfs_period_us").read_text())
