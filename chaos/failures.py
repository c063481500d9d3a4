"""Callers that die or freeze."""

import asyncio
import random
from contextlib import ExitStack

from chaos.caller import Caller
from chaos.drivers import PATIENT_S, channels, open_loop
from chaos.ledger import Ledger
from chaos.overload import at_rest, rows_run
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour

_EIGHT_ROWS = {"max_batch_rows": 8}
_BATCH = 2  # rows, of callers that are killed; what each of them has in flight is four of them
_QUEUE_S = 0.3  # in which fifteen batches would run


async def killed_callers(*, rounds: int, at_once: int = 8) -> Report:
    """T6: caller processes killed in the middle of their streams, and a survivor beside them."""
    report, survivor, slowest_s, run_for_dead, over = Report(), Ledger(), 0.0, 0, asyncio.Event()
    async with Server(Behaviour({"max_batch_rows": _BATCH, "max_items_per_caller": 8})) as server:
        async with channels(server.address, 1) as opened:

            async def survive() -> None:
                while not over.is_set():
                    await open_loop(opened, survivor, 4, 1)  # a pause of a second leaves it within its share

            surviving = asyncio.create_task(survive())
            for salt in range(rounds):
                with ExitStack() as stack:
                    callers = [stack.enter_context(Caller(server.address, salt * at_once + n)) for n in range(at_once)]
                    for caller in callers:
                        await asyncio.to_thread(caller.up)
                    await asyncio.sleep(random.uniform(0.05, 0.5))
                    for caller in callers:
                        caller.kill()
                    slowest_s = max(slowest_s, await server.seconds_until_streams(lambda count: count <= 1, 10))
                    before = await _run_for_nobody(server)
                    await asyncio.sleep(_QUEUE_S)
                    run_for_dead = max(run_for_dead, await _run_for_nobody(server) - before)
            over.set()
            await surviving
            counts = await server.quiet(5)
            tracebacks = sum("Traceback" in line for line in server.log)
    report.note = f"{rounds * at_once} callers killed; the survivor {dict(survivor.outcomes)}"
    report.most("seconds until their streams are gone", slowest_s, 1)
    report.most("rows that ran once their streams were gone, beyond the batch that ran then", run_for_dead - _BATCH, 0)
    report.most("the survivor's items lost, wrong or failed", survivor.offered - survivor.outcomes["answered"], 0)
    report.most("the survivor's answers doubled", survivor.doubled, 0)
    at_rest(report, counts)
    report.most("tracebacks in the log", tracebacks, 0)
    return report


async def _run_for_nobody(server: Server) -> int:
    """Rows that its embedder ran and whose answer was not written, so far."""
    stats = await server.stats()
    return rows_run(stats) - int(stats.admission.answered_items)


async def frozen_callers(
    *, callers: int, streams: int, keepalive_s: tuple[float, float], as_shipped: bool = False
) -> Report:
    """T8: caller processes stopped where they are, their connections open. ``keepalive_s``: between the server's
    probes, and for their answers; ``as_shipped``: they are the server's own, and not set here."""
    report, bound_s, beside = Report(), sum(keepalive_s) + 5, Ledger()
    behaviour = Behaviour(dict(_EIGHT_ROWS), keepalive_s=None if as_shipped else keepalive_s)
    async with Server(behaviour) as server:
        with ExitStack() as stack:
            frozen = [stack.enter_context(Caller(server.address, n, streams)) for n in range(callers)]
            for caller in frozen:
                await asyncio.to_thread(caller.up)
            before = (await server.quiet(0)).streams
            for caller in frozen:
                caller.freeze()
            async with channels(server.address, 1) as good:
                goodly = asyncio.create_task(open_loop(good, beside, 4, bound_s, PATIENT_S))
                freed_s = await server.seconds_until_streams(lambda count: count <= 1, bound_s + 5, every_s=0.2)
                await goodly
            counts = await server.quiet(1)
            note = f"{callers} callers with {before} streams stopped at once, freed after {freed_s:.1f} s"
    report.note = note
    report.least("streams when they were stopped", before, callers * streams)
    report.most("seconds until what they had is free", freed_s, bound_s)
    report.least("the good caller's calls answered meanwhile, share", beside.outcomes["answered"] / beside.offered, 1)
    at_rest(report, counts)
    return report
