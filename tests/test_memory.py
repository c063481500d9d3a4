import asyncio
import subprocess
import sys

import pytest
from conftest import ROOT
from facenet_server import memory

BURST = """
import asyncio
from facenet_server import memory
from facenet_server.stats import resident_bytes

async def main():
    memory.limit_heaps(1)
    async with memory.given_back(0.05):
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
    async with memory.given_back(60):
        assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before
