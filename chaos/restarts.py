"""Servers that stop, are stopped, and come back."""

import asyncio
import itertools
import signal
from collections import Counter
from contextlib import AsyncExitStack

import numpy as np
from facenet_client import AsyncClient
from facenet_client.errors import FaceNetError

from chaos.drivers import bidi, channels, one_shot, stub
from chaos.ledger import Ledger, crop, request
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour, vector_of

_FAST = {"max_batch_rows": 64}


async def drain(*, repeats: int, protected: bool = True) -> Report:
    """T9: SIGTERM under load: forty callers, twenty of them with long streams."""
    report, ledger, exits, ends, others = Report(), Ledger(), [], list[str](), Counter[str]()
    for repeat in range(repeats):
        async with Server(Behaviour(_FAST | {"grace_s": 10}, hard_stop=not protected)) as server:
            async with channels(server.address, 4) as opened:
                stop, unary = asyncio.Event(), Ledger()
                streams = [
                    asyncio.create_task(bidi(opened[n % 4], ledger, repeat * 100 + n, stop, 0.01)) for n in range(20)
                ]
                loops = [asyncio.create_task(_loop(opened[n % 4], unary, n)) for n in range(20)]
                await asyncio.sleep(0.7)
                server.signal(signal.SIGTERM)
                ends += await asyncio.gather(*streams)
                await asyncio.gather(*loops)
                exits.append(await asyncio.to_thread(server.wait, 15))
                others += unary.outcomes
                ledger.outcomes["wrong"] += unary.outcomes["wrong"]
    in_flight = sum(count for name, count in ledger.outcomes.items() if name.startswith("ended"))
    report.note = f"{repeats} drains; streams ended {dict(Counter(ends))}, one-shot calls {dict(others)}"
    report.most("long streams not drained", sum(end != "drained" for end in ends), 0)
    report.most("accepted items without an answer", in_flight, 0)
    told = others["answered"] + others["call UNAVAILABLE"] + others["not accepted"]
    report.most("one-shot calls that failed but for UNAVAILABLE", others.total() - told, 0)
    report.most("wrong", ledger.outcomes["wrong"], 0)
    report.most("lost", ledger.lost, 0)
    report.most("exit codes that are not 0", sum(code != 0 for code in exits), 0)
    return report


async def _loop(channel: object, ledger: Ledger, salt: int) -> None:
    method = stub(channel)  # type: ignore[arg-type]
    for number in itertools.count():
        pixels = crop(number, 1000 + salt)
        await one_shot(method, ledger, pixels, request(pixels).SerializeToString(), 5)
        if set(ledger.outcomes) - {"answered"}:
            return
        await asyncio.sleep(0.01)


async def rolling(*, calls: int, hard: bool = False, retry: bool = True, kill: bool = False) -> Report:
    """T10 (SIGTERM) and T11 (``kill``: SIGKILL): three servers restarted in turn under SDK callers."""
    report, cycles, wrong, failures, done = Report(), 0, 0, list[str](), 0
    servers = [Server(Behaviour(_FAST | {"grace_s": 10}, batch_s=0.0, hard_stop=hard)) for _ in range(3)]
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        client = AsyncClient([server.address for server in servers], timeout_s=20, retry=retry)
        await stack.enter_async_context(client)
        finished = asyncio.Event()

        async def call(worker: int) -> None:
            nonlocal done, wrong
            while not finished.is_set():
                pixels = crop(done, 7000 + worker)
                done += 1
                image = np.frombuffer(pixels, np.uint8).reshape(160, 160, 3)
                try:
                    (result,) = await client.embed_crops([image])
                except FaceNetError as error:
                    failures.append(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(0.01)
                    continue
                if result.error is not None:
                    failures.append(f"{type(result.error).__name__}: {result.error}")
                elif not np.array_equal(np.asarray(result), vector_of(pixels)):
                    wrong += 1

        workers = [asyncio.create_task(call(worker)) for worker in range(8)]
        for server in itertools.cycle(servers):
            await asyncio.sleep(0.5)
            server.signal(signal.SIGKILL if kill else signal.SIGTERM)
            await asyncio.to_thread(server.wait, 20)
            await asyncio.to_thread(server.start)
            cycles += 1
            if done >= calls and cycles >= 3:
                break
        finished.set()
        await asyncio.gather(*workers)
    report.note = f"{done} calls over {cycles} {'kills' if kill else 'restarts'}" + (
        f"; first {failures[0]}" if failures else ""
    )
    report.least("calls", done, calls)
    report.most("failures", len(failures), 0)
    report.most("wrong", wrong, 0)
    return report
