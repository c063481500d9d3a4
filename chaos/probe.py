"""A prober in a process of its own: ``python -m chaos.probe ADDRESS`` asks a server for its health every 100 ms until
its standard input ends, and prints how long each answer took, in ms."""

import json
import sys
import threading
import time

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

EVERY_S = 0.1


def main() -> None:
    """Run until standard input ends. An answer that is not SERVING, or none within a second, took for ever: 1e6 ms."""
    over, took_ms = threading.Event(), list[float]()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with grpc.insecure_channel(sys.argv[1]) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        ask(health_pb2.HealthCheckRequest(), timeout=5)
        click.echo("up")
        while not over.wait(EVERY_S):
            start = time.perf_counter()
            try:
                serving = ask(health_pb2.HealthCheckRequest(), timeout=1).status == 1
            except grpc.RpcError:
                serving = False
            took_ms.append(1e3 * (time.perf_counter() - start) if serving else 1e6)
    click.echo(json.dumps(took_ms))


if __name__ == "__main__":
    main()
