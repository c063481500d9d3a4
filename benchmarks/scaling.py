"""(scaling) What one front carries beyond this machine's cores: workers that only wait stand for cores that are not
here. How many it keeps busy, and what an item costs it."""

import io
from typing import Any

import numpy as np
from facenet_client.load import workload
from facenet_server.workers.worker import cpu_seconds
from PIL import Image

from benchmarks.figures import Figure, Section, Table
from benchmarks.loopback import Server
from benchmarks.plan import Plan

WORKERS, LINEAR_UP_TO, LINEAR = (1, 2, 4, 8, 16, 32), 16, 0.9
JOB_S, REAL_JOB_S = 0.2, 0.03
FRONT_MS = 1.0
_SIDE = 290  # px: files of 100 kB
_SERVER = "benchmarks.workers.idle_server"


def measure(plan: Plan) -> Section:
    """Dispatch to 1 … 32 workers, then the front's own ceiling."""
    section = Section("Scaling: workers that only wait")
    _dispatch(section, plan)
    _ceiling(section, plan)
    return section


def _dispatch(section: Section, plan: Plan) -> None:
    table = Table(f"Photos of 100 kB, a job waits {JOB_S * 1e3:g} ms", ("workers", "photos/s", "of linear"))
    for count in WORKERS:
        plan.say(f"{count} workers that wait")
        with _server(plan, count, JOB_S) as server:
            server.wait_for_spare()
            report = server.load(_photos(), callers=2 * count, duration_s=8 * plan.pace.slice_s + 5 * JOB_S)
        share = report.items_per_s * JOB_S / count
        table.rows.append((count, report.items_per_s, share))
        bound = LINEAR if count <= LINEAR_UP_TO else None
        section.figures.append(Figure(f"dispatch to {count} workers, of linear", share, "×", at_least=bound))
    section.tables.append(table)


def _ceiling(section: Section, plan: Plan) -> None:
    table = Table("Workers that answer at once", ("", "messages/s", "items/s", "front's CPU ms an item"))
    loads: dict[str, tuple[Any, dict[str, Any]]] = {
        "photos, 16 callers, one a message": (_photos(), {"callers": 16}),
        "photos, one caller, messages of 32": (_photos(32), {"window": 2}),
        "crops, 16 callers, one a message": (_crops(), {"callers": 16}),
    }
    cpu_ms = dict[str, float]()
    with _server(plan, 2, 0.0) as server:
        server.wait_for_spare()
        for name, (work, how) in loads.items():
            plan.say(f"workers that answer at once: {name}")
            server.load(work, duration_s=1.0, **how)
            start_s = cpu_seconds(server.pids[0])
            report = server.load(work, duration_s=16 * plan.pace.slice_s, warm_up_s=0.0, **how)
            cpu_ms[name] = 1e3 * (cpu_seconds(server.pids[0]) - start_s) / report.items
            table.rows.append((name, report.messages_per_s, report.items_per_s, cpu_ms[name]))
    section.tables.append(table)
    first = cpu_ms[next(iter(loads))]
    section.figures.append(Figure("front's CPU a photo, one a message", first, "ms", at_most=FRONT_MS))
    note = f"from that CPU: {1e3 / first:.0f} photos/s of one core"
    name, carried = f"workers of {REAL_JOB_S * 1e3:g} ms a job that one front carries", REAL_JOB_S * 1e3 / first
    section.figures.append(Figure(name, carried, "", note=note))


def _server(plan: Plan, workers: int, job_s: float) -> Server:
    most = {"--max-images-in-flight": str(4 * workers + 16), "--max-items-in-flight": "4096"}
    flags = ["--job-s", str(job_s), "--workers", str(workers), *(word for pair in most.items() for word in pair)]
    return Server(plan, *flags, module=_SERVER)


def _photos(batch: int = 1) -> Any:
    """JPEG files of noise, of about that size."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(8):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return workload("detect", files, batch=batch)


def _crops() -> Any:
    rng = np.random.default_rng(0)
    return workload("embed_crops", [rng.integers(0, 256, (160, 160, 3), np.uint8) for _ in range(8)])
