"""Engines that fail, callers that die, and the long run."""

import asyncio
import random
import subprocess
import sys
import time

import numpy as np

from chaos.drivers import channels, open_loop
from chaos.ledger import Ledger
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour


async def failing_engine(*, seconds: float) -> Report:
    """T22: one run in five fails; then memory for four rows only, at batches of eight."""
    report = Report()
    async with Server(Behaviour({"max_batch_rows": 8}, failing_share=0.2)) as server:
        async with channels(server.address, 8) as opened:
            failing = Ledger()
            await open_loop(opened, failing, 200, seconds)
            counts = await server.quiet(5)
    async with Server(Behaviour({"max_batch_rows": 8}, memory_rows=4)) as server:
        async with channels(server.address, 8) as opened:
            short = Ledger()
            await open_loop(opened, short, 120, seconds)
    report.note = f"failing {dict(failing.outcomes)}; short of memory {dict(short.outcomes)}"
    report.least("answered though runs fail", failing.outcomes["answered"] / failing.offered, 0.9)
    report.most(
        "failed otherwise than as an item",
        failing.offered - failing.outcomes["answered"] - failing.outcomes["INTERNAL"],
        0,
    )
    report.least("answered though memory is short", short.outcomes["answered"] / short.offered, 0.99)
    report.most("lost or wrong", failing.lost + short.lost + failing.outcomes["wrong"] + short.outcomes["wrong"], 0)
    report.most("items in flight afterwards", counts.items_in_flight, 0)
    return report


_CALLER = """
import sys, grpc
from chaos.ledger import crop, request
channel = grpc.insecure_channel(sys.argv[1])
data = [request(crop(n, int(sys.argv[2]))).SerializeToString() for n in range(8)]
def endless():
    while True:
        yield from data
print("up", flush=True)
for _ in channel.stream_stream("/facenet.v1.FaceService/Embed")(endless()):
    pass
"""


async def killed_callers(*, rounds: int, at_once: int = 8) -> Report:
    """T6: caller processes killed in the middle of their streams, and a survivor beside them."""
    report, survivor, slowest_s = Report(), Ledger(), 0.0
    async with Server(Behaviour({"max_batch_rows": 2, "max_items_per_caller": 8})) as server:
        async with channels(server.address, 1) as opened:
            surviving = asyncio.create_task(open_loop(opened, survivor, 8, rounds * 2.5))
            for salt in range(rounds):
                command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{_CALLER}", server.address]
                callers = [
                    subprocess.Popen([*command, str(salt * at_once + n)], stdout=subprocess.PIPE)  # noqa: ASYNC220
                    for n in range(at_once)
                ]
                for caller in callers:
                    assert caller.stdout is not None
                    await asyncio.to_thread(caller.stdout.readline)
                await asyncio.sleep(random.uniform(0.05, 0.5))
                for caller in callers:
                    caller.kill()
                killed = time.monotonic()
                while (await server.stats()).admission.streams > 1 and time.monotonic() < killed + 10:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                slowest_s = max(slowest_s, time.monotonic() - killed)
                for caller in callers:
                    caller.communicate()  # closes its pipe, too
            await surviving
            counts = await server.quiet(5)
            tracebacks = sum("Traceback" in line for line in server.log)
    report.note = f"{rounds * at_once} callers killed; the survivor {dict(survivor.outcomes)}"
    report.most("seconds until their streams are gone", slowest_s, 1.5)
    report.most("the survivor's items lost, wrong or failed", survivor.offered - survivor.outcomes["answered"], 0)
    report.most("items in flight afterwards", counts.items_in_flight, 0)
    report.most(
        "accepted − answered − abandoned", counts.accepted_items - counts.answered_items - counts.abandoned_items, 0
    )
    report.most("tracebacks in the log", tracebacks, 0)
    return report


async def soak(*, seconds: float, leak_bytes: int = 0) -> Report:
    """T27: 0.6 of the capacity with deadlines too short and connections that come and go; memory over time."""
    report, ledger, samples = Report(), Ledger(), list[tuple[float, float]]()
    async with Server(Behaviour({"max_batch_rows": 8}, leak_bytes=leak_bytes)) as server:
        start = time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            async with channels(server.address, 8) as opened:
                patient = open_loop(opened[:7], ledger, 230, min(10.0, seconds / 10))
                hasty = open_loop(opened[7:], Ledger(), 10, min(10.0, seconds / 10), timeout_s=0.02)
                await asyncio.gather(patient, hasty)
            samples.append((now, server.rss_mb))
        counts = await server.quiet(5)
    warm = np.array(samples[len(samples) // 5 :])
    pairs = [(b - a) / (t - s) for i, (s, a) in enumerate(warm) for t, b in warm[i + 1 :]]
    report.note = (
        f"{ledger.offered} items in {seconds:.0f} s; {warm[0, 1]:.0f} MB warm, {warm[-1, 1]:.0f} MB at the end"
    )
    report.most("memory slope (Theil–Sen), MB/h", float(np.median(pairs)) * 3600, 8 if seconds >= 600 else 400)
    report.most("memory over its median, MB", float(warm[:, 1].max() - np.median(warm[:, 1])), 64)
    report.most("lost or wrong", ledger.lost + ledger.outcomes["wrong"], 0)
    report.least("answered", ledger.outcomes["answered"] / ledger.offered, 0.999)
    report.most("items in flight afterwards", counts.items_in_flight, 0)
    return report
