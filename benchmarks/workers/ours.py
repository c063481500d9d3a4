"""The server's pipeline in process: ``ours.py PIPE MODELS DEVICE [MAX_BATCH_ROWS [tf32]]``."""

import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import onnxruntime
from facenet_server.config import Config

from benchmarks.in_process import InProcess
from benchmarks.workers.protocol import Function, serve


def main() -> None:
    """Load, then serve: ``detect``, and each embedder by its name."""
    config = Config(models=Path(sys.argv[2]), device=sys.argv[3])
    if len(sys.argv) > 4:
        config = replace(config, max_batch_rows=int(sys.argv[4]), tf32="tf32" in sys.argv[5:])
    with InProcess(config) as server:
        functions: dict[str, Function] = {"detect": server.detect}
        functions |= {name: partial(server.embed, name) for name in server.embedders}
        versions = {name: version(name) for name in ("numpy", "opencv-python-headless")}
        serve(functions, {**versions, "onnxruntime": onnxruntime.__version__}, server.stages)


if __name__ == "__main__":
    main()
