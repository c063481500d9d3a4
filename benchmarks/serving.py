"""(c) The server over loopback against the same pipeline in process, on the same cores; batching across callers."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from facenet_client.load import Workload, random_crops, workload
from facenet_server.config import Config

from benchmarks.embedding import INT8
from benchmarks.figures import Figure, Section, Table
from benchmarks.in_process import InProcess
from benchmarks.loopback import Server
from benchmarks.photos import crops, small_photos
from benchmarks.plan import Plan
from benchmarks.racing import Contender, Lap, fastest, race, speed
from benchmarks.workers.protocol import Slice, repeated

CALLERS = 16
BATCH = 32
IN_PROCESS_AT_ONCE = (2, 8, 32)  # images; the best counts
FEW_OVER, MANY_OVER, READY_OVER = 0.90, 0.92, 0.90  # over in process
GAIN, CROPS_OVER, LONE = 0.03, 0.97, 1.10  # worker processes over --workers 0
BATCHING, OPEN_LOOP, LAG_MS = 1.35, 4.0, 20.0

FEW = f"photos, {CALLERS} callers, one a message"
MANY = f"photos, one caller, messages of {BATCH}"
READY = f"ready crops, int8, messages of {BATCH}"
NO_INT8 = f"no facenet-{INT8}.onnx among the models"


def measure(plan: Plan) -> Section:
    """Rates over loopback and in process, taken in turn; then batching, open loop and the event loop's lag."""
    section = Section("The server over loopback")
    photos = small_photos()
    with ExitStack() as stack:
        plan.say("starting servers")
        server = stack.enter_context(Server(plan))
        in_process = stack.enter_context(InProcess(Config(models=plan.models, device=plan.device)))
        one_process = stack.enter_context(Server(plan, "--workers", "0"))
        _against_in_process(section, plan, server, one_process, in_process, photos)
        _against_one_process(section, plan, server, one_process, photos)
        if INT8 in in_process.embedders:
            single = stack.enter_context(Server(plan, "--max-batch-rows", "1"))
            _across_callers(section, plan, server, single)
        else:
            names = (f"crops, {CALLERS} callers: batching over none", "crops at half that rate: p99 over idle latency")
            bounds: Sequence[dict[str, Any]] = ({"at_least": BATCHING}, {"at_most": OPEN_LOOP})
            section.figures.extend(
                Figure(name, None, "×", note=NO_INT8, **bound) for name, bound in zip(names, bounds, strict=True)
            )
        lag = server.stats().loop_lag
    section.figures.append(Figure("event-loop lag under these loads: p99", lag.p99_s * 1e3, "ms", at_most=LAG_MS))
    return section


def _against_in_process(
    section: Section,
    plan: Plan,
    server: Server,
    one_process: Server,
    in_process: InProcess,
    photos: Sequence[bytes],
) -> None:
    few = workload("detect", photos)
    contenders: dict[str, Contender] = {
        f"{FEW}: server": server.contender(few, callers=CALLERS),
        f"{FEW}: --workers 0": one_process.contender(few, callers=CALLERS),
        f"{MANY}: server": server.contender(workload("detect", photos, batch=BATCH), window=2),
    }
    for at_once in IN_PROCESS_AT_ONCE:
        contenders[f"photos: in process, {at_once} at once"] = repeated_call(
            partial(in_process.detect_encoded, photos, at_once), len(photos)
        )
    if INT8 in in_process.embedders:
        work = workload("embed_crops", random_crops(2 * BATCH), batch=BATCH, model=INT8)
        contenders[f"{READY}: server"] = server.contender(work, window=2)
        contenders[f"{READY}: in process"] = repeated_call(partial(in_process.embed, INT8, crops(BATCH)), BATCH)
    laps = race("loopback and in process", contenders, plan.pace.longer(4), plan.say)
    table = Table("Items per second", ("", "items/s"))
    table.rows.extend((name, 1 / lap.seconds) for name, lap in laps.items())
    section.tables.append(table)
    best = laps[fastest(laps, [name for name in laps if name.startswith("photos: in process")])]
    section.figures.append(_ratio(FEW, best, laps, FEW_OVER))
    gain = speed(laps[f"{FEW}: server"], best) - speed(laps[f"{FEW}: --workers 0"], best)
    section.figures.append(Figure(f"{FEW}: the same, less that of --workers 0", gain, "×", at_least=GAIN))
    section.figures.append(_ratio(MANY, best, laps, MANY_OVER))
    section.figures.append(_ratio(READY, laps.get(f"{READY}: in process"), laps, READY_OVER))


def _against_one_process(
    section: Section, plan: Plan, server: Server, one_process: Server, photos: Sequence[bytes]
) -> None:
    """Worker processes against one process: single crops of many callers, and what is alone."""
    has_int8 = INT8 in {model.name for model in server.info().models}
    crop = workload("embed_crops", random_crops(64), model=INT8 if has_int8 else "")
    contenders: dict[str, Contender] = {}
    for name, each in (("workers", server), ("--workers 0", one_process)):
        contenders[f"crops, {CALLERS} callers: {name}"] = each.contender(crop, callers=CALLERS)
        contenders[f"a lone crop: {name}"] = each.contender(crop)
        contenders[f"a lone photo: {name}"] = each.contender(workload("detect", photos))
    laps = race("worker processes and one process", contenders, plan.pace.longer(4), plan.say)
    names = (f"crops, {CALLERS} callers", "a lone crop", "a lone photo")
    ratios = {name: speed(laps[f"{name}: workers"], laps[f"{name}: --workers 0"]) for name in names}
    title = "workers over --workers 0"
    section.figures.append(Figure(f"{names[0]}: {title}", ratios[names[0]], "×", at_least=CROPS_OVER))
    section.figures.extend(
        Figure(f"{name}: time with {title}", 1 / ratios[name], "×", at_most=LONE) for name in names[1:]
    )


def _ratio(name: str, in_process: Lap | None, laps: dict[str, Lap], at_least: float) -> Figure:
    value = None if in_process is None else speed(laps[f"{name}: server"], in_process)
    note = NO_INT8 if value is None else ""
    return Figure(f"{name}: server over in process", value, "×", at_least=at_least, note=note)


def _across_callers(section: Section, plan: Plan, server: Server, single: Server) -> None:
    """Single crops of many callers, with batching and without; then at half the rate, by the clock."""
    work = workload("embed_crops", random_crops(64), model=INT8)
    contenders = {
        "batching": server.contender(work, callers=CALLERS),
        "max_batch_rows=1": single.contender(work, callers=CALLERS),
        "one caller": server.contender(work),
    }
    laps = race(f"single crops, {CALLERS} callers", contenders, plan.pace.longer(4), plan.say)
    table = Table(f"Single int8 crops of {CALLERS} callers", ("", "crops/s"))
    table.rows.extend((name, 1 / lap.seconds) for name, lap in laps.items())
    section.tables.append(table)
    value = speed(laps["batching"], laps["max_batch_rows=1"])
    section.figures.append(Figure(f"crops, {CALLERS} callers: batching over none", value, "×", at_least=BATCHING))
    section.figures.extend(_open_loop(plan, server, work, 0.5 / laps["batching"].seconds))


def _open_loop(plan: Plan, server: Server, work: Workload, rate_per_s: float) -> list[Figure]:
    """An idle caller and a steady rate in turn, at random times, which the bound is for, and at even ones; what counts
    is the median over the rounds, as everywhere."""
    idle_s, waits_s = list[float](), dict[bool, list[tuple[float, float]]]({True: [], False: []})
    for number in range(1, plan.pace.rounds // 2 + 2):
        idle_s.append(server.load(work, duration_s=2 * plan.pace.slice_s).latency.p50_s)
        for poisson, found_s in waits_s.items():
            how = {"callers": 2 * CALLERS, "rate_per_s": rate_per_s, "poisson": poisson}
            steady = server.load(work, duration_s=8 * plan.pace.slice_s, **how).latency
            found_s.append((steady.p50_s, steady.p99_s))
        plan.say(f"single crops, {rate_per_s:.0f} a second: round {number}")

    def figure(name: str, poisson: bool, at_most: float | None) -> Figure:
        p50_ms, p99_ms, idle_ms = (1e3 * median(each) for each in (*zip(*waits_s[poisson], strict=True), idle_s))
        value = median(p99_s / alone_s for (_, p99_s), alone_s in zip(waits_s[poisson], idle_s, strict=True))
        note = f"{rate_per_s:.0f} crops/s: p50 {p50_ms:.1f}, p99 {p99_ms:.1f} ms; an idle caller {idle_ms:.1f} ms"
        return Figure(name, value, "×", at_most=at_most, note=note)

    return [
        figure("crops at half that rate: p99 over idle latency", True, OPEN_LOOP),
        figure("the same, at even intervals", False, None),
    ]


def repeated_call(call: Callable[[], object], items: int) -> Contender:
    """A call of so many items as one that races: seconds an item."""

    def slice_(seconds: float) -> Slice:
        call()
        durations_s, _ = repeated(call, seconds)
        return Slice([duration_s / items for duration_s in durations_s], np.array([]), {})

    return slice_
