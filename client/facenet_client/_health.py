"""gRPC's health protocol, as bytes. Its messages have only one field each, and the package for it would be one more
dependency."""

from collections.abc import Callable

from facenet_client._call import Channel
from facenet_client.errors import RequestRefused, ServerUnavailable

CHECK_S = 2.0  # a server that does not answer in this time counts as not ready

_CHECK, _WATCH = (f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch"))
_THE_SERVER = b""  # a HealthCheckRequest for the whole server
_SERVING, _SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x03"  # HealthCheckResponses


def not_ready(address: str) -> ServerUnavailable:
    """The error for a server that says that it is not ready."""
    return ServerUnavailable(f"{address}: the server is not ready")


async def check(channel: Channel) -> None:
    """Ask the server whether it is ready. Raises CallError where it is not."""
    try:
        answer = await channel.ask(_CHECK, _THE_SERVER, CHECK_S)
    except RequestRefused:  # no health service, perhaps behind a proxy: the calls will show whether the server works
        return
    if answer != _SERVING:
        raise not_ready(channel.address)


async def watch(channel: Channel, on_unready: Callable[[ServerUnavailable], None]) -> None:
    """Call ``on_unready`` each time that the server says that it is not ready, until this is cancelled. Raises
    CallError."""
    call = channel.call(_WATCH)
    try:
        await call.write(_THE_SERVER)
        await call.done_writing()
        while (status := await call.read(None)) is not None:
            if status not in (_SERVING, _SERVICE_UNKNOWN):
                on_unready(not_ready(channel.address))
        raise ServerUnavailable(f"{channel.address}: the server has ended its Watch")
    finally:
        call.cancel()
