"""A caller in a process of its own that sends bombs, ``python -m chaos.bomber ADDRESS``: a hundred at once for each
line that it reads, and a line when they are answered."""

import asyncio
import sys
from itertools import cycle, islice

import click
from facenet_client import AsyncClient

from chaos.files import bombs

_AT_ONCE = 100
_SMALL_BYTES = 500_000  # to send megabytes costs more than these do


async def main(address: str) -> None:
    """Until its standard input ends."""
    small = [bomb.data for bomb in bombs() if len(bomb.data) < _SMALL_BYTES]
    async with AsyncClient(address, timeout_s=120) as client:
        await client.wait_until_ready(60)
        click.echo()
        while await asyncio.to_thread(sys.stdin.readline):
            await client.detect(islice(cycle(small), _AT_ONCE))
            click.echo()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
