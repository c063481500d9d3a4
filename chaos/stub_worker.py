"""A worker process on the stand-in networks: ``python -m chaos.stub_worker BEHAVIOUR …``.

A crop that begins with POISON ends it.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from facenet_server.config import Config
from facenet_server.workers.process import Worker, main

from chaos.stub import POISON, Behaviour, Wrapped, networks_of


class Poisoned(Wrapped):
    """A network whose native code fails on some rows."""

    def __call__(self, rows: np.ndarray) -> Any:
        if any(row.tobytes().startswith(POISON) for row in rows):
            os.kill(os.getpid(), signal.SIGSEGV)
        return self._network(rows)


def worker_of(behaviour: Behaviour) -> type[Worker]:
    """A worker that opens what the behaviour says."""

    def open_all(config: Config) -> dict[str, Any]:
        networks = networks_of(behaviour, config)
        embedders = [name for name, network in networks.items() if network.info.kind == "embedder"]
        return {**networks, **{name: Poisoned(networks[name]) for name in embedders}}

    def open_files(config: Config, files: Sequence[str]) -> dict[str, Any]:
        return {name: each for name, each in open_all(config).items() if each.info.onnx_sha256 in files}

    class StubWorker(Worker):
        """It opens these."""

    StubWorker.open_all = staticmethod(open_all)
    StubWorker.open_files = staticmethod(open_files)
    return StubWorker


if __name__ == "__main__":
    main(sys.argv[2:], worker_of(Behaviour.of(sys.argv[1])))
