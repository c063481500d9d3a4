"""The command line on a large messy folder: interrupted, then robbed of its server, then run to its end."""

import asyncio
import csv
import io
import itertools
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.cbook
import numpy as np
import skimage.data
from facenet_client.cli.files import portable
from PIL import Image

from chaos.children import environment
from chaos.messy import BROKEN, mess
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour

_A_PERSON = 40  # photos
_INTERRUPTED, _NO_SERVER, _SOME_FAILED = 130, 3, 1


class _Folders(NamedTuple):
    root: Path
    answered: set[Path]
    failed: set[Path]

    @property
    def photos(self) -> Path:
        return self.root / "photos"


async def interrupted_runs(*, photos: int, messes: int, models: str, continued: bool = True) -> Report:
    """T35: each command on so many photos in people's folders, some of them messy: once until SIGINT, once until its
    server is killed, once to its end. What all three left behind is each answer once. Not continued: one command,
    whose runs write to stdout one after the other."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        made = await asyncio.to_thread(_make, Path(folder), photos, messes)
        report.note = f"{len(made.answered):,} photos, {len(made.failed):,} that fail"
        server = Server(Behaviour({}, models, core=-1))
        async with server:
            for name, arguments, left in _commands(made) if continued else [_on_stdout(made)]:
                await _thrice(report, server, name, arguments, made, left)
    return report


def _make(root: Path, photos: int, messes: int) -> _Folders:
    """Photos of two people in many lights and sizes, in folders of people."""
    chance = random.Random(0)
    portraits = [Image.fromarray(skimage.data.astronaut()[:256, 128:384]), _hopper()]
    answered, failed = set[Path](), set[Path]()
    for number in range(photos):
        folder = root / "photos" / f"person {number // _A_PERSON:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        light, side_px = chance.uniform(0.6, 1.1), chance.randrange(180, 260)
        picture = (
            portraits[number % 2].resize((side_px, side_px)).point([min(255, int(v * light)) for v in range(256)] * 3)
        )
        picture.save(folder / f"{number:04d}.jpg")
        answered.add(folder / f"{number:04d}.jpg")
    photo = (root / "photos" / "person 00" / "0000.jpg").read_bytes()
    for number in range(messes):
        folder = root / "photos" / f"messy {number:02d}"
        folder.mkdir()
        names = mess(folder, photo)
        answered |= {folder / name for name in names["answered"]}
        failed |= {folder / name for name in names["failed"]}
    _gallery_and_pairs(root, photos)
    return _Folders(root, answered, failed)


def _hopper() -> Image.Image:
    with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        return image.convert("RGB").crop((90, 60, 430, 400))


def _gallery_and_pairs(root: Path, photos: int) -> None:
    folder = root / "photos" / "person 00"
    for number, name in enumerate(("collins", "hopper")):
        (root / "gallery" / name).mkdir(parents=True)
        (root / "gallery" / name / "1.jpg").write_bytes((folder / f"{number:04d}.jpg").read_bytes())
    names = [f"person {number // _A_PERSON:02d}/{number:04d}.jpg" for number in range(photos)]
    rows = [(a, b, 1) for a, b in zip(names, names[2:], strict=False)]
    rows += [(a, b, 0) for a, b in itertools.pairwise(names)]
    rows.append((names[0], f"messy 00/{min(BROKEN)}", 0))
    with (root / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "same"), *rows])


# ---- the commands, and what they leave behind ----

_Left = Callable[[str], tuple[Counter[str], set[str]]]  # of the last run's stdout: answered paths, failed ones


def _commands(made: _Folders) -> list[tuple[str, list[object], _Left]]:
    root = made.root
    jsonl, npz, names = (root / name for name in ("faces.jsonl", "faces.npz", "names.csv"))
    return [
        ("detect", ["detect", made.photos, "--out", jsonl], lambda _: _in_json(jsonl)),
        ("embed", ["embed", made.photos, "--out", npz], lambda _: _in_arrays(npz)),
        ("identify", ["identify", root / "gallery", made.photos, "--out", names], lambda _: _in_csv(names.read_text())),
        ("align", ["align", made.photos, root / "aligned"], lambda _: _in_crops(root / "aligned")),
        ("cluster", ["cluster", made.photos, "--csv"], _in_csv),
        ("evaluate", ["evaluate", "lfw", made.photos, "--pairs", root / "pairs.csv"], _in_figures),
    ]


def _on_stdout(made: _Folders) -> tuple[str, list[object], _Left]:
    return "detect", ["detect", made.photos, "--json"], _in_lines


def _in_json(path: Path) -> tuple[Counter[str], set[str]]:
    return _in_lines(path.read_text())


def _in_lines(text: str) -> tuple[Counter[str], set[str]]:
    records = [json.loads(line) for line in text.splitlines()]
    return Counter(r["path"] for r in records if not r["error"]), {r["path"] for r in records if r["error"]}


def _in_arrays(path: Path) -> tuple[Counter[str], set[str]]:
    with np.load(path) as arrays:
        images, errors = arrays["images"].tolist(), arrays["errors"].tolist()
        rows = Counter(zip(arrays["paths"].tolist(), arrays["faces"].tolist(), strict=True))
    answered = Counter(image for image, error in zip(images, errors, strict=True) if not error)
    answered.update(path for (path, _), count in rows.items() if count > 1)
    return answered, {image for image, error in zip(images, errors, strict=True) if error}


def _in_csv(text: str) -> tuple[Counter[str], set[str]]:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    answered = Counter((row["path"], row.get("face", "0")) for row in rows if not row.get("error"))
    once = Counter({path for path, _ in answered})
    once.update(path for (path, _), count in answered.items() if count > 1)
    return once, {row["path"] for row in rows if row.get("error")}


def _in_crops(out: Path) -> tuple[Counter[str], set[str]]:
    """Of all runs' files of boxes: each crop that is there, as often as it has a line."""
    lines = Counter[str]()
    for file in out.glob("bounding_boxes_*.txt"):
        text = file.read_text("utf-8", "surrogateescape")
        lines.update(line.rpartition(".png ")[0] for line in text.splitlines() if ".png " in line)
    crops = {str(path)[:-4].replace("two\nlines", "two\\nlines") for path in out.rglob("*.png")}
    return Counter({crop: lines[crop] for crop in crops | set(lines)}), set()


def _in_figures(text: str) -> tuple[Counter[str], set[str]]:
    return Counter(line.partition(":")[0] for line in text.splitlines() if line.startswith(("Accuracy", "Area"))), set()


def _expected(name: str, made: _Folders) -> tuple[set[str], set[str]]:
    if name == "evaluate":
        return {"Accuracy", "Area Under Curve (AUC)"}, set()
    if name == "align":
        out = made.root / "aligned"
        within = [path for path in made.answered if path.parent.parent == made.photos]
        crops = {str(out / path.parent.name / path.stem).replace("two\nlines", "two\\nlines") for path in within}
        return crops, set()
    failed = set() if name == "cluster" else set(map(portable, made.failed))
    return set(map(portable, made.answered)), failed


# ---- three runs ----


async def _thrice(
    report: Report, server: Server, name: str, arguments: list[object], made: _Folders, left: _Left
) -> None:
    share = len(made.answered) // 4 if name != "evaluate" else len(made.answered) // 5
    first, one = await _run(server, arguments, share, lambda process: process.send_signal(signal.SIGINT))
    second, two = await _run(server, arguments, share, lambda _: server.end())
    await asyncio.to_thread(server.start)
    third, three = await _run(server, arguments)
    answered, failed = left(one + two + three if left is _in_lines else three)
    wanted, wanted_failed = _expected(name, made)
    codes = (first, second, third)
    if codes != (_INTERRUPTED, _NO_SERVER, _SOME_FAILED):
        report.note += f"; {name} ended with {codes}"
    report.most(f"{name}: exit codes that are not 130, 3, 1", codes != (_INTERRUPTED, _NO_SERVER, _SOME_FAILED), 0)
    report.most(f"{name}: answers lost", len(wanted - set(answered)), 0)
    report.most(
        f"{name}: answers twice, or of nothing", len(set(answered) - wanted) + sum(answered.values()) - len(answered), 0
    )
    report.most(f"{name}: failures that are not told", len(wanted_failed ^ failed), 0)


async def _run(
    server: Server,
    arguments: list[object],
    answers: int | None = None,
    then: Callable[[asyncio.subprocess.Process], object] = lambda _: None,
) -> tuple[int, str]:
    """A command's exit code and what it said on stdout. Once it has so many answers, something is done to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would the command
    code = "from facenet_client.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *map(str, arguments), "--server", server.address, "--timeout-s", "10",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    reading = asyncio.create_task(process.communicate())
    try:
        if answers is not None:
            before = (await server.stats()).admission.answered_items
            while not reading.done() and (await server.stats()).admission.answered_items < before + answers:  # noqa: ASYNC110 (it only tells when asked)
                await asyncio.sleep(0.05)
            then(process)
        out, _ = await reading
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, out.decode()
