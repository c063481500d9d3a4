"""The server's pipeline in process: ``ours.py PIPE MODELS DEVICE``."""

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from benchmarks.in_process import InProcess
from benchmarks.workers.protocol import Function, serve


def main() -> None:
    """Load, then serve: ``detect``, and each embedder by its name."""
    with InProcess(Path(sys.argv[2]), sys.argv[3]) as server:
        functions: dict[str, Function] = {"detect": server.detect}
        functions |= {name: partial(server.embed, name) for name in server.embedders}
        versions = {name: version(name) for name in ("numpy", "opencv-python-headless")}
        serve(functions, {**versions, "onnxruntime": onnxruntime.__version__}, server.stages)


if __name__ == "__main__":
    main()
