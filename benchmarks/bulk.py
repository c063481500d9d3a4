"""(bulk) Bulk runs: the local engine against one pipeline in process, Ray against the local engine; memory, listing."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from facenet_server.config import Config
from PIL import Image

from benchmarks.embedding import DEFAULT
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure, Section, Table
from benchmarks.in_process import InProcess
from benchmarks.photos import portraits, research_photos, small_photos
from benchmarks.plan import Plan

LOCAL_OVER, RAY_OVER, SAME, GROWTH = 0.93, 0.85, 1e-5, 1.1
LISTED, LIST_S, LIST_BYTES = 1_000_000, 120.0, 1e9
NODES = 3
ON_RAY = f"Ray, {NODES} nodes, over the local engine"
_AT_ONCE = (8, 32)  # images in process; the best counts
_IN_PROCESS_S, _LOCAL_S, _RAY_S = 60.0, 190.0, 330.0
_QUICK = 20.0  # times shorter
_MEMORY_IMAGES, _EARLY = 20_000, 2_000
_SAMPLE_S = 1.0


class Done(NamedTuple):
    """What a run says of itself at its end, and where its parts are."""

    summary: dict[str, Any]
    out: Path

    @property
    def per_s(self) -> float:
        """Images a second, from the first process's start to the last part."""
        return float(self.summary["images"] / self.summary["last_part_s"])

    @property
    def per_s_between_parts(self) -> float:
        """Images a second, from the first finished part to the last one, without the first one's."""
        images = self.summary["images"] * (1 - 1 / self.summary["parts"])
        return float(images / (self.summary["last_part_s"] - self.summary["first_part_s"]))


def measure(plan: Plan) -> Section:
    """Rates, memory, and how long a million names take."""
    section, shorter = Section("Bulk runs"), 1.0 if plan.pace.rounds > 3 else _QUICK
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        photos = _photos(room)
        rates = {
            precision: _against_in_process(section, plan, room, photos, precision, shorter)
            for precision in ("fp32", "int8")
        }
        if find_spec("ray"):
            _on_ray(section, plan, room, photos, rates["fp32"], shorter)
        else:
            section.figures.append(
                Figure("Ray over the local engine", None, "×", at_least=RAY_OVER, note="no ray here")
            )
        section.figures.extend(_listing(room / "names", int(LISTED / shorter)))
        count = int(_MEMORY_IMAGES / shorter)
        section.figures.append(_memory(plan, room, count, "local"))
        if find_spec("ray"):
            section.figures.append(_memory(plan, room, count, "ray"))
    return section


def _photos(room: Path) -> list[Path]:
    """LFW where the research photos are, else portraits at many sizes."""
    found = sorted((research_photos() / "lfw").rglob("*.jpg"))
    if not found:
        (room / "photos").mkdir()
        for number, data in enumerate(small_photos()):
            (room / "photos" / f"{number:03}.jpg").write_bytes(data)
        found = sorted((room / "photos").iterdir())
    return found


def _against_in_process(
    section: Section, plan: Plan, room: Path, photos: Sequence[Path], precision: str, shorter: float
) -> float:
    """The local engine between runs of one pipeline on all cores; images a second of the latter."""
    model = DEFAULT if precision == "fp32" else f"{DEFAULT}-{precision}"
    data = [photo.read_bytes() for photo in islice(cycle(photos), 400)]
    with InProcess(Config(models=plan.models, device=plan.device)) as pipeline:
        if model not in pipeline.embedders:
            name = f"local engine over in process, {precision}"
            section.figures.append(Figure(name, None, "×", at_least=LOCAL_OVER, note=f"no {model} among the models"))
            return 0.0
        best = max(_AT_ONCE, key=lambda at_once: _rate(pipeline, data, at_once, model, 5.0))
        before, rates, ratios = (
            _rate(pipeline, data, best, model, _IN_PROCESS_S / shorter),
            list[float](),
            list[float](),
        )
        for number in range(2):
            count = int(before * _LOCAL_S / shorter)
            done = _bulk(plan, room / f"{precision}-{number}", _list(room, photos, count), "--precision", precision)
            after = _rate(pipeline, data, best, model, _IN_PROCESS_S / shorter)
            ratios.append(done.per_s / ((before + after) / 2))
            rates.append(done.per_s)
            plan.say(f"bulk, {precision}: {done.per_s:.1f} images/s, in process {before:.1f} and {after:.1f}")
            before = after
    note = f"{median(rates):.1f} images/s, {done.summary['last_part_s']:.0f} s a run, its start included"
    name = f"local engine over one pipeline in process, {precision}"
    section.figures.append(Figure(name, median(ratios), "×", at_least=LOCAL_OVER, note=note))
    return median(rates)


def _rate(pipeline: InProcess, data: Sequence[bytes], at_once: int, model: str, seconds: float) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        pipeline.embed_encoded(data, at_once, model)
        count += len(data)
    return count / (time.perf_counter() - start)


def _list(room: Path, photos: Sequence[Path], count: int) -> Path:
    listed = room / f"{count}.txt"
    listed.write_text("".join(f"{photo}\n" for photo in islice(cycle(photos), count)))
    return listed


def _bulk(plan: Plan, out: Path, source: Path, *arguments: object, watch: Callable[[], object] | None = None) -> Done:
    """A run of the command to its end."""
    code = "from facenet_client.cli import main; main()"
    words = [source, out, "--models", plan.models, "--device", plan.device, "--json", *arguments]
    with tempfile.TemporaryFile() as log, ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "bulk", *map(str, words)], stdout=subprocess.PIPE, stderr=log, text=True
        )
        if watch:
            stack.enter_context(_Sampled(watch))
        told, _ = process.communicate()
        if process.returncode not in (0, 1) or not told:
            log.seek(0)
            raise BenchmarkError(f"facenet bulk ended with {process.returncode}:\n{log.read()[-3000:].decode()}")
    return Done(json.loads(told), out)


# ---- Ray ----


def _on_ray(
    section: Section, plan: Plan, room: Path, photos: Sequence[Path], local_per_s: float, shorter: float
) -> None:
    """Three nodes beside the local engine on the same list: rate, rows, start and memory."""
    from chaos.ray_cluster import RayCluster

    source = _list(room, photos, int((local_per_s or 10.0) * _RAY_S / shorter))
    free, start = _available_bytes(), time.perf_counter()
    with RayCluster(NODES) as cluster:
        start_s, idle_bytes = time.perf_counter() - start, free - _available_bytes()
        lowest = [free]
        done = _bulk(
            plan, room / "ray", source, "--engine", "ray", "--ray-address", cluster.address,
            watch=lambda: lowest.append(_available_bytes()),
        )  # fmt: skip
    local = _bulk(plan, room / "local", source)
    ratio = done.per_s_between_parts / local.per_s_between_parts
    seconds = done.summary["last_part_s"] - done.summary["first_part_s"]
    rates = f"{done.per_s_between_parts:.1f} and {local.per_s_between_parts:.1f} images/s"
    note = f"{rates}; {seconds:.0f} s from the first part to the last"
    section.figures.append(Figure(ON_RAY, ratio, "×", at_least=RAY_OVER, note=note))
    worst = difference(done.out, local.out)
    section.figures.append(Figure("Ray and local: largest difference of an embedding", worst, "", at_most=SAME))
    table = Table("Ray on this machine", ("", "s", "MB"))
    table.rows.append((f"cluster of {NODES} nodes", start_s, idle_bytes / 1e6))
    table.rows.append(("from the command to the first part", done.summary["first_part_s"], None))
    table.rows.append(("the whole, at most", None, (free - min(lowest)) / 1e6))
    section.tables.append(table)


def difference(one: Path, other: Path) -> float:
    """The largest difference of two runs' embeddings; infinite where anything else differs."""
    found, expected = (
        pa.concat_tables(pq.read_table(part) for part in sorted(out.glob("part-*.parquet"))) for out in (one, other)
    )
    if found.drop_columns("embedding") != expected.drop_columns("embedding"):
        return float("inf")
    a, b = (np.stack(each["embedding"].drop_null().to_numpy(zero_copy_only=False)) for each in (found, expected))
    return float(np.abs(a - b).max())


# ---- a million names, twenty thousand images ----


def _listing(folder: Path, count: int) -> list[Figure]:
    """Files with the names of photos, listed and cut into shards by a process of its own."""
    for number in range(0, count, 1000):
        (folder / f"{number:07}").mkdir(parents=True)
        for name in range(number, min(count, number + 1000)):
            (folder / f"{number:07}" / f"{name:07}.jpg").touch()
    start = time.perf_counter()
    code = (
        "import sys; from pathlib import Path\n"
        "from facenet_bulk.files import Files; from facenet_bulk.manifest import Manifest, write\n"
        "from facenet_bulk.sources import find; from facenet_client.cli.photos import Walk\n"
        "files = Files(sys.argv[2])\n"
        "assert write(files, find(sys.argv[1]).entries(Walk()), None) == int(sys.argv[3])\n"
        "status = Path('/proc/self/status').read_text().splitlines()\n"  # getrusage tells of who started it, too
        "print(next(line.split()[1] for line in status if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", code, str(folder), f"{folder}-out", str(count)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds = time.perf_counter() - start
    return [
        Figure(f"{count:,} photos listed and cut into shards", seconds, "s", at_most=LIST_S),
        Figure("the same: memory at most", int(told) * 1024, "bytes", at_most=LIST_BYTES),
    ]


def _memory(plan: Plan, room: Path, count: int, engine: str) -> Figure:
    """Of all processes together, after so many images over that after a tenth of them."""
    source = _small_images(room / "small", count)
    samples = list[tuple[int, float]]()
    out = room / f"memory-{engine}"
    with ExitStack() as stack:
        words: list[object] = ["--engine", engine, "--shard-images", "200"]
        free = _available_bytes()
        if engine == "ray":
            from chaos.ray_cluster import RayCluster

            words += ["--ray-address", stack.enter_context(RayCluster(NODES)).address]
        watch = lambda: samples.append((200 * len(list(out.glob("part-*"))), free - _available_bytes()))  # noqa: E731
        _bulk(plan, out, source, *words, watch=watch)
    early_count = count * _EARLY // _MEMORY_IMAGES
    early_on = [taken for done, taken in samples if early_count <= done <= 2 * early_count]
    late_on = [taken for done, taken in samples if done >= count - early_count]
    name = f"{engine}: memory after {count:,} images over that after {early_count:,}"
    if not early_on or not late_on:
        return Figure(name, None, "×", at_most=GROWTH, note="too quick to be seen")
    early, late = median(early_on), median(late_on)
    note = f"{early / 1e6:.0f} MB, then {late / 1e6:.0f} MB"
    return Figure(name, late / early, "×", at_most=GROWTH, note=note)


def _small_images(folder: Path, count: int) -> Path:
    """Portraits at fifty sizes, a list of so many."""
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(0)
        for number, (width, height) in enumerate(rng.integers(60, 160, (50, 2))):
            portrait = Image.fromarray(portraits()[number % 2])
            portrait.resize((int(width), int(height))).save(folder / f"{number:02}.jpg", quality=90)
    return _list(folder.parent, sorted(folder.iterdir()), count)


class _Sampled:
    """Meanwhile something is called every second, in a thread."""

    def __init__(self, watch: Callable[[], object]) -> None:
        self._watch, self._ended = watch, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._watch()


def _available_bytes() -> int:
    """The machine's memory that programs may still take: the page cache counts as free."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
