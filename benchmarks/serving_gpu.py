"""(c) on a GPU: ready crops in half precision, photos end to end, and batching across callers, over loopback."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from facenet_client.load import Report, random_crops, workload
from facenet_server.config import Config

from benchmarks.embedding import FP16, MODEL
from benchmarks.figures import Figure, Section, Table
from benchmarks.in_process import InProcess
from benchmarks.loopback import Server
from benchmarks.machine import usable_cores
from benchmarks.photos import crops, large_photos
from benchmarks.plan import Plan
from benchmarks.racing import race, speed
from benchmarks.serving import LAG_MS, repeated_call
from benchmarks.sweep import NO_FP16

BATCH = 64  # crops of a message
AT_ONCE = 256  # crops, in process
CALLERS = 64
THREADS = 2  # of each of several processes on one GPU
CROP_BOUNDS = {
    f"ready crops, fp16, messages of {BATCH}: several processes over in process": 0.7,
    f"ready crops, fp16, messages of {BATCH}: one process over in process": 0.7,
    f"crops, {CALLERS} callers: batching over none": 5.0,
}
PHOTO_RATE = 1500.0
ON_DEVICE = ("mtcnn", MODEL)  # what the names of stages on the GPU begin with


def measure(plan: Plan) -> Section:
    """Rates over loopback and in process, taken in turn; then photos, and the event loop's lag."""
    section = Section("The server over loopback, on a GPU")
    with ExitStack() as stack:
        plan.say("starting servers")
        server = stack.enter_context(Server(plan))
        n_processes = max(2, 3 * usable_cores() // 4)
        several = stack.enter_context(Server(plan, "--threads", str(THREADS), processes=n_processes))
        if FP16 in {model.name for model in server.info().models}:
            _crops(section, plan, server, several)
        else:
            section.figures.extend(Figure(name, None, "×", bound, note=NO_FP16) for name, bound in CROP_BOUNDS.items())
        _photos(section, plan, {"one process": server, f"{n_processes} processes": several})
        lag = server.stats().loop_lag
    section.figures.append(Figure("event-loop lag under these loads: p99", lag.p99_s * 1e3, "ms", at_most=LAG_MS))
    return section


def _crops(section: Section, plan: Plan, server: Server, several: Server) -> None:
    """Ready crops in messages of 64 against the pipeline in process; single ones with batching and without."""
    whole = workload("embed_crops", random_crops(BATCH), batch=BATCH, model=FP16)
    one = workload("embed_crops", random_crops(BATCH), model=FP16)
    with ExitStack() as stack:
        in_process = stack.enter_context(InProcess(Config(models=plan.models, device=plan.device)))
        single = stack.enter_context(Server(plan, "--max-batch-rows", "1"))
        contenders = {
            "messages of 64, 8 callers: several processes": several.contender(whole, callers=8, window=2),
            "messages of 64, 8 callers: one process": server.contender(whole, callers=8, window=2),
            "256 crops at once: in process": repeated_call(partial(in_process.embed, FP16, crops(AT_ONCE)), AT_ONCE),
            f"single crops, {CALLERS} callers: batching": server.contender(one, callers=CALLERS),
            f"single crops, {CALLERS} callers: max_batch_rows=1": single.contender(one, callers=CALLERS),
            "single crops, one caller": server.contender(one),
        }
        laps = race("ready crops, fp16", contenders, plan.pace.longer(4), plan.say)
    table = Table("Ready crops per second, fp16", ("", "crops/s"))
    table.rows.extend((name, 1 / lap.seconds) for name, lap in laps.items())
    section.tables.append(table)
    many, ours, local, batching, none, _ = laps.values()
    values = speed(many, local), speed(ours, local), speed(batching, none)
    section.figures.extend(
        Figure(name, value, "×", bound) for (name, bound), value in zip(CROP_BOUNDS.items(), values, strict=True)
    )


def _photos(section: Section, plan: Plan, servers: dict[str, Server]) -> None:
    """Photos of 640×480 end to end, and what of the way keeps the cores."""
    work = workload("detect", large_photos(), batch=4)
    table = Table(
        "Photos of 640×480 a second, JPEG, 24 callers with messages of 4", ("", "photos/s", "p50 ms", "p99 ms")
    )
    reports: list[Report] = []
    for name, server in servers.items():
        plan.say(f"photos of 640×480: {name}")
        reports.append(server.load(work, callers=24, window=2, duration_s=8 * plan.pace.slice_s))
        latency = reports[-1].latency
        table.rows.append((name, reports[-1].items_per_s, latency.p50_s * 1e3, latency.p99_s * 1e3))
    section.tables.extend([table, _stages(reports)])
    best = max(reports, key=lambda report: report.items_per_s)
    core_s = sum(compute_s for name, _, compute_s in _work(best) if not name.startswith(ON_DEVICE))
    note = f"{core_s * 1e3:.1f} ms of a core a photo in threads: {usable_cores() / core_s:.0f}/s were the cores all"
    section.figures.append(Figure("photos of 640×480, end to end", best.items_per_s, "/s", PHOTO_RATE, note=note))


def _work(report: Report) -> Sequence[tuple[str, float, float]]:
    """Each stage's rows and seconds of computing, a photo."""
    stages = report.server.stages if report.server else []
    return [(each.name, each.rows / report.items, each.compute_ns / 1e9 / report.items) for each in stages if each.rows]


def _stages(reports: Sequence[Report]) -> Table:
    """What each stage takes a photo, in the first way and in the last."""
    first, last = (_work(reports[number]) for number in (0, -1))
    many_of = {name: many for name, _, many in last}
    table = Table(
        "A photo's stages: rows, and milliseconds in one process and in several", ("stage", "rows", "one", "several")
    )
    table.rows.extend((name, rows, 1e3 * one, 1e3 * many_of.get(name, 0.0)) for name, rows, one in first)
    return table
