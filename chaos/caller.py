"""A caller in a process of its own, ``python -m chaos.caller ADDRESS SALT STREAMS``, and what starts, stops and kills
it. It imports little, so that many of them start at once."""

import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Self

import click
import grpc
from facenet_proto.v1 import face_pb2 as pb

from chaos.children import environment

_SIDE = 160
_LIVES_S = 600  # at most, whatever becomes of the rig


class Caller:
    """So many streams that send without end and take every answer, until they are stopped or killed."""

    def __init__(self, address: str, salt: int, streams: int = 1) -> None:
        command = [sys.executable, "-m", "chaos.caller", address, str(salt), str(streams)]
        env = environment()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, start_new_session=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.communicate()  # closes its pipe, too

    def up(self) -> None:
        """Wait until each of its streams has had an answer."""
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def freeze(self) -> None:
        """Stop it where it is, its connections open."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def _messages(salt: int, of_stream: int) -> Iterator[bytes]:
    heads = (number.to_bytes(8, "little") + (1000 * salt + of_stream).to_bytes(8, "little") for number in range(8))
    images = (
        pb.Image(raw=pb.RawImage(rgb=head.ljust(_SIDE * _SIDE * 3, b"\0"), height=_SIDE, width=_SIDE)) for head in heads
    )
    requests = [pb.EmbedRequest(items=[pb.EmbedItem(crop=image)]).SerializeToString() for image in images]
    return itertools.cycle(requests)


def main() -> None:
    """Run until killed."""
    address, salt, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    embed: Any = grpc.insecure_channel(address).stream_stream("/facenet.v1.FaceService/Embed")
    answered = threading.Barrier(streams + 1)

    def run(of_stream: int) -> None:
        first = True
        for _ in embed(_messages(salt, of_stream)):
            if first:
                answered.wait()
            first = False

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(streams)]
    for thread in threads:
        thread.start()
    answered.wait()
    click.echo("up")
    threads[0].join(_LIVES_S)


if __name__ == "__main__":
    main()
