"""(f) Cost against load: callers and message sizes over loopback, and the memory that a long mixture leaves."""

from functools import partial

import numpy as np
from facenet_client.load import random_crops, workload
from PIL import Image

from benchmarks import plots
from benchmarks.embedding import FP16, INT8, MODEL
from benchmarks.figures import Figure, Section, Table
from benchmarks.loopback import Server
from benchmarks.photos import portraits
from benchmarks.plan import Plan
from benchmarks.plots import Line

CALLERS = (1, 2, 4, 8, 16, 32, 64)
MESSAGE_SIZES = (1, 2, 4, 8, 16, 32, 64)
SIZES, FIRST, LAST = 50, 2_000, 20_000
GROWTH = 1.1


def measure(plan: Plan) -> Section:
    """Both curves, and the memory."""
    section = Section("Cost against load")
    with Server(plan) as server:
        embedders = {model.name for model in server.info().models}
        model = next(name for name in ((INT8, MODEL) if plan.on_cpu else (FP16, MODEL)) if name in embedders)
        _curve(section, plan, server, model, "callers with one crop a message", "callers.svg", CALLERS, by_callers=True)
        _curve(section, plan, server, model, "crops a message, one caller", "messages.svg", MESSAGE_SIZES)
    with Server(plan) as server:
        section.figures.append(_memory(plan, server))
    return section


def _curve(
    section: Section,
    plan: Plan,
    server: Server,
    model: str,
    axis: str,
    file: str,
    counts: tuple[int, ...],
    *,
    by_callers: bool = False,
) -> None:
    made = random_crops(64)
    table = Table(f"Ready crops ({model}) by {axis}", (axis, "crops/s", "p50 ms", "p99 ms", "rows a batch"))
    rates: list[float] = []
    for count in counts:
        plan.say(f"{axis}: {count}")
        work = workload("embed_crops", made, batch=1 if by_callers else count, model=model)
        callers, window = (count, 1) if by_callers else (1, 2)
        report = server.load(work, callers=callers, window=window, duration_s=4 * plan.pace.slice_s)
        rates.append(report.items_per_s)
        rows = report.server.stage(model).mean_rows if report.server else None
        latency = report.latency
        table.rows.append((count, report.items_per_s, latency.p50_s * 1e3, latency.p99_s * 1e3, rows))
    section.tables.append(table)
    line = Line("crops/s", [float(count) for count in counts], rates)
    section.plots.append(plots.draw(plan.out / file, [line], axis, "crops per second"))


def _memory(plan: Plan, server: Server) -> Figure:
    """What the process holds after 20,000 images of 50 sizes, over what it held after 2,000."""
    rng = np.random.default_rng(0)
    portrait = Image.fromarray(portraits()[0])
    sides = rng.integers(60, 200, (SIZES, 2))
    images = [np.asarray(portrait.resize((int(width), int(height)))) for width, height in sides]
    load = partial(server.load, workload("detect", images), callers=16, warm_up_s=0.0)
    plan.say(f"memory: {FIRST:,} images of {SIZES} sizes")
    load(messages=FIRST)
    early = server.stats().resident_bytes
    plan.say(f"memory: {LAST:,} images")
    load(messages=LAST - FIRST)
    late = server.stats().resident_bytes
    note = f"{early / 1e6:.0f} MB, then {late / 1e6:.0f} MB"
    return Figure(
        f"memory after {LAST:,} images of {SIZES} sizes over that after {FIRST:,}",
        late / early,
        "×",
        at_most=GROWTH,
        note=note,
    )
