"""(b) Embedding: ready crops, decoded pixels in, at three batch sizes, against three ways to run the same network."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import numpy as np

from benchmarks import peers
from benchmarks.figures import Figure, Section, Table
from benchmarks.machine import has_vnni
from benchmarks.peers import OURS
from benchmarks.photos import Pixels, crops
from benchmarks.plan import Plan
from benchmarks.racing import Contender, Lap, race, speed
from benchmarks.runners import Worker

BATCHES = (1, 8, 32)
MODEL = "20180408-102900"
INT8, FP16 = f"{MODEL}-int8", f"{MODEL}-fp16"
DEFAULT = "20170512-110547"
PEERS = {
    "bare ONNX Runtime": peers.bare_onnxruntime,
    "facenet-pytorch": peers.facenet_pytorch,
    "TensorFlow": peers.tensorflow_graph,
}
BARE_WAYS = "all cores in one run", "one run per core"
AT_BEST = "each at its best batch and settings"
OVER_BARE, OVER_PYTORCH, INT8_OVER_FP32 = 0.97, 1.3, 2.5
DEFAULT_OVER_OTHER, DEFAULT_INT8_OVER_FP32 = 0.93, 3.0

Laps = Mapping[tuple[str, int], Lap]
"""By contender and batch size."""


def measure(plan: Plan) -> Section:
    """Embeddings per second of everybody at every batch size, and our bounds."""
    section = Section("Embedding ready crops")
    with ExitStack() as stack:
        workers = peers.started({OURS: peers.ours, **PEERS}, plan, stack, section.versions)
        contenders = {
            (name, batch): contender
            for batch in BATCHES
            for name, contender in contenders_of(workers, crops(batch)).items()
        }
        laps = race("embedding", contenders, plan.pace, plan.say)
    names = list(dict.fromkeys(name for name, _ in laps))
    rates = {name: [batch / laps[name, batch].seconds for batch in BATCHES] for name in names}
    table = Table("Embeddings per second by batch size", ("", *map(str, BATCHES)))
    table.rows.extend((name, *measured) for name, measured in rates.items())
    section.tables.append(table)
    section.figures.extend(_figures(laps))
    ours, original = (laps[name, BATCHES[-1]].result for name in (f"{OURS}, {MODEL}", "TensorFlow"))
    difference = float(np.abs(ours - original).max())
    section.figures.append(Figure("embedding, fp32: largest difference from TensorFlow", difference, ""))
    return section


def contenders_of(workers: Mapping[str, Worker], rows: Pixels) -> dict[str, Contender]:
    """Every function of every worker that embeds, on those crops."""
    return {
        name if function == "embed" else f"{name}, {function}": partial(worker.run, function, rows)
        for name, worker in workers.items()
        for function in worker.functions
        if function != "detect"
    }


def _over(laps: Laps, ours: str, theirs: str) -> float | None:
    """How many times as fast one embeds as another, each at its best batch; None where one is not there."""
    best = [
        min((key for key in laps if key[0] in names), key=lambda key: laps[key].seconds / key[1], default=None)
        for names in ((ours,), (theirs, *(f"{theirs}, {way}" for way in BARE_WAYS)))
    ]
    mine, other = best
    if mine is None or other is None:
        return None
    return speed(laps[mine], laps[other]) * mine[1] / other[1]


def _figures(laps: Laps) -> list[Figure]:
    ours = f"{OURS}, {MODEL}"
    default = f"{OURS}, {DEFAULT}"
    return [
        Figure(
            "embedding, fp32: speed over bare ONNX Runtime",
            _over(laps, ours, f"bare ONNX Runtime, {MODEL}"),
            "×",
            at_least=OVER_BARE,
            note=AT_BEST,
        ),
        Figure(
            "embedding, fp32: speed over facenet-pytorch",
            _over(laps, ours, "facenet-pytorch"),
            "×",
            at_least=OVER_PYTORCH,
            note=AT_BEST,
        ),
        Figure("embedding, fp32: speed over TensorFlow", _over(laps, ours, "TensorFlow"), "×", note=AT_BEST),
        _int8_over_fp32(laps, MODEL, INT8_OVER_FP32),
        Figure(
            f"embedding, fp32: speed of {DEFAULT} over {MODEL}",
            _over(laps, default, ours),
            "×",
            at_least=DEFAULT_OVER_OTHER,
            note=AT_BEST,
        ),
        _int8_over_fp32(laps, DEFAULT, DEFAULT_INT8_OVER_FP32),
    ]


def _int8_over_fp32(laps: Laps, model: str, at_least: float) -> Figure:
    speedup = _over(laps, f"{OURS}, {model}-int8", f"{OURS}, {model}")
    return Figure(
        f"embedding, int8: speed of {model} over its fp32",
        speedup,
        "×",
        at_least=at_least if has_vnni() else None,
        note=AT_BEST if speedup else f"no facenet-{model}-int8.onnx among the models",
    )
