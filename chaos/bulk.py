"""Bulk runs whose driver is killed at random moments, or that lose a node of their cluster: what a last run leaves is
what an undisturbed one does."""

import asyncio
import io
import random
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import skimage.data
from PIL import Image

from chaos.children import environment
from chaos.ray_cluster import RayCluster
from chaos.report import Report

_SHARD = 10  # photos
_NODES = 3
_SAME = 1e-5
_ENDS_S = 10.0  # what processes whose driver was killed have to end


async def killed_drivers(*, photos: int, kills: int, within_s: float, models: str, tampered: bool = False) -> Report:
    """T41: so many runs on one machine, each killed by SIGKILL at a random moment, then one to its end. ``tampered``: a
    part is put in another one's place before they are compared."""
    with tempfile.TemporaryDirectory() as folder:
        return await _disturbed(_Case(Path(folder), photos, models), kills, within_s, tampered, [])


async def lost_nodes(*, photos: int, kills: int, within_s: float, models: str) -> Report:
    """T42: the same on a Ray cluster of three nodes, the first run of which loses a node."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        cluster = await asyncio.to_thread(lambda: stack.enter_context(RayCluster(_NODES)))
        case = _Case(Path(folder), photos, models)
        engine = ["--engine", "ray", "--ray-address", cluster.address]
        driver = await case.start(engine)
        await case.parts_there(driver, 1)
        await asyncio.to_thread(cluster.kill_node)
        code = await driver.wait()
        lost = _table(case.parts())
        case.out = case.out.with_name("killed")
        report = await _disturbed(case, kills, within_s, False, engine)
        report.most("exit code of the run that lost a node", code, 0)
        _compare(report, lost, _table(case.parts()), "a lost node: ")
        return report


async def _disturbed(case: "_Case", kills: int, within_s: float, tampered: bool, engine: list[str]) -> Report:
    report, chance, changed, killed = Report(), random.Random(1), 0, 0
    expected = await case.reference()
    for number in range(kills):
        before = case.parts()
        driver = await case.start(engine)
        if number % 4 != 3:  # one in four is killed wherever it is, as while it starts
            await case.parts_there(driver, len(before) + 1)
        await asyncio.wait({asyncio.ensure_future(driver.wait())}, timeout=chance.uniform(0.5, within_s))
        if driver.returncode is None:
            driver.kill()
            killed += 1
        await driver.wait()
        after = case.parts()
        changed += sum(after.get(name) != data for name, data in before.items())
    n_left = await _still_there(case.out)
    before = case.parts()
    code = await (await case.start(engine)).wait()
    after = case.parts()
    changed += sum(after.get(name) != data for name, data in before.items())
    if tampered:
        (one, data), (other, _) = list(after.items())[:2]
        after[other] = after[one] if data else b""
    report.note = f"{case.photos} photos; {len(before)} parts there before the last run"
    report.least("runs killed", killed, kills)
    report.most("exit code of the last run", code, 0)
    _compare(report, _table(after), expected)
    report.most("whole parts that were touched", changed, 0)
    report.most("processes left over", n_left, 0)
    return report


def _compare(report: Report, found: pa.Table, expected: pa.Table, which: str = "") -> None:
    rows, wanted = (list(zip(*(t[name].to_pylist() for name in ("source", "face_index")), strict=True))
                    for t in (found, expected))  # fmt: skip
    report.most(f"{which}rows lost", sum((Counter(wanted) - Counter(rows)).values()), 0)
    report.most(f"{which}rows twice, or of nothing", sum((Counter(rows) - Counter(wanted)).values()), 0)
    report.most(f"{which}rows out of order", sum(a != b for a, b in zip(rows, wanted, strict=False)), 0)
    if rows == wanted:
        others = [name for name in found.column_names if name != "embedding" and found[name] != expected[name]]
        report.most(f"{which}other columns that differ", len(others), 0)
        a, b = (np.stack(t["embedding"].drop_null().to_numpy(zero_copy_only=False)) for t in (found, expected))
        report.most(f"{which}largest difference of an embedding", float(np.abs(a - b).max()), _SAME)


class _Case:
    """Photos, and the folder of the runs that are disturbed."""

    def __init__(self, room: Path, photos: int, models: str) -> None:
        self.photos, self.out = photos, room / "out"
        self._room, self._models = room, models
        portrait = Image.fromarray(skimage.data.astronaut())
        (room / "photos").mkdir()
        for number in range(photos):
            side_px = 180 + number % 97
            picture = portrait.rotate(number % 7 - 3).resize((side_px, side_px))
            picture.save(room / "photos" / f"{number:05}.jpg", quality=90)

    async def start(self, engine: list[str], out: Path | None = None) -> asyncio.subprocess.Process:
        """A run that goes on."""
        code = "from facenet_client.cli import main; main()"
        words: list[Any] = ["bulk", self._room / "photos", out or self.out, "--models", self._models]
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *map(str, words), "--shard-images", str(_SHARD), *engine,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, env=environment(),
        )  # fmt: skip

    async def reference(self) -> pa.Table:
        """The rows of a run that nothing disturbs, on this machine."""
        code = await (await self.start([], self._room / "reference")).wait()
        assert code == 0, f"the undisturbed run ended with {code}"
        return _table(self.parts(self._room / "reference"))

    def parts(self, out: Path | None = None) -> dict[str, bytes]:
        """The parts that are there, by name."""
        return {part.name: part.read_bytes() for part in sorted((out or self.out).glob("part-*.parquet"))}

    async def parts_there(self, driver: asyncio.subprocess.Process, count: int) -> None:
        """Wait until so many are."""
        while driver.returncode is None and len(self.parts()) < count:  # noqa: ASYNC110 (it only tells when asked)
            await asyncio.sleep(0.1)


def _table(parts: dict[str, bytes]) -> pa.Table:
    return pa.concat_tables(pq.read_table(io.BytesIO(data)) for _, data in sorted(parts.items()))


async def _still_there(out: Path) -> int:
    """The processes that work on a folder still, though whoever started them was killed."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + _ENDS_S
    while (left := _at_work_on(out)) and loop.time() < end_s:  # noqa: ASYNC110 (the system does not tell)
        await asyncio.sleep(0.2)
    return left


def _at_work_on(out: Path) -> int:
    """Those that have a file of it open, as the list."""
    count = 0
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        try:
            count += any(str(link.readlink()).startswith(str(out)) for link in descriptors.iterdir())
        except OSError:  # it has ended
            continue
    return count
