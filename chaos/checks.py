"""Every check: how it runs in its short and its long form, and what its control must break."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chaos import (
    bulk,
    determinism,
    engines,
    failures,
    floods,
    folders,
    hostile,
    order,
    overload,
    readers,
    restarts,
    retries,
    rolling,
    sdk_soak,
    soak,
    starts,
    suite,
    workers,
)
from chaos.real import on_real_networks
from chaos.report import Report


@dataclass(frozen=True)
class Check:
    """A promise, and its check in its short and its long form. Its control is the same with the protection switched
    off, which must break the figures whose names begin with ``bites``. ``minutes``: of the long form with its control.
    ``real``: it runs on the real networks. ``in_suite``: its short form is a test of its own."""

    promise: str
    run: Callable[..., Coroutine[Any, Any, Report]]
    minutes: float
    short: dict[str, Any]
    long: dict[str, Any]
    control: dict[str, Any] | None = None
    long_control: dict[str, Any] | None = None  # where it is another than the short one
    bites: tuple[str, ...] = ()
    real: bool = False
    in_suite: bool = False

    def is_broken(self, control: Report) -> bool:
        """Whether the control broke a figure that it must break."""
        return not all(figure.holds for figure in control.named(self.bites))

    def how(self, *, short: bool, models: Path, control: bool = False) -> dict[str, Any]:
        """What its run is given."""
        how = self.short if short else self.long
        if control:
            how = (self.control if short else self.long_control or self.control) or {}
        return how | {"models": str(models.resolve())} if self.real else how


CHECKS = {
    "T1": Check(
        "At ten times its capacity the server goes on at capacity, and refuses the rest with a time to come back.",
        overload.sustained,
        2.6,
        {"seconds": 4, "calm_s": 1.5},
        {"seconds": 120},
        {"seconds": 4, "calm_s": 1.5, "protected": False},
        bites=("goodput",),
    ),
    "T1-shipped": Check(
        "The same holds with every limit as shipped: the calls' own time of 3 s bounds the queue.",
        overload.sustained,
        2.6,
        {"seconds": 4, "calm_s": 1.5, "shipped": True},
        {"seconds": 120, "shipped": True},
        {"seconds": 4, "calm_s": 1.5, "shipped": True, "protected": False},
        bites=("goodput", "refused with a time to come back"),
    ),
    "T2": Check(
        "Fifty SDK clients at five times the capacity do not multiply the load.",
        retries.budgeted,
        1.4,
        {"seconds": 5, "clients": 8},
        {"seconds": 60, "clients": 50},
    ),
    "T3": Check("What is out of time is not run.", overload.deadlines, 1.1, {"seconds": 2}, {"seconds": 60}),
    "T4": Check(
        "Callers that send without end and read nothing cost bounded memory.",
        readers.uploads,
        2.1,
        {"seconds": 3},
        {"seconds": 60, "streams": 500, "crops": (1, 13, 208), "budget_mib": 96},
        {"seconds": 3, "streams": 60, "protected": False},
        {"seconds": 20, "streams": 200, "crops": (1, 13, 208), "budget_mib": 96, "protected": False},
        bites=("peak memory",),
    ),
    "T5": Check(
        "Callers that take no answers lose their work's room at the timeout, and slow ones go on.",
        readers.slow_readers,
        6.6,
        {"seconds": 6, "stopped": 100, "slow": 25},
        {"seconds": 300, "stall_s": 30},
    ),
    "T6": Check(
        "Killed callers free what they had, and others do not notice.",
        failures.killed_callers,
        3,
        {"rounds": 2, "at_once": 5},
        {"rounds": 63},
    ),
    "T7": Check(
        "A caller that goes at whatever moment leaves nothing and harms nobody.",
        suite.cases_of("test_cancellation.py", 25),
        1,
        {"rounds": 1},
        {"rounds": 10},
        in_suite=True,
    ),
    "T8": Check(
        "Frozen callers free what they had within the probes' time.",
        failures.frozen_callers,
        2,
        {"callers": 4, "streams": 5, "keepalive_s": (1, 1)},
        {"callers": 50, "streams": 2, "keepalive_s": (30, 10), "as_shipped": True},
    ),
    "T9": Check(
        "SIGTERM answers everything accepted, and ends long streams with `draining`.",
        restarts.drain,
        1,
        {"repeats": 1},
        {"repeats": 20},
        {"repeats": 1, "protected": False},
        bites=("items accepted and abandoned",),
    ),
    "T10": Check(
        "A rolling restart of three servers costs callers nothing.",
        rolling.rolling,
        2.6,
        {"calls": 400},
        {"calls": 10_000, "beside": 1000},
        {"calls": 300, "hard": True, "retry": False},
        bites=("failures",),
    ),
    "T11": Check(
        "A server killed with SIGKILL costs callers nothing.",
        partial(rolling.rolling, kill=True),
        2.4,
        {"calls": 400},
        {"calls": 10_000, "beside": 2000},
    ),
    "T20": Check(
        "A fault at start ends the process in one line that names the cause, and it never listens.",
        starts.refused_starts,
        5,
        {"rounds": 1, "every": 6},
        {"rounds": 5},
        real=True,
    ),
    "T22": Check(
        "A failing run fails its own items, and short memory halves batches.",
        engines.failing_engine,
        2,
        {"seconds": 2},
        {"seconds": 60},
    ),
    "T23": Check(
        "A lost device is told to those who wait and those who watch, and the process ends.",
        engines.lost_device,
        1,
        {"repeats": 1},
        {"repeats": 10},
    ),
    "T24": Check(
        "Batches' tasks that end or fail answer those who wait, and the server goes on.",
        engines.ending_workers,
        2,
        {"seconds": 3, "share": 0.05},
        {"seconds": 120, "share": 0.01},
    ),
    "T27": Check(
        "The memory, open files, threads and tasks of a server do not grow.",
        soak.soak,
        26,
        {"seconds": 6, "slope_mb_h": 3000},
        {"seconds": 1200},
        {"seconds": 6, "slope_mb_h": 3000, "leak_bytes": 20_000},
        {"seconds": 300, "leak_bytes": 200},
        bites=("memory slope",),
    ),
    "T27-sdk": Check(
        "A process that opens and closes clients of the SDK does not grow either.",
        sdk_soak.sdk_soak,
        7,
        {"seconds": 4, "bytes_a_client": 2_000_000},
        {"seconds": 300},
        {"seconds": 2, "bytes_a_client": 2_000_000, "left_open": True},
        {"seconds": 60, "left_open": True},
        bites=("open files",),
        in_suite=True,
    ),
    "T28": Check(
        "An item's answer does not depend on its company.",
        determinism.same_in_company,
        1,
        {"crops": 100, "images": 10},
        {"crops": 800, "images": 200},
    ),
    "T29": Check(
        "Every item is answered once and in order, over restarts and kills.",
        order.once_and_in_order,
        4.5,
        {"streams": 30, "items": 700, "restarts": 2, "every_s": 0.3},
        {"streams": 200, "items": 5000, "restarts": 20, "every_s": 0.5},
        {"streams": 20, "items": 500, "restarts": 0, "swap_after": 20},
        bites=("another stream's answer", "reordered"),
    ),
    "T30": Check(
        "Callers get equal shares, whatever one of them sends.",
        readers.fairness,
        1.6,
        {"seconds": 2.5},
        {"seconds": 45},
    ),
    "T30-named": Check(
        "The same holds where the greedy caller has forty connections, and one token.",
        readers.fairness,
        1.7,
        {"seconds": 2.5, "connections": 40, "named": True},
        {"seconds": 45, "connections": 40, "named": True},
        {"seconds": 2.5, "connections": 80},
        bites=("the worst-off fair caller's share", "fair callers' p99"),
    ),
    "T33": Check(
        "Server and SDK cancel no read, and have one reader and one writer a stream and no queue without a bound.",
        suite.cases_of("test_code_patterns.py", 100),
        0.2,
        {"rounds": 1},
        {"rounds": 1},
        in_suite=True,
    ),
    "T34": Check(
        "Image files that mean ill are refused on their headers, and legal large ones hold up nobody.",
        hostile.hostile_images,
        4,
        {"files": 500, "large": 2},
        {"files": 20_000, "large": 64},
        {"files": 0, "large": 0, "protected": False},
        bites=("bombs that are not", "CPU of a bomb"),
        real=True,
    ),
    "T36": Check(
        "A message that is cheap to send and dear to parse costs what its bytes cost.",
        floods.flip_flops,
        1,
        {"seconds": 4},
        {"seconds": 30},
        {"seconds": 4, "protected": False},
        bites=("event-loop lag", "peak memory"),
    ),
    "T37": Check(
        "A flood of connections that ask for nothing shuts nobody out for long.",
        floods.idle_connections,
        2,
        {"connections": 2400},
        {"connections": 2400},
        {"connections": 2400, "protected": False},
        bites=("seconds until a newcomer",),
    ),
    "T38": Check(
        "A worker process that is killed, crashes or stops costs nobody anything.",
        workers.killed,
        5.5,
        {"seconds": 12, "every_s": 2},
        {"seconds": 300, "every_s": 3},
        {"seconds": 20, "every_s": 2, "attempts": 1},
        bites=("items given up",),
    ),
    "T38-real": Check(
        "T38 holds on the real networks, with photos beside ready crops.",
        on_real_networks(workers.killed, files=True),
        6,
        {"seconds": 12, "every_s": 3},
        {"seconds": 300, "every_s": 3},
        {"seconds": 20, "every_s": 3, "attempts": 1},
        bites=("items given up",),
        real=True,
    ),
    "T39": Check(
        "A crop whose embedding ends its process costs two workers, once.",
        workers.poison,
        0.5,
        {"others": 8},
        {"others": 24},
    ),
    "T40": Check(
        "Worker processes and servers that end, by every signal, leave nothing behind.",
        workers.restarts,
        16,
        {"servers": 2, "kills": 2},
        {"servers": 20, "kills": 10},
    ),
    "T35": Check(
        "A command of `facenet` that is cut short twice and then run to its end gives every answer once.",
        folders.interrupted_runs,
        5,
        {"photos": 200, "messes": 1},
        {"photos": 2000, "messes": 4},
        {"photos": 400, "messes": 1, "continued": False},
        bites=("detect: answers twice",),
        real=True,
    ),
    "T41": Check(
        "A bulk run whose driver is killed leaves, at its end, the rows of an undisturbed one.",
        bulk.killed_drivers,
        6,
        {"photos": 60, "kills": 2, "within_s": 1},
        {"photos": 1200, "kills": 10, "within_s": 4},
        {"photos": 30, "kills": 0, "within_s": 1, "tampered": True},
        bites=("rows lost", "rows twice"),
        real=True,
    ),
    "T42": Check(
        "A bulk run on Ray that loses a node of three ends by itself, with all rows.",
        bulk.lost_nodes,
        8,
        {"photos": 40, "kills": 0, "within_s": 1},
        {"photos": 1200, "kills": 10, "within_s": 4},
        real=True,
    ),
    "T1-real": Check(
        "T1 holds on the real networks.",
        on_real_networks(overload.sustained, files=True),
        4,
        {"seconds": 2, "calm_s": 2, "crops_a_call": 8, "streams": 0},
        {"seconds": 15, "rounds": 4, "crops_a_call": 8, "streams": 0},
        {"seconds": 5, "crops_a_call": 8, "streams": 0, "protected": False},
        bites=("goodput",),
        real=True,
    ),
    "T9-real": Check(
        "T9 holds on the real networks.",
        on_real_networks(restarts.drain),
        1.2,
        {"repeats": 1},
        {"repeats": 10},
        {"repeats": 1, "protected": False},
        bites=("items accepted and abandoned",),
        real=True,
    ),
    "T23-real": Check(
        "T23 holds on the real networks.",
        on_real_networks(engines.lost_device),
        1,
        {"repeats": 1},
        {"repeats": 5},
        real=True,
    ),
    "T28-real": Check(
        "T28 holds on the real networks.",
        determinism.same_in_company,
        4,
        {"crops": 26, "images": 6},
        {"crops": 300, "images": 100},
        real=True,
    ),
    "T29-real": Check(
        "T29 holds on the real networks.",
        on_real_networks(order.once_and_in_order),
        5,
        {"streams": 8, "items": 27, "restarts": 1, "every_s": 0.2},
        {"streams": 8, "items": 1000, "restarts": 4, "every_s": 1},
        {"streams": 8, "items": 10, "restarts": 0, "swap_after": 3},
        bites=("another stream's answer", "reordered"),
        real=True,
    ),
}
