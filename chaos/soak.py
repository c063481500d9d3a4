"""The long run: what a server costs after a while, under callers of every kind."""

import asyncio
import gc
import io
import time
from functools import cache

import numpy as np
from facenet_proto.v1 import face_pb2 as pb
from PIL import Image

from chaos.caller import Caller
from chaos.drivers import PATIENT_S, broken, channels, leave, open_loop
from chaos.ledger import Ledger, Marked
from chaos.overload import at_rest
from chaos.process import Server, Usage
from chaos.report import Report
from chaos.stub import Behaviour

_ROUND_S = 10.0
NOISE = 4  # files, threads or tasks of what is just being opened or closed; a leak is one a round, at least
_RATE = 240  # items a second, 0.6 of the capacity
_KILLED_SHARE = 0.005


@cache
def _photo(number: int) -> bytes:
    random, file = np.random.default_rng(number), io.BytesIO()
    width, height = (int(side) for side in random.integers(40, 400, 2))
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    coarse.resize((width, height)).save(file, "PNG" if number % 5 == 0 else "JPEG")
    return file.getvalue()


class _Photos(Marked):
    """Files of generated pictures, each of another of fifty sizes, in which the stand-in detector finds no face."""

    def crop(self, number: int, stream: int = 0) -> bytes:
        return _photo(number % 50)

    def item(self, sent: bytes) -> pb.EmbedItem:
        return pb.EmbedItem(image=pb.Image(encoded=sent))

    def is_right(self, sent: bytes, vector: np.ndarray) -> bool:
        return not vector.size


class _Calls:
    """Those who wait for their answers, with crops and with photos; those in too much haste, those who leave, those
    whose items are broken."""

    def __init__(self) -> None:
        self.patient, self.hasty, self.leaving, self.broken = (Ledger() for _ in range(4))
        self.photos = Ledger(crops=_Photos())
        self.all = (self.patient, self.photos, self.hasty, self.leaving, self.broken)

    async def round(self, address: str, seconds: float) -> None:
        """Calls over new connections."""
        async with channels(address, 8) as opened:
            await asyncio.gather(
                open_loop(opened[:4], self.patient, 0.91 * _RATE, seconds, PATIENT_S),
                open_loop(opened[4:5], self.photos, 0.01 * _RATE, seconds, PATIENT_S),
                open_loop(opened[5:6], self.hasty, 0.02 * _RATE, seconds, timeout_s=0.02),
                open_loop(opened[6:7], self.leaving, 0.05 * _RATE, seconds, timeout_s=0.05, send=leave),
                open_loop(opened[7:], self.broken, 0.01 * _RATE, seconds, PATIENT_S, broken),
            )
        for ledger in self.all:  # what only grows is not to slow the callers down
            ledger.seconds.clear()
            ledger.ends.clear()


async def soak(*, seconds: float, leak_bytes: int = 0, slope_mb_h: float = 8.0) -> Report:
    """T27: of the calls 5 % leave, 2 % are in too much haste, 1 % are broken, 1 % are photos of fifty sizes, and beside
    them as many streams as are 0.5 % of them are killed; connections come and go."""
    calls, samples = _Calls(), list[tuple[float, ...]]()
    length_s = min(_ROUND_S, seconds / 10)
    killed = round(_KILLED_SHARE * _RATE * length_s)  # a round
    async with Server(Behaviour({"max_batch_rows": 8}, photos=True, leak_bytes=leak_bytes)) as server:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            with Caller(server.address, len(samples), killed) as caller:
                await calls.round(server.address, length_s)
                caller.kill()
            counts = await server.quiet(5)
            gc.collect()  # of this process: calls that were left keep their connections until then
            await asyncio.sleep(min(0.5, length_s / 10))  # which take a moment to close
            samples.append((time.monotonic() - start, *used(server.usage), await server.tasks()))
    report = _judged(calls, np.array(samples[len(samples) // 5 :]), slope_mb_h)
    report.note = f"{len(samples)} rounds, {killed} streams killed in each; {report.note}"
    at_rest(report, counts)
    return report


def _judged(calls: _Calls, warm: np.ndarray, slope_mb_h: float) -> Report:
    """``warm``: (N, 5) as ``grown`` takes it."""
    report, patient, photos, bad = grown(warm), calls.patient, calls.photos, calls.broken
    report.most("memory slope (Theil–Sen), MB/h", 3600 * slope(warm[:, 0], warm[:, 1]), slope_mb_h)
    all_calls = sum(each.offered for each in calls.all)
    report.note = f"{all_calls} calls; hasty {dict(calls.hasty.outcomes)}; {report.note}"
    report.most("patient calls that broke", patient.broken_calls + photos.broken_calls, 0)
    report.most("lost", sum(each.lost for each in calls.all), 0)
    report.most("doubled", sum(each.doubled for each in calls.all), 0)
    report.most("wrong", sum(each.outcomes["wrong"] for each in calls.all), 0)
    report.least("answered, share", patient.outcomes["answered"] / patient.offered, 0.999)
    report.least("photos answered, share", photos.outcomes["answered"] / photos.offered, 0.999)
    report.least("broken items told so, share", bad.outcomes["WRONG_SIZE"] / bad.offered, 0.999)
    return report


def used(usage: Usage) -> tuple[float, int, int]:
    """Memory in MB, open files, threads."""
    return usage.rss_mb, usage.files, usage.threads


def grown(warm: np.ndarray) -> Report:
    """Whether a process grows. ``warm``: (N, 5) seconds, its memory in MB, open files, threads and tasks after each
    round."""
    report, mb = Report(), warm[:, 1]
    report.note = (
        f"{warm[-1, 0]:.0f} s; memory {mb[0]:.1f} MB warm, {np.median(mb):.1f} in the middle, {mb[-1]:.1f} at the end"
    )
    report.most("memory over its median, MB", float(mb.max() - np.median(mb)), 64)
    quarter = max(1, len(warm) // 4)
    for column, name in ((2, "open files"), (3, "threads"), (4, "tasks")):
        first, last = np.median(warm[:quarter, column]), np.median(warm[-quarter:, column])
        report.most(f"{name}, last quarter over the first", float(last - first), NOISE)
    return report


def slope(at: np.ndarray, values: np.ndarray) -> float:
    """The median slope over all pairs of points."""
    i, j = np.triu_indices(len(at), 1)
    return float(np.median((values[j] - values[i]) / (at[j] - at[i])))
