"""Whether servers are ready: each is asked before it is used, and tells from then on when that changes.

gRPC's health protocol, as bytes: its messages have one field each, and its package would be one more dependency.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from facenet_client._call import Link
from facenet_client.errors import CallError, RequestRefused, ServerUnavailable

CHECK_S = 2.0  # a server that takes longer to say that it is ready is not

_CHECK, _WATCH = (f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch"))
_THE_SERVER = b""  # a HealthCheckRequest, of no service in particular
_SERVING, _SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x03"  # HealthCheckResponses

_PAUSE_S = 2.0  # before a Watch that broke is begun anew
_IDLE_S = 60.0  # an address that gets nothing for so long is not watched, so that its server may close the connection


class Health:
    """What the servers at a client's addresses say of their readiness: when they are asked, and by a Watch, one for
    each address while it gets messages.

    ``on_loss`` is told an address whose server turns unready, ``on_return`` is awaited once it is ready again.
    """

    def __init__(
        self,
        on_loss: Callable[[str, CallError], None],
        on_return: Callable[[Link], Awaitable[None]],
        idle_s: float = _IDLE_S,
    ) -> None:
        self._on_loss = on_loss
        self._on_return = on_return
        self._idle_s = idle_s
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._used: set[str] = set()  # addresses that got messages since their Watch looked last
        self._unready: set[str] = set()  # addresses whose Watch said so
        self._turns: Counter[str] = Counter()  # how often it did

    async def close(self) -> None:
        """End the Watches."""
        tasks = list(self._watches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watches.clear()

    def is_ready(self, address: str) -> bool:
        """Whether the address's server has not said otherwise since it was admitted."""
        return address not in self._unready

    async def ask(self, link: Link) -> int:
        """Raises CallError where the link's server is not ready. Gives what ``admit`` takes."""
        turns = self._turns[link.address]
        try:
            answer = await link.ask(_CHECK, _THE_SERVER, CHECK_S)
        except RequestRefused:  # it knows no health service, as a proxy, perhaps: its calls will tell
            return turns
        if answer != _SERVING:
            raise _not_ready(link.address)
        return turns

    def admit(self, address: str, turns: int) -> None:
        """Its server was ready when it was asked. Raises ServerUnavailable where it has said otherwise since."""
        if self._turns[address] != turns:
            raise _not_ready(address)
        self._unready.discard(address)
        watch = self._watches.get(address)
        if watch is not None and watch.done():  # there was none, but perhaps this is another server
            del self._watches[address]

    def follow(self, link: Link) -> None:
        """The link's server gets a message: it is to tell when it is not ready any more."""
        self._used.add(link.address)
        if link.address not in self._watches:
            self._watches[link.address] = asyncio.create_task(self._watch(link))

    async def _watch(self, link: Link) -> None:
        try:
            await self._listen(link)
        except RequestRefused:  # its server has no Watch: its calls will tell
            return
        except CallError:
            await asyncio.sleep(random.uniform(_PAUSE_S / 2, _PAUSE_S))
        del self._watches[link.address]

    async def _listen(self, link: Link) -> None:
        """Until the address is not used any more. Raises CallError."""
        call = link.call(_WATCH)
        try:
            await call.write(_THE_SERVER)
            await call.done_writing()
            while link.address in self._used:
                self._used.discard(link.address)
                while await call.is_there(self._idle_s):
                    await self._hear(link, await call.read(None))
        finally:
            await call.close()

    async def _hear(self, link: Link, status: bytes) -> None:
        if status not in (_SERVING, _SERVICE_UNKNOWN):
            self._unready.add(link.address)
            self._turns[link.address] += 1
            self._on_loss(link.address, _not_ready(link.address))
        elif link.address in self._unready:
            with suppress(CallError):  # then it is asked again after a rest, as any that was lost
                await self._on_return(link)


def _not_ready(address: str) -> ServerUnavailable:
    return ServerUnavailable(f"{address}: the server is not ready")
