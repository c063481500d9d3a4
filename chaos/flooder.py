"""Strangers in a process of their own: ``python -m chaos.flooder flips|idle ADDRESS COUNT SECONDS``. Each line that it
writes is how many connections it has, or messages it sent, so far."""

import asyncio
import contextlib
import resource
import sys
import time
from typing import Any

import click
import grpc

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # with empty SETTINGS; RFC 9113, 3.4
_SETTINGS, _PING, _ACK = 4, 6, 1
_FLIPS_BYTES, _PAUSE_S = 16 << 20, 0.4


def flips() -> bytes:
    """A CompareRequest of 16 MiB with one pair, whose one side is set to an image and to an embedding in turn."""
    side = b"\x0a\x00\x12\x00" * (_FLIPS_BYTES // 4)
    pair = b"\x0a" + _varint(len(side)) + side
    return b"\x12" + _varint(len(pair)) + pair


def _varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


async def flip(address: str, count: int, seconds: float) -> None:
    """Send such pairs over so many connections, one after the other on each, whatever is answered."""
    data, end, sent = flips(), time.monotonic() + seconds, 0

    async def send() -> None:
        nonlocal sent
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            compare: Any = channel.unary_stream("/facenet.v1.FaceService/Compare")
            while time.monotonic() < end:
                await asyncio.sleep(_PAUSE_S)  # or the copying of so many bytes alone would fill a core
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for _ in compare(data, timeout=20):
                        pass
                sent += 1

    click.echo(0)
    await asyncio.gather(*(send() for _ in range(count)))
    click.echo(sent)


async def idle(address: str, count: int, seconds: float) -> None:
    """Open so many connections, hold them for so long, and answer pings: no call, ever."""
    host, _, port = address.rpartition(":")
    open_now = 0

    async def hold() -> None:
        nonlocal open_now
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(_PREFACE)
        open_now += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(9)
                kind, flags, payload = head[3], head[4], await reader.readexactly(int.from_bytes(head[:3]))
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    body = payload if kind == _PING else b""
                    writer.write(len(body).to_bytes(3) + bytes([kind, _ACK]) + bytes(4) + body)
        open_now -= 1
        writer.close()

    holding = []
    for _ in range(count):
        holding.append(asyncio.create_task(hold()))
        await asyncio.sleep(0.001)  # so that the server can take them
    click.echo(count)
    await asyncio.sleep(seconds)
    click.echo(open_now)
    for each in holding:
        each.cancel()
    await asyncio.gather(*holding, return_exceptions=True)


def main() -> None:
    """Run what is asked for."""
    kind, address, count, seconds = sys.argv[1:]
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    asyncio.run({"flips": flip, "idle": idle}[kind](address, int(count), float(seconds)))


if __name__ == "__main__":
    main()
