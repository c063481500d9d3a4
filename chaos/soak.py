"""The long run: what a server costs after a while, under callers of every kind."""

import asyncio
import time

import numpy as np

from chaos.drivers import broken, channels, leave, open_loop
from chaos.failures import Caller
from chaos.ledger import Ledger
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour

_ROUND_S = 10.0
_RATE = 240  # items a second, 0.6 of the capacity


async def soak(*, seconds: float, leak_bytes: int = 0, slope_mb_h: float = 8.0) -> Report:
    """T27: of the calls 5 % leave, 2 % are in too much haste, 1 % are broken; connections come and go, and one caller
    a round is killed."""
    report, ledger, samples = Report(), Ledger(), list[tuple[float, ...]]()
    hasty, leaving, bad = Ledger(), Ledger(), Ledger()
    async with Server(Behaviour({"max_batch_rows": 8}, leak_bytes=leak_bytes)) as server:
        start, length_s = time.monotonic(), min(_ROUND_S, seconds / 10)
        while (now := time.monotonic() - start) < seconds:
            with Caller(server.address, len(samples)) as caller:
                async with channels(server.address, 8) as opened:
                    await asyncio.gather(
                        open_loop(opened[:5], ledger, 0.92 * _RATE, length_s),
                        open_loop(opened[5:6], hasty, 0.02 * _RATE, length_s, timeout_s=0.02),
                        open_loop(opened[6:7], leaving, 0.05 * _RATE, length_s, timeout_s=0.05, send=leave),
                        open_loop(opened[7:], bad, 0.01 * _RATE, length_s, send=broken),
                    )
                caller.kill()
            counts = await server.quiet(5)
            samples.append((now, server.rss_mb, server.fds, server.threads))
    warm = np.array(samples[len(samples) // 5 :])
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(warm) for b in warm[i + 1 :]]
    half = len(warm) // 2
    calls = ledger, hasty, leaving, bad
    report.note = (
        f"{sum(each.offered for each in calls)} calls in {seconds:.0f} s; {warm[0, 1]:.0f} MB warm, "
        f"{warm[-1, 1]:.0f} MB at the end; {len(samples)} callers killed; hasty {dict(hasty.outcomes)}"
    )
    report.most("memory slope (Theil–Sen), MB/h", float(np.median(pairs)) * 3600, slope_mb_h)
    report.most("memory over its median, MB", float(warm[:, 1].max() - np.median(warm[:, 1])), 64)
    report.most("files open at the end, over the middle", float(warm[-1, 2] - warm[half, 2]), 2)
    report.most("threads at the end, over the middle", float(warm[-1, 3] - warm[half, 3]), 2)
    report.most("lost", sum(each.lost for each in calls), 0)
    report.most("wrong", sum(each.outcomes["wrong"] for each in calls), 0)
    report.least("answered", ledger.outcomes["answered"] / ledger.offered, 0.999)
    report.least("broken items refused as such", bad.outcomes["WRONG_SIZE"] / bad.offered, 0.999)
    report.most("items in flight afterwards", counts.items_in_flight, 0)
    return report
