import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from facenet_server.config import Config
from facenet_server.telemetry import process_memory

BURST = """
import asyncio
from facenet_server.telemetry import process_memory
from facenet_server.telemetry.counters import resident_bytes

async def main():
    process_memory.limit_heaps(1)
    async with process_memory.given_back(0.05):
        burst = [bytes(70_000) for _ in range(3000)]
        kept = burst[::50]  # pieces that hold what lies between them
        most = resident_bytes()
        del burst
        while resident_bytes() > most - 150_000_000:
            await asyncio.sleep(0.05)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library is another")
def test_what_a_burst_took_is_given_back() -> None:
    path = {"PYTHONPATH": str(ROOT / "server")}
    subprocess.run([sys.executable, "-c", BURST], check=True, env=path, timeout=15)


async def test_giving_back_ends_with_the_server() -> None:
    before = asyncio.all_tasks()
    async with process_memory.given_back(60):
        assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before


def test_a_container_may_use_less_than_its_machine_has(tmp_path: Path) -> None:
    own, none, unlimited = (tmp_path / name for name in ("own", "none", "unlimited"))
    own.write_text("1000000\n")
    unlimited.write_text("max\n")
    assert process_memory.usable_bytes([none, own, unlimited]) == 1_000_000
    assert process_memory.usable_bytes([none, unlimited]) == process_memory.usable_bytes([])


@pytest.mark.parametrize(
    ("gigabytes", "settings", "streams"),
    [
        pytest.param(64, {}, 1024, id="a large machine"),
        pytest.param(8, {}, 139, id="a small one"),
        pytest.param(8, {"max_message_mib": 4}, 726, id="with smaller messages"),
        pytest.param(8, {"max_streams": 2000}, 2000, id="as it was told"),
        pytest.param(0.01, {}, 1, id="hardly any"),
    ],
)
def test_so_many_streams_are_let_in_that_their_largest_messages_fit(
    gigabytes: float, settings: dict[str, Any], streams: int
) -> None:
    assert Config(**settings).with_streams_for(int(gigabytes * 1e9)).max_streams == streams
