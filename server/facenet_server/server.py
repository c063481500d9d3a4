"""The server process's life: listen, serve, drain, end."""

import asyncio
import logging
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from facenet_server import addresses
from facenet_server.build import Built, Parts, built
from facenet_server.config import Config
from facenet_server.errors import FatalError
from facenet_server.telemetry import process_memory
from facenet_server.telemetry.cgroups import usable_cores

_LOST_GRACE_S, _LOST_END_S = 1.0, 4.0  # once the device is lost: for the answers that say so; for the process
_SECOND_SIGNAL_END_S = 0.8
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
_LOOK_S = 0.02
_GIVE_BACK_S = 10.0

_log = logging.getLogger(__name__)

Signals = asyncio.Queue[int]


@dataclass(frozen=True, slots=True)
class StopPolicy:
    """How a server's calls end, once its health says that it drains.

    ``last_answer_s``: how long the answers to what is in flight are waited for, before gRPC's own stop.
    ``turn_away_s``: how long calls are taken from then on, only to be told. ``last_s``: after the grace, for threads to
    end.
    """

    last_answer_s: float = 2.0
    turn_away_s: float = 0.3
    last_s: float = 5.0

    async def end_calls(self, server: Built, grace_s: float, signals: Signals) -> None:
        """Let calls end for so long, or until another signal.

        Calls go on being taken for a moment, only to be told that the server drains: those that meet gRPC's own stop on
        their way would be told that they were cancelled. Most come from callers who have just been answered, and so the
        moment begins at the last answer. Work of many seconds is not waited for, since it is gRPC's stop that sends
        callers elsewhere.
        """
        server.service.drain()
        counts = server.service.admission.counts
        second, end = asyncio.ensure_future(signals.get()), time.monotonic() + grace_s
        wait_until = time.monotonic() + min(self.last_answer_s, grace_s / 2)
        while counts.items_in_flight and time.monotonic() < wait_until and not second.done():
            await asyncio.wait({second}, timeout=_LOOK_S)
        await asyncio.wait({second}, timeout=max(0.0, min(self.turn_away_s, end - time.monotonic())))
        stopped = asyncio.ensure_future(server.grpc_server.stop(max(0.0, end - time.monotonic())))
        await asyncio.wait({stopped, second}, return_when=asyncio.FIRST_COMPLETED)
        if second.done():
            _end_within(_SECOND_SIGNAL_END_S)
        second.cancel()
        await server.grpc_server.stop(0)
        await stopped


async def serve(config: Config, parts: Parts | None = None, stop: StopPolicy | None = None) -> None:
    """Run the server until SIGTERM or SIGINT, then finish what is in flight; a second signal stops at once. SIGHUP is
    logged and ignored.

    ``parts`` are those to build it of, ``stop`` is how its calls end. Raises StartError where it cannot start, and
    FatalError where its device is lost: then this process can do no more.
    """
    _ignore_hangups()
    config = config.with_streams_for(process_memory.usable_bytes())
    config.check()
    await asyncio.to_thread(addresses.check, config.listen)  # before models are loaded, which takes seconds
    if config.health_listen:
        await asyncio.to_thread(addresses.check, config.health_listen)
    process_memory.limit_heaps(usable_cores())
    process_memory.allow_open_files()
    lost, loop = asyncio.Event(), asyncio.get_running_loop()
    with ExitStack() as last_words:  # above all that waits for threads
        on_lost = partial(loop.call_soon_threadsafe, lost.set)
        async with built(config, parts, on_lost) as server, process_memory.given_back(_GIVE_BACK_S):
            await _listen(server, config, lost, stop or StopPolicy(), last_words)
    _log.info("stopped")


async def _listen(server: Built, config: Config, lost: asyncio.Event, stop: StopPolicy, last_words: ExitStack) -> None:
    signals = _signals()
    process_memory.freeze_gc()
    async with server.health:
        if server.health_server is not None:
            await server.health_server.start()
            _log.info("health on %s", addresses.target(config.health_listen, server.health_port))
        await server.grpc_server.start()
        _log.info("listening on %s", addresses.target(config.listen, server.port))
        signalled, failed = asyncio.ensure_future(signals.get()), asyncio.ensure_future(lost.wait())
        await asyncio.wait({signalled, failed}, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        grace_s = config.grace_s
        if failed.done():
            _log.error("the device is lost: ending")
            grace_s = min(grace_s, _LOST_GRACE_S)
            _end_within(_LOST_END_S)
        else:
            _log.info("draining: up to %g s for what is in flight; a second signal stops at once", grace_s)
        failed.cancel()
        last_words.callback(_end_within(grace_s + stop.last_s).cancel)
        server.health.end()
        await stop.end_calls(server, grace_s, signals)
        if server.health_server is not None:
            await server.health_server.stop(0)
    for number in _SIGNALS:  # what follows may wait for a thread that hangs: another signal ends it
        signal.signal(number, signal.SIG_DFL)
    if lost.is_set():
        raise FatalError("the device that the networks run on is lost; start the server anew")


def _end_within(seconds: float) -> threading.Timer:
    """End the process by then, even where a thread hangs in a run that never returns, unless this is cancelled."""
    last_word = threading.Timer(seconds, os._exit, (1,))
    last_word.daemon = True
    last_word.start()
    return last_word


def _ignore_hangups() -> None:
    """From now on SIGHUP, which other servers take for "read your settings again", is only logged."""
    if _HANGUP is not None:
        told = "SIGHUP is ignored: settings, certificates and tokens are read at the start, so restart to change them"
        asyncio.get_running_loop().add_signal_handler(_HANGUP, _log.info, told)


def _signals() -> Signals:
    """SIGTERM and SIGINT as they come."""
    received: Signals = asyncio.Queue()  # bounded by how often somebody signals
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        try:
            loop.add_signal_handler(number, received.put_nowait, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda number, _: loop.call_soon_threadsafe(received.put_nowait, number))
    return received
