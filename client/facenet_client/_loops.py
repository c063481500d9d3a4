"""Event loops for synchronous clients, used again when their client has closed."""

import asyncio
import atexit
import os

# Not closed: grpc.aio holds every loop that it was used on as long as it has any channel, and hands it what the network
# says late; one that was closed raises then, in whichever other loop of the process meets it. As many as clients that
# were open at once. By process: a forked child's are others.
_idle: dict[int, list[asyncio.AbstractEventLoop]] = {}


def take() -> asyncio.AbstractEventLoop:
    """A loop that does not run, and is nobody else's."""
    try:
        return _idle.get(os.getpid(), []).pop()
    except IndexError:
        return asyncio.new_event_loop()


def give_back(loop: asyncio.AbstractEventLoop) -> None:
    """It does not run any more, and has no tasks."""
    _idle.setdefault(os.getpid(), []).append(loop)


@atexit.register
def _close() -> None:
    for loop in _idle.pop(os.getpid(), []):
        loop.close()
