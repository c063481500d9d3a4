"""Strangers that mean ill: messages that are cheap to send and dear to parse, and connections that ask for nothing."""

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from facenet_server.config import MIB

from chaos.children import environment
from chaos.drivers import Named, channels, one_message, open_loop, read, tokens_of
from chaos.ledger import Ledger
from chaos.overload import at_rest
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour

_BUDGET_MIB = 256
_GOOD_PER_S = 5
_PATIENCE_S = 20.0


async def flip_flops(*, seconds: float, connections: int = 8, protected: bool = True) -> Report:
    """T36: pairs of 16 MiB in which one side is set again and again, over some connections, beside a good caller.
    Unprotected: nothing within an item is counted before it is parsed."""
    report, beside = Report(), Ledger()
    limits = {"max_mib_in_flight": _BUDGET_MIB, "max_batch_rows": 8}
    async with Server(Behaviour(limits, counts_within=protected)) as server, channels(server.address, 1) as good:
        await open_loop(good, Ledger(), _GOOD_PER_S, 2)
        async with server.growth() as grown, _strangers("flips", server.address, connections, seconds) as told:
            await anext(told)
            await open_loop(good, beside, _GOOD_PER_S, seconds)
            lag = (await server.stats()).loop_lag
            sent = int(await anext(told))
        counts = await server.quiet(10)
    report.note = f"{sent} messages of 16 MiB; the good caller {dict(beside.outcomes)}"
    report.least("messages that were sent, a connection", sent / connections, 1)
    report.most("event-loop lag p99, ms", 1e3 * lag.p99_s, 20)
    report.most("peak memory over base, MB", grown.mb, _BUDGET_MIB * MIB / 1e6 + 64)
    report.least("the good caller's calls answered, share", beside.outcomes["answered"] / max(1, beside.offered), 0.99)
    at_rest(report, counts)
    return report


async def idle_connections(*, connections: int, hold_s: float = 30.0, protected: bool = True) -> Report:
    """T37: more connections than the server takes, which ask for nothing and answer its pings; then a newcomer with a
    token. Unprotected: idle connections may stay for five minutes."""
    report = Report()
    with tokens_of(["newcomer"]) as tokens:
        limits = {"tokens": tokens, "max_connections": 64}
        async with Server(Behaviour(limits, idle_s=0 if protected else 300)) as server:
            async with _strangers("idle", server.address, connections, hold_s) as told:
                opened = int(await anext(told))
                start = time.monotonic()
                waited_s = await _first_answer(server.address, start)
                left = int(await anext(told))
    report.note = f"{opened} connections were opened, {left} are left after {hold_s:g} s"
    report.least("connections opened", opened, connections)
    report.most("seconds until a newcomer with a token is answered", waited_s, 15)
    return report


async def _first_answer(address: str, start: float) -> float:
    """When the first call of a newcomer is answered, who tries again and again; inf where none is."""
    ledger, number = Ledger(), 0
    while time.monotonic() - start < _PATIENCE_S:
        number += 1
        async with channels(address, 1) as [channel]:
            call: Any = one_message(Named(channel, "newcomer"))(
                ledger.crops.message(ledger.crops.crop(number)), timeout=2
            )
            if await read(call) is not grpc.aio.EOF:
                return time.monotonic() - start
        await asyncio.sleep(0.2)
    return math.inf


@contextlib.asynccontextmanager
async def _strangers(kind: str, address: str, count: int, seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
    """A process of them; what it writes, line by line."""
    command = [sys.executable, "-m", "chaos.flooder", kind, address, str(count), str(seconds)]
    pipe = asyncio.subprocess.PIPE
    strangers = await asyncio.create_subprocess_exec(*command, stdout=pipe, env=environment())
    try:
        assert strangers.stdout is not None
        yield aiter(strangers.stdout)
    finally:
        if strangers.returncode is None:
            strangers.kill()
        await strangers.wait()
