"""The real server before workers that only wait: ``python -m benchmarks.workers.idle_server --job-s 0.2 --workers 4``,
with further settings of the server's as flags."""

import asyncio
import logging
import sys
from typing import Any

from facenet_server.build import Parts
from facenet_server.config import Config
from facenet_server.server import serve

from benchmarks.workers.idle_worker import NAME


def main(arguments: list[str]) -> None:
    """Run until a signal."""
    given: dict[str, Any] = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(arguments[::2], arguments[1::2], strict=True)
    }
    job_s = given.pop("job_s")
    settings: dict[str, Any] = {name: int(value) if name.startswith("max_") else value for name, value in given.items()}
    logging.basicConfig(level="INFO", stream=sys.stderr)
    command = (sys.executable, "-m", "benchmarks.workers.idle_worker", job_s)
    asyncio.run(serve(Config(default_embedder=NAME, **settings), Parts(worker_command=command)))


if __name__ == "__main__":
    main(sys.argv[1:])
