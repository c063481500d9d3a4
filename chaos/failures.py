"""Engines that fail, and callers that die."""

import asyncio
import random
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import Self

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


class Caller:
    """A caller in a process of its own, which sends without end until it is stopped or killed."""

    def __init__(self, address: str, salt: int) -> None:
        command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{_CALLER}", address, str(salt)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.communicate()  # closes its pipe, too

    def up(self) -> None:
        """Wait until it is about to send."""
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def freeze(self) -> None:
        """Stop it where it is, its connections open."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it."""
        self._process.kill()


async def killed_callers(*, rounds: int, at_once: int = 8) -> Report:
    """T6: caller processes killed in the middle of their streams, and a survivor beside them."""
    report, survivor, slowest_s = Report(), Ledger(), 0.0
    async with Server(Behaviour({"max_batch_rows": 2, "max_items_per_caller": 8})) as server:
        async with channels(server.address, 1) as opened:
            surviving = asyncio.create_task(open_loop(opened, survivor, 8, rounds * 2.5))
            for salt in range(rounds):
                with ExitStack() as stack:
                    callers = [stack.enter_context(Caller(server.address, salt * at_once + n)) for n in range(at_once)]
                    for caller in callers:
                        await asyncio.to_thread(caller.up)
                    await asyncio.sleep(random.uniform(0.05, 0.5))
                    for caller in callers:
                        caller.kill()
                    slowest_s = max(slowest_s, await server.seconds_until_streams(1, 10))
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
