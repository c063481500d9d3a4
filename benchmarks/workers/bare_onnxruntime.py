"""ONNX Runtime and nothing around it, on the server's own files: ``bare_onnxruntime.py PIPE MODELS``.

Two ways to use the cores: all of them in one run (the default settings), or one run per core side by side.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.machine import usable_cores
from benchmarks.workers.protocol import serve

CORES = usable_cores()
SIDE_BY_SIDE = ThreadPoolExecutor(CORES)


def session(model: Path, threads: int) -> Any:
    """A session on the CPU; 0 threads are ONNX Runtime's own choice."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def embed(session: Any, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The whole batch in one run."""
    vectors: NDArray[np.float32] = session.run(None, {"image": crops})[0]
    return vectors


def embed_side_by_side(session: Any, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A share of the batch per core."""
    shares = np.array_split(crops, min(CORES, len(crops)))
    return np.concatenate(list(SIDE_BY_SIDE.map(partial(embed, session), shares)))


def main() -> None:
    """Load, then serve: each embedder both ways."""
    functions = {}
    for model in sorted(Path(sys.argv[2]).glob("facenet-*.onnx")):
        name = model.stem.removeprefix("facenet-")
        functions[f"{name}, all cores in one run"] = partial(embed, session(model, 0))
        functions[f"{name}, one run per core"] = partial(embed_side_by_side, session(model, 1))
    serve(functions, {"onnxruntime": ort.__version__})


if __name__ == "__main__":
    main()
