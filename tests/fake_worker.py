"""A worker process on the stand-in networks, which does as images and crops tell it: one whose first pixel is CRASH
ends the process, one of HANG never comes back, one of FLOOD writes thousands of lines,
one of LOSE loses the device."""

import os
import signal
import sys
import time
from typing import Any

import numpy as np
from facenet_server.config import Config
from facenet_server.workers.channel import Header
from facenet_server.workers.process import Answer, Worker, main
from nets import embed, fake_networks

CRASH, HANG, STOP, FLOOD, LOSE = (201, 0, 7), (202, 0, 7), (203, 0, 7), (204, 0, 7), (205, 0, 7)


def _obey(first_pixel: Any) -> None:
    match tuple(first_pixel):
        case (201, 0, 7):
            os.kill(os.getpid(), signal.SIGSEGV)
        case (202, 0, 7):
            while True:
                sum(range(10_000))
        case (204, 0, 7):
            for _ in range(20_000):
                os.write(2, b"a line of a native library\n")
        case (205, 0, 7):
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        case (203, 0, 7):
            os.kill(os.getpid(), signal.SIGSTOP)


def _obedient(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    for row in rows:
        _obey(row[0, 0].tolist())
    if rows[0, 0, 0, 0] == 99:
        time.sleep(0.05)
    return embed(rows)


def _open_all(_: Config) -> dict[str, Any]:
    return dict(fake_networks({"colour": _obedient, "other": _obedient}))


def _open_files(config: Config, files: list[str]) -> dict[str, Any]:
    return {name: network for name, network in _open_all(config).items() if name in files}


class FakeWorker(Worker):
    """It opens nothing."""

    open_all = staticmethod(_open_all)
    open_files = staticmethod(_open_files)

    async def _find(self, header: Header, payload: Any) -> Answer:
        if "height" in header["image"]:
            _obey(payload[:3])
        return await super()._find(header, payload)


if __name__ == "__main__":
    main(sys.argv[1:], FakeWorker)
