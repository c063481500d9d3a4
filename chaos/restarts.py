"""Servers that are told to end while they are busy."""

import asyncio
import itertools
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chaos.drivers import bidi, channels, one_message, one_shot
from chaos.ledger import Ledger, Marked
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour

_GRACE_S = 10
_BATCH_ROWS, _BATCH_S = 16, 0.04  # 400 items a second
_WARMING_S, _BUSY_S = 0.2, 0.5  # before a drain
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class _Drains:
    """What callers and servers met over several drains."""

    ledger: Ledger
    ends: list[str] = field(default_factory=list)  # of long streams
    exits: list[int] = field(default_factory=list)
    exit_s: list[float] = field(default_factory=list)
    told_s: list[float] = field(default_factory=list)  # until Watch said NOT_SERVING
    at_servers: Counter[str] = field(default_factory=Counter)  # their own counts of items
    answered: int = 0  # before the drains
    busy_s: float = 0.0  # until then
    silent: int = 0  # servers that ended without telling them


async def drain(*, repeats: int, protected: bool = True, models: str = "", crops: Marked | None = None) -> Report:
    """T9: SIGTERM under load: forty callers, twenty of them with long streams. What was accepted the ended servers
    say themselves; what was answered both sides do."""
    drains = _Drains(Ledger(crops=crops or Marked()))
    for repeat in range(repeats):
        config = {"grace_s": _GRACE_S, "max_batch_rows": _BATCH_ROWS}
        async with Server(Behaviour(config, models, _BATCH_S, hard_stop=not protected)) as server:
            await _one_drain(server, drains, repeat)
    ledger, at_servers = drains.ledger, drains.at_servers
    answers = ledger.outcomes["answered"] + ledger.outcomes["wrong"]
    told = answers + ledger.outcomes["not accepted"] + ledger.outcomes["call UNAVAILABLE"]
    report = Report()
    report.note = (
        f"{repeats} drains; streams {dict(Counter(drains.ends))}, items {dict(ledger.outcomes)}; {dict(at_servers)}"
    )
    if not models:
        load = drains.answered / drains.busy_s / (_BATCH_ROWS / _BATCH_S)
        report.least("items a second before the drain, over the capacity", load, 0.7)
        report.most("seconds until the exit after a second signal", await _second_signal_s(), 1)
    report.most("items accepted and abandoned, by the servers' counts", at_servers["abandoned"], 0)
    report.most("accepted − answered, by the servers' counts", at_servers["accepted"] - at_servers["answered"], 0)
    report.most("answers that callers did not get", abs(at_servers["answered"] - answers), 0)
    report.most("servers that ended without their counts", drains.silent, 0)
    report.most("long streams that did not end drained", sum(end != "drained" for end in drains.ends), 0)
    report.most("items without an answer that were neither handed back nor UNAVAILABLE", ledger.offered - told, 0)
    report.most("lost", ledger.lost, 0)
    report.most("doubled", ledger.doubled, 0)
    report.most("wrong", ledger.outcomes["wrong"], 0)
    report.most("seconds until Watch says NOT_SERVING", max(drains.told_s), 0.2)
    report.most("exit codes that are not 0", sum(code != 0 for code in drains.exits), 0)
    report.most("seconds until the exit", max(drains.exit_s), _GRACE_S + 2)
    return report


async def _one_drain(server: Server, drains: _Drains, repeat: int) -> None:
    ledger, stop = drains.ledger, asyncio.Event()
    async with channels(server.address, 4) as opened, channels(server.address, 1) as watching:
        salts = itertools.count(100 * repeat)
        streams = [asyncio.create_task(bidi(opened[n % 4], ledger, next(salts), stop, 0.01)) for n in range(20)]
        loops = [asyncio.create_task(calls_until_one_fails(opened[n % 4], ledger, next(salts))) for n in range(20)]
        told = asyncio.create_task(not_serving_at(watching[0]))
        await asyncio.sleep(_WARMING_S)
        warm, warm_at = (await server.stats()).admission, time.monotonic()
        await asyncio.sleep(_BUSY_S)
        drains.answered += (await server.stats()).admission.answered_items - warm.answered_items
        start = time.monotonic()
        drains.busy_s += start - warm_at
        server.signal(signal.SIGTERM)
        drains.ends += await asyncio.gather(*streams)
        await asyncio.gather(*loops)
        drains.exits.append(await asyncio.to_thread(server.wait, _GRACE_S + 10))
        drains.exit_s.append(time.monotonic() - start)
        drains.told_s.append(await told - start)
    drains.at_servers.update(server.last_counts)
    drains.silent += not server.last_counts


async def calls_until_one_fails(channel: grpc.aio.Channel, ledger: Ledger, salt: int) -> None:
    """Calls of one message, one after the other, until one is not answered."""
    method = one_message(channel)
    for number in itertools.count():
        mine = Ledger(crops=ledger.crops)
        await one_shot(method, mine, ledger.crops.crop(number, salt), 30)
        ledger.add(mine)
        if set(mine.outcomes) - {"answered"}:
            return
        await asyncio.sleep(0.01)


async def not_serving_at(channel: grpc.aio.Channel) -> float:
    """When the server's health said that it serves no more, or ended; on the monotonic clock."""
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    try:
        async for response in call:
            if response.status == _NOT_SERVING:
                return time.monotonic()
    except grpc.aio.AioRpcError:
        pass
    finally:
        call.cancel()
    return float("inf")


async def _second_signal_s() -> float:
    """How long a server takes to end on a second signal, while a run of five seconds is under way."""
    async with Server(Behaviour({"grace_s": _GRACE_S}, batch_s=5)) as server:
        async with channels(server.address, 1) as opened:
            held = Ledger()
            call = asyncio.create_task(one_shot(one_message(opened[0]), held, held.crops.crop(1), 20))
            while not (await server.stats()).admission.items_in_flight:  # noqa: ASYNC110 (the server's own count)
                await asyncio.sleep(0.02)
            server.signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            start = time.monotonic()
            server.signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait, 20)
            took_s = time.monotonic() - start
            await call
    return took_s
