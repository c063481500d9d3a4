"""What the device can do at best: large matrix products through ONNX Runtime, ``matrix_products.py PIPE DEVICE SIDE``.

Both factors and the product stay on the device. Each function is one product of SIDE × SIDE matrices.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.workers.protocol import serve

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def product(side: int, precision: str, device: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """One product of that precision, whatever the rows."""
    ends = [helper.make_tensor_value_info(name, TYPES[precision], [side, side]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", ends[:2], ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options: dict[str, str] = {"use_tf32": "0"} if device == "cuda" else {}
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    session = ort.InferenceSession(model.SerializeToString(), providers=[(provider, options)])
    binding = session.io_binding()
    rng = np.random.default_rng(0)
    for name in "ab":
        factor = rng.standard_normal((side, side), np.float32).astype(precision)
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(factor, device, 0))
    binding.bind_ortvalue_output("c", ort.OrtValue.ortvalue_from_shape_and_type([side, side], precision, device, 0))

    def run(rows: NDArray[Any]) -> NDArray[Any]:
        session.run_with_iobinding(binding)
        return rows

    return run


def main() -> None:
    """Load, then serve one function per precision."""
    device, side = sys.argv[2], int(sys.argv[3])
    if device == "cuda":
        ort.preload_dlls()
    serve({precision: product(side, precision, device) for precision in TYPES}, {"onnxruntime": ort.__version__})


if __name__ == "__main__":
    main()
