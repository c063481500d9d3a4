"""A bulk worker on the stand-in networks, which does as the last bytes of a file tell it."""

import os
import signal
import time
from typing import Any

from facenet_bulk.shard import Image
from facenet_bulk.table import Answer
from facenet_bulk.worker import PipelineEmbed, Worker, main
from facenet_server.config import Config
from nets import fake_networks

CRASH, HANG, SLOW = b"CRASH", b"HANG", b"SLOW"


class ObedientEmbed(PipelineEmbed):
    """It crashes, hangs and dawdles."""

    async def _embedded(self, image: Image) -> Answer:
        if image.data.endswith(CRASH):
            os.kill(os.getpid(), signal.SIGSEGV)
        if image.data.endswith(HANG):
            while True:
                time.sleep(1)  # noqa: ASYNC251 (as a decoder that never ends)
        if image.data.endswith(SLOW):
            time.sleep(0.2)  # noqa: ASYNC251 (as a large image)
        return await super()._embedded(image)


def _open_all(_: Config) -> dict[str, Any]:
    return dict(fake_networks())


def _open_files(config: Config, sha256s: list[str]) -> dict[str, Any]:
    return {name: network for name, network in _open_all(config).items() if network.info.onnx_sha256 in sha256s}


class FakeWorker(Worker):
    """It opens nothing."""

    embed = ObedientEmbed
    open_all = staticmethod(_open_all)
    open_files = staticmethod(_open_files)


if __name__ == "__main__":
    main(FakeWorker)
