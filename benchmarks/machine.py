"""What the figures were measured on. Never a host's name, a user's or a path."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(frozen=True, slots=True)
class Machine:
    """The processor and the versions of what ran on it; ``device`` is where our networks ran."""

    cpu: str
    cores: int
    instructions: str
    memory_gib: int
    system: str
    python: str
    device: str
    versions: Mapping[str, str]


def describe(device: str, versions: Mapping[str, str]) -> Machine:
    """This machine."""
    about = _cpuinfo()
    flags = set(about.get("flags", "").split())
    return Machine(
        cpu=about.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        instructions=", ".join(name for name in INSTRUCTIONS if name in flags),
        memory_gib=_memory_gib(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        device=_gpu() if device == "cuda" else device,
        versions=dict(sorted(versions.items())),
    )


def _gpu() -> str:
    """The first GPU and its driver, as NVIDIA's tool names them."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "cuda"


def has_vnni() -> bool:
    """Whether this processor multiplies int8 faster than float32."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_cpuinfo().get("flags", "").split())


def usable_cores() -> int:
    """The cores this process may run on, where the system tells; else all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OthersLoad:
    """How much of the cores other programs took since this was made, as far as Linux tells. Our own processes count
    once they have been waited for."""

    def __init__(self) -> None:
        self._start_s, self._busy_s, self._own_s = time.monotonic(), _busy_s(), _own_s()

    def share(self) -> float | None:
        """0…1 of all cores."""
        if self._busy_s is None:
            return None
        others_s = (_busy_s() or 0.0) - self._busy_s - (_own_s() - self._own_s)
        return max(0.0, others_s / (time.monotonic() - self._start_s) / (os.cpu_count() or 1))


def _busy_s() -> float | None:
    """Core seconds that were not idle since the system started, those taken by the host of a virtual one included."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, path.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    return sum(os.times()[:4])


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else ""
    return dict(re.findall(r"^(\w[\w ]*?)\s*: (.*)$", first, re.MULTILINE))


def _memory_gib() -> int:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
