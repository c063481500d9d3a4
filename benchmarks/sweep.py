"""(b) on a GPU: ready crops by batch size and precision, and how much of the device that is."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks import peers
from benchmarks.embedding import FP16, MODEL, contenders_of
from benchmarks.figures import Figure, Section, Table
from benchmarks.peers import OURS
from benchmarks.photos import crops
from benchmarks.plan import Plan
from benchmarks.racing import race

BATCHES = (1, 8, 32, 64, 128, 256)
TF32 = f"{OURS} in TF32"
PRECISIONS = {f"{OURS}, {MODEL}": "float32", f"{OURS}, {FP16}": "float16"}
SIDE = 8192  # of the matrices whose product is taken for what the device can do
FP16_RATE = 8000.0
NO_FP16 = f"no facenet-{FP16}.onnx among the models"


def measure(plan: Plan) -> Section:
    """Crops per second of every embedder at every batch size, absolutely and as a share of matrix throughput."""
    section = Section("Embedding ready crops on the GPU")
    makers = {
        OURS: partial(peers.ours, max_batch_rows=BATCHES[-1]),
        TF32: partial(peers.ours, max_batch_rows=BATCHES[-1], tf32=True),
        "matrix products": partial(peers.matrix_products, side=SIDE),
    }
    with ExitStack() as stack:
        workers = peers.started(makers, plan, stack, section.versions)
        contenders = {
            (name, batch): contender
            for batch in BATCHES
            for name, contender in contenders_of({each: workers[each] for each in (OURS, TF32)}, crops(batch)).items()
            if name != f"{TF32}, {FP16}"
        }
        laps = race("embedding", contenders, plan.pace, plan.say)
        nothing = np.empty(0, np.uint8)
        products = {
            precision: partial(workers["matrix products"].run, precision, nothing)
            for precision in workers["matrix products"].functions
        }
        throughput = {
            precision: 2 * SIDE**3 / lap.seconds
            for precision, lap in race("matrix products", products, plan.pace, plan.say).items()
        }
    rates = {key: batch / lap.seconds for key, lap in laps.items() for _, batch in [key]}
    work = operations(plan.models / f"facenet-{MODEL}.onnx")
    section.tables.append(_table(rates, {name: work / throughput[kind] for name, kind in PRECISIONS.items()}))
    fp16 = [rate for (name, _), rate in rates.items() if PRECISIONS.get(name) == "float16"]
    note = "at the best batch" if fp16 else NO_FP16
    best = max(fp16, default=None)
    section.figures.append(Figure("embedding, fp16 on the GPU: ready crops", best, "/s", at_least=FP16_RATE, note=note))
    section.figures.extend(
        Figure(f"matrix products of {kind}", rate / 1e12, "TFLOP/s") for kind, rate in throughput.items()
    )
    return section


def _table(rates: Mapping[tuple[str, int], float], device_s: Mapping[str, float]) -> Table:
    """``device_s``: the seconds that a crop would take at the device's matrix throughput, by contender."""
    table = Table("Crops per second", ("", "batch", "crops/s", "share of matrix throughput"))
    for (name, batch), rate in rates.items():
        share = f"{rate * device_s[name]:.0%}" if name in device_s else None
        table.rows.append((name, batch, rate, share))
    return table


def operations(path: Path) -> float:
    """Additions and multiplications of a convolutional network for one row."""
    model = onnx.load(path)
    for port in model.graph.input:
        port.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info}
    shapes |= {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.output}
    weights = {weight.name: weight.dims for weight in graph.initializer}
    total = 0.0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            filters = weights[node.input[1]]
            per_value = np.prod(filters[1:]) if node.op_type == "Conv" else filters[0]
            total += 2.0 * float(np.prod(shapes[node.output[0]]) * per_value)
    return total
