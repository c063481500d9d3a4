"""Worker processes that are killed, crash and hang, while callers are answered."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from facenet_proto.v1 import face_pb2 as pb

from chaos.drivers import bidi, channels, one_message, one_shot, read
from chaos.ledger import Ledger, Marked
from chaos.process import Server
from chaos.real import generated_image
from chaos.report import Report
from chaos.stub import POISON, Behaviour

_WORKERS = 2
_BATCH_ROWS, _BATCH_S = 16, 0.04
_STREAMS, _PHOTO_CALLERS, _PHOTOS = 24, 6, 24
_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)
_LAST = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT)
_GIVEN_UP = 0.01  # of the kills: innocent items that two of them hit by chance


async def killed(
    *, seconds: float, every_s: float, attempts: int = 2, models: str = "", crops: Marked | None = None
) -> Report:
    """T38: a worker process is killed, crashed or stopped in turn, at random moments, under load."""
    behaviour = Behaviour({"max_batch_rows": _BATCH_ROWS}, models, _BATCH_S, workers=_WORKERS, core=-1)
    behaviour.worker_attempts = attempts
    ledger, photos, stop, report = Ledger(crops=crops or Marked()), Ledger(), asyncio.Event(), Report()
    async with Server(behaviour) as server, channels(server.address, 5) as opened:
        alone = await _alone(opened[4]) if models else []
        await whole(server)
        streams = [asyncio.create_task(bidi(opened[n % 4], ledger, n, stop, 0.0)) for n in range(_STREAMS)]
        callers = [asyncio.create_task(_photos(opened[4], photos, alone, n, stop)) for n in range(_PHOTO_CALLERS)]
        await asyncio.sleep(1)
        before = server.usage.files
        kills, signals, end = Counter[str](), itertools.cycle(_SIGNALS), time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(random.uniform(0.5, 1.5) * every_s)
            kills[kill_one(server, next(signals))] += 1
        stop.set()
        ends = Counter(await asyncio.gather(*streams))
        await asyncio.gather(*(callers if models else ()))
        for each in callers:
            each.cancel()
        whole_s = await whole(server)
        counts, told = await server.quiet(10), await server.stats()
        files, zombies = server.usage.files, _zombies(server)
    given_up = ledger.outcomes["INTERNAL"] + photos.outcomes["INTERNAL"]
    of_workers = ", ".join(str(told.workers).split("\n"))
    report.note = f"kills {dict(kills)}; crops {dict(ledger.outcomes)}, photos {dict(photos.outcomes)}; {of_workers}"
    report.most("lost", ledger.lost + photos.lost, 0)
    report.most("doubled", ledger.doubled + photos.doubled, 0)
    report.most("wrong, or another's", ledger.outcomes["wrong"] + photos.outcomes["wrong"], 0)
    report.most("streams that did not end in order", ends.total() - ends["stopped"], 0)
    report.most("items given up", given_up, max(1, _GIVEN_UP * kills.total()))
    outcomes = ledger.outcomes + photos.outcomes
    report.most("other errors", outcomes.total() - outcomes["answered"] - outcomes["wrong"] - given_up, 0)
    in_order = counts.answered_items + counts.abandoned_items + counts.items_in_flight
    report.most("accepted − answered − abandoned − in flight", abs(counts.accepted_items - in_order), 0)
    report.least("workers that were seen to end, over kills", told.workers.ended / max(1, kills.total()), 0.8)
    report.most("seconds until all workers are there again", whole_s, 20)
    report.most("descriptors more than before", files - before, 8)
    report.most("zombies", zombies, 0)
    return report


async def poison(*, others: int, attempts: int = 2) -> Report:
    """T39: a crop that ends whoever embeds it, among others."""
    behaviour = Behaviour({"max_batch_rows": _BATCH_ROWS}, "", _BATCH_S, workers=_WORKERS, core=-1)
    behaviour.worker_attempts = attempts
    ledger, bad, report, stop = Ledger(), Ledger(), Report(), asyncio.Event()
    crop = POISON + bytes(160 * 160 * 3 - len(POISON))
    async with Server(behaviour) as server, channels(server.address, 3) as opened:
        await whole(server)
        streams = [asyncio.create_task(bidi(opened[n % 2], ledger, n, stop, 0.0)) for n in range(others)]
        await asyncio.sleep(0.3)
        for _ in range(5):
            await one_shot(one_message(opened[2]), bad, crop, 60)
        stop.set()
        await asyncio.gather(*streams)
        await whole(server)
        ended = (await server.stats()).workers.ended
    report.note = f"others {dict(ledger.outcomes)}, poison {dict(bad.outcomes)}"
    report.most("workers that it cost", ended, 2)
    report.least("workers that it cost, too few", ended, 2)
    report.most("others that were not answered", ledger.offered - ledger.outcomes["answered"], 0)
    report.most("poison that was not told as INTERNAL", bad.offered - bad.outcomes["INTERNAL"], 0)
    return report


async def restarts(*, servers: int, kills: int) -> Report:
    """T40: workers and servers that end, by every signal, leave nothing behind."""
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a background job ignores it, and so would its servers
    report, left = Report(), Counter[str]()
    before, ended, signals = _places(), Counter[str](), itertools.cycle(_SIGNALS)
    for number in range(servers):
        async with Server(Behaviour({}, "", _BATCH_S, workers=_WORKERS, core=-1)) as server:
            await whole(server)
            opened = server.usage.files
            for count in range(1, kills + 1):
                ended[kill_one(server, next(signals))] += 1
                await _noticed(server, count)
                await whole(server)
            files = [await _files_soon(server) for _ in range(5)]  # one may be open for a moment
            left["descriptors"] += max(0, min(files) - opened)
            left["zombies"] += _zombies(server)
            pids, last = workers_of(server), _LAST[number % len(_LAST)]
            ended[f"server {last.name}"] += 1
            server.signal(last)
            try:
                await asyncio.to_thread(server.wait, 20)
            except subprocess.TimeoutExpired:
                left["servers alive"] += 1
                report.note += "".join(server.log[-9:])
                server.signal(signal.SIGKILL)
            left["workers alive"] += await asyncio.to_thread(_alive_after, pids, 5.0)
    report.note += ", ".join(f"{count} {name}" for name, count in ended.items())
    report.most("servers that did not end within 20 s", left["servers alive"], 0)
    report.most("workers that outlived their server by 5 s", left["workers alive"], 0)
    report.most("descriptors more", left["descriptors"], 0)
    report.most("zombies", left["zombies"], 0)
    report.most("segments and temporary files more", len(_places() - before), 0)
    return report


async def _files_soon(server: Server) -> int:
    await asyncio.sleep(0.1)
    return server.usage.files


def _alive_after(pids: Sequence[int], within_s: float) -> int:
    """How many of the processes are there after so long; at once where there is none."""
    end = time.monotonic() + within_s
    while (alive := sum(Path(f"/proc/{pid}").exists() for pid in pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return alive


def _places() -> set[str]:
    """What lies where segments and temporary files do."""
    return {str(each) for folder in ("/dev/shm", tempfile.gettempdir()) for each in Path(folder).iterdir()}


async def _noticed(server: Server, count: int, within_s: float = 10.0) -> None:
    """Wait until so many workers have been seen to end."""
    start = time.monotonic()
    while time.monotonic() - start < within_s and (await server.stats()).workers.ended < count:  # noqa: ASYNC110 (its own count)
        await asyncio.sleep(0.05)


def workers_of(server: Server) -> list[int]:
    """The process ids of a server's workers, and of what stands by or starts."""
    own = server.usage.folder
    told = [each for task in Path(own, "task").iterdir() for each in (task / "children").read_text().split()]
    return [int(pid) for pid in told]


def kill_one(server: Server, number: signal.Signals) -> str:
    """Send a random worker a signal. Its name; none where there is no worker now. SIGKILL hits any; a crash or a stop
    hits one that has work, as those that were started first."""
    if not (pids := sorted(workers_of(server))):
        return "none"
    among = pids if number is signal.SIGKILL else pids[:_WORKERS]
    try:
        os.kill(random.choice(among), number)  # the server's own children: it has not waited for them
    except ProcessLookupError:
        return "gone"
    return number.name


def _zombies(server: Server) -> int:
    states = [Path(f"/proc/{pid}/stat") for pid in workers_of(server)]
    return sum(each.read_text().rpartition(")")[2].split()[0] == "Z" for each in states if each.exists())


async def whole(server: Server, within_s: float = 60.0) -> float:
    """Wait until all workers are there, and one stands by; seconds."""
    start = time.monotonic()
    while time.monotonic() - start < within_s:
        told = (await server.stats()).workers
        if told.working == _WORKERS and told.standing_by:
            break
        await asyncio.sleep(0.1)
    return time.monotonic() - start


# ---- photos ----


async def _detect(channel: grpc.aio.Channel, number: int) -> Any:
    pixels = generated_image(number)
    image = pb.Image(raw=pb.RawImage(rgb=pixels.tobytes(), height=pixels.shape[0], width=pixels.shape[1]))
    method: Any = channel.unary_stream(
        "/facenet.v1.FaceService/Detect", response_deserializer=pb.DetectResponse.FromString
    )
    return await read(method(pb.DetectRequest(images=[image]).SerializeToString(), timeout=120))


async def _alone(channel: grpc.aio.Channel) -> Sequence[bytes]:
    """What the server says of each photo while it has nothing else to do."""
    answers = [await _detect(channel, number) for number in range(_PHOTOS)]
    return [answer.results[0].SerializeToString() for answer in answers]


async def _photos(
    channel: grpc.aio.Channel, ledger: Ledger, alone: Sequence[bytes], number: int, stop: asyncio.Event
) -> None:
    """One photo after the other, until told to stop."""
    while alone and not stop.is_set():
        number = (number + 5) % _PHOTOS
        ledger.offer()
        answer = await _detect(channel, number)
        if answer is grpc.aio.EOF:
            ledger.book("call")
        elif answer.results[0].HasField("error"):
            ledger.book(answer.results[0].error.reason)
        else:
            right = answer.results[0].SerializeToString() == alone[number]
            ledger.book("answered" if right else "wrong")
