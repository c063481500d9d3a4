"""(d) Cost against work: what an image costs by its area and by its faces."""

from collections.abc import Mapping
from functools import partial

from benchmarks import peers, plots
from benchmarks.figures import Section, Table
from benchmarks.photos import Pixels, mosaic, resized
from benchmarks.plan import Plan
from benchmarks.plots import Line
from benchmarks.racing import race
from benchmarks.runners import Worker

MEGAPIXELS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
FACES = (1, 2, 4, 8, 16, 32, 64)
TILE_PX = 160
SHOWN_MS = 2.0  # stages that never take longer are left out of the plots


def measure(plan: Plan) -> Section:
    """Both curves, ours in process."""
    section = Section("Cost against work")
    pair = mosaic(2, 1024, 512)
    areas = {str(area): resized(pair, area) for area in MEGAPIXELS}
    crowds = {str(count): mosaic(count, 8 * TILE_PX, 8 * TILE_PX, TILE_PX) for count in FACES}
    with peers.ours(plan) as worker:
        section.versions.update(worker.versions)
        _curve(section, plan, worker, areas, "image area, megapixels (two faces)", "area.svg")
        _curve(section, plan, worker, crowds, f"faces in an image of {8 * TILE_PX}×{8 * TILE_PX}", "faces.svg")
    return section


def _curve(section: Section, plan: Plan, worker: Worker, images: Mapping[str, Pixels], axis: str, file: str) -> None:
    """Detection on all the images in turn: a table and a plot more."""
    contenders = {size: partial(worker.run, "detect", pixels) for size, pixels in images.items()}
    laps = race(f"cost by {axis}", contenders, plan.pace, plan.say)
    work = [lap.stages for lap in laps.values()]
    stages = list(dict.fromkeys(name for done in work for name in done))
    milliseconds = {
        "an image": [lap.seconds * 1e3 for lap in laps.values()],
        **{name: [done[name].seconds * 1e3 if name in done else 0.0 for done in work] for name in stages},
    }
    table = Table(f"Milliseconds by {axis}", (axis, "faces found", *milliseconds))
    counts = [len(lap.result) for lap in laps.values()]
    table.rows.extend(zip(laps, counts, *milliseconds.values(), strict=True))
    section.tables.append(table)
    sizes = [float(size) for size in laps]
    lines = [Line(name, sizes, times) for name, times in milliseconds.items() if max(times) > SHOWN_MS]
    section.plots.append(plots.draw(plan.out / file, lines, axis, "milliseconds"))
