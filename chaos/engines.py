"""Engines whose runs fail, whose workers are to end, and whose device is lost."""

import asyncio
import itertools
import math
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from chaos.drivers import PATIENT_S, bidi, channels, message_of, one_message, one_shot, open_loop
from chaos.ledger import Ledger, Marked
from chaos.overload import at_rest
from chaos.process import Server
from chaos.report import Report
from chaos.restarts import calls_until_one_fails, not_serving_at
from chaos.soak import NOISE
from chaos.stub import LOSE, NO_MEMORY, Behaviour

_EIGHT_ROWS = {"max_batch_rows": 8}


async def failing_engine(*, seconds: float) -> Report:
    """T22: one run in five fails; then memory for four rows only, at batches of eight."""
    report = Report()
    async with Server(Behaviour(dict(_EIGHT_ROWS), failing_share=0.2)) as server:
        async with channels(server.address, 8) as opened:
            failing = Ledger()
            # Rows run once more one by one: 150 a second are all it can do.
            await open_loop(opened, failing, 100, seconds, PATIENT_S)
            counts = await server.quiet(5)
    async with Server(Behaviour(dict(_EIGHT_ROWS), memory_rows=4)) as server:
        async with channels(server.address, 8) as opened:
            short = Ledger()  # messages of eight rows: twice what there is memory for
            await open_loop(opened, short, 20, seconds, PATIENT_S, message_of(8))
            short_counts = await server.quiet(5)
        short_runs = sum(NO_MEMORY in line for line in server.log)
    item_errors = failing.outcomes["INTERNAL"]
    report.note = f"failing {dict(failing.outcomes)}; short of memory {dict(short.outcomes)}"
    # A failing batch runs once more row by row: of its rows, too, one in five fails.
    report.least("answered though runs fail, share", failing.outcomes["answered"] / failing.offered, 0.9)
    report.least("items that got their own run's error", item_errors, 1)
    report.most("items that ended otherwise", failing.offered - failing.outcomes["answered"] - item_errors, 0)
    report.most("calls that broke", failing.broken_calls + short.broken_calls, 0)
    report.least("answered though memory is short, share", short.outcomes["answered"] / short.offered, 0.99)
    report.least("runs that were short of memory: at first, and once larger ones are tried again", short_runs, 2)
    report.most("lost", failing.lost + short.lost, 0)
    report.most("wrong", failing.outcomes["wrong"] + short.outcomes["wrong"], 0)
    at_rest(report, counts)
    at_rest(report, short_counts, "short of memory: ")
    return report


async def ending_workers(*, seconds: float, share: float) -> Report:
    """T24: such a share of the runs are to end their thread, and of as many batches the worker fails beside its run; at
    0.6 of the capacity, at which there are some fifty a second."""
    report, ledger = Report(), Ledger()
    async with Server(Behaviour(dict(_EIGHT_ROWS), ending_share=share, stumbling_share=share)) as server:
        async with channels(server.address, 8) as opened:
            await open_loop(opened, Ledger(), 240, 1, PATIENT_S)
            await server.quiet(5)
            threads, tasks = server.usage.threads, await server.tasks()
            await open_loop(opened, ledger, 240, seconds, PATIENT_S)
            counts = await server.quiet(5)
            more_threads, more_tasks = server.usage.threads - threads, await server.tasks() - tasks
    answers = sorted(ledger.ends.get("answered", [-math.inf, math.inf]))
    failed = ledger.outcomes["INTERNAL"]
    report.note = f"{dict(ledger.outcomes)}"
    report.least("answered, share", ledger.outcomes["answered"] / ledger.offered, 0.8)
    report.least("items told that theirs failed", failed, 1)
    report.most("items that ended otherwise", ledger.offered - ledger.outcomes["answered"] - failed, 0)
    report.most("seconds until the first answer after another, at most", float(np.diff(answers).max()), 2)
    report.most("threads more than before", more_threads, NOISE)
    report.most("tasks more than before", more_tasks, NOISE)
    report.most("lost", ledger.lost, 0)
    report.most("doubled", ledger.doubled, 0)
    report.most("wrong", ledger.outcomes["wrong"], 0)
    at_rest(report, counts)
    return report


@dataclass
class _Losses:
    """What callers met over several losses, and how long each took."""

    ledger: Ledger
    ends: Counter[str] = field(default_factory=Counter)  # of long streams
    codes: Counter[int] = field(default_factory=Counter)
    told_s: list[float] = field(default_factory=list)  # until Watch said NOT_SERVING
    exit_s: list[float] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)  # until the next process on the port had answered


async def lost_device(*, repeats: int, models: str = "", crops: Marked | None = None) -> Report:
    """T23: the device is lost under forty callers, twenty of them with long streams; then the next process on the
    port, as a supervisor would start it."""
    losses = _Losses(Ledger(crops=crops or Marked()))
    for repeat in range(repeats):
        async with Server(Behaviour(dict(_EIGHT_ROWS), models, photos=True)) as server:
            await _one_loss(server, losses, repeat)
    report, outcomes, ends = Report(), losses.ledger.outcomes, losses.ends
    report.note = f"{repeats} devices lost; items {dict(outcomes)}, streams {dict(ends)}"
    report.least("items told that the device is lost", outcomes["DEVICE_LOST"], repeats)
    known = sum(outcomes[each] for each in ("answered", "DEVICE_LOST", "not accepted", "call UNAVAILABLE"))
    report.most("items that ended otherwise", losses.ledger.offered - known, 0)
    report.most("streams that ended otherwise", ends.total() - ends["drained"] - ends["UNAVAILABLE"], 0)
    report.most("seconds until Watch says NOT_SERVING", max(losses.told_s), 1)
    report.most("seconds until the exit", max(losses.exit_s), 5)
    report.most("exit codes that are not 1", losses.codes.total() - losses.codes[1], 0)
    report.most("seconds until the next process answers", max(losses.back_s), 15)
    report.most("lost", losses.ledger.lost, 0)
    report.most("wrong", outcomes["wrong"], 0)
    return report


async def _one_loss(server: Server, losses: _Losses, repeat: int) -> None:
    ledger = losses.ledger
    async with channels(server.address, 4) as opened, channels(server.address, 1) as watching:
        told = asyncio.create_task(not_serving_at(watching[0]))
        salts, never = itertools.count(100 * repeat), asyncio.Event()
        streams = [asyncio.create_task(bidi(opened[n % 4], ledger, next(salts), never, 0.01)) for n in range(20)]
        calls = [asyncio.create_task(calls_until_one_fails(opened[n % 4], ledger, next(salts))) for n in range(20)]
        await asyncio.sleep(0.7)
        start = time.monotonic()
        server.signal(LOSE)
        losses.codes[await asyncio.to_thread(server.wait, 30)] += 1
        losses.exit_s.append(time.monotonic() - start)
        losses.ends.update(await asyncio.gather(*streams))
        await asyncio.gather(*calls)
        losses.told_s.append(await told - start)
    start, again = time.monotonic(), Ledger(crops=ledger.crops)
    await asyncio.to_thread(server.start)
    async with channels(server.address, 1) as opened:
        await one_shot(one_message(opened[0]), again, ledger.crops.crop(1), PATIENT_S)
    losses.back_s.append(time.monotonic() - start if again.outcomes["answered"] else math.inf)
