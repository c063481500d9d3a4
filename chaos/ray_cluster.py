"""A Ray cluster of several nodes on one machine, in a process of its own: ``python -m chaos.ray_cluster NODES``."""

import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Self

from chaos.children import environment

_STORE_BYTES = 100_000_000  # of objects, a node: numbers and tallies are all there is
_END_S = 30.0


class RayCluster:
    """So many nodes with one CPU each. ``address`` is what ``--ray-address`` takes."""

    def __init__(self, nodes: int) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the cluster)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.ray_cluster", str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**environment(os.getcwd()), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
            start_new_session=True,
        )
        self.address = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def kill_node(self) -> None:
        """End a node, but not the first one, without ceremony."""
        assert self._process.stdin
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line.startswith("cluster "):
            self._log.seek(0)
            raise RuntimeError(f"the cluster ended:\n{self._log.read()[-4000:].decode(errors='replace')}")
        return line.split()[1]


def main() -> None:
    """Run a cluster until stdin ends; a line is a node to kill."""
    from ray.cluster_utils import Cluster

    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cluster = Cluster()
    nodes = [
        cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES, include_dashboard=False)
        for _ in range(int(sys.argv[1]))
    ]
    cluster.wait_for_nodes()
    print("cluster", cluster.address, file=told, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("cluster killed", file=told, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
