"""Event loops for synchronous clients. A loop is used again after its client has closed."""

import asyncio
import atexit
import os

# Idle loops are not closed. While grpc.aio has any channel, it keeps every loop on which it was used, and passes late
# network events to these loops. A closed loop would then raise an error, in any other loop of the process. There are at
# most as many loops as clients that were open at once. The keys are process ids: a forked child has its own loops.
_idle: dict[int, list[asyncio.AbstractEventLoop]] = {}


def take() -> asyncio.AbstractEventLoop:
    """A loop that does not run, and that no other client uses."""
    try:
        return _idle.get(os.getpid(), []).pop()
    except IndexError:
        return asyncio.new_event_loop()


def give_back(loop: asyncio.AbstractEventLoop) -> None:
    """Give a loop back, which no longer runs and has no tasks."""
    _idle.setdefault(os.getpid(), []).append(loop)


@atexit.register
def _close() -> None:
    for loop in _idle.pop(os.getpid(), []):
        loop.close()
