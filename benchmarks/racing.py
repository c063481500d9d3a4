"""Measuring several in one run: slice by slice in turn, so that whatever else the machine does meets all alike."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.workers.protocol import Slice

SETTLE_S = 0.1  # idle threads of the one before may still spin
STAGES = ("decode", "transpose", "propose", "merge", "cut", "mtcnn-rnet", "refine", "mtcnn-onet", "finish", "align")

K = TypeVar("K", bound=Hashable)

Contender = Callable[[float], Slice]
"""Runs for about so many seconds."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long is measured: rounds of slices of so many seconds."""

    rounds: int
    slice_s: float

    def longer(self, times: float) -> "Pace":
        """Slices so many times as long, half as many rounds."""
        return Pace((self.rounds + 1) // 2, self.slice_s * times)


class StageWork(NamedTuple):
    """What one stage does in a call: rows (images, levels, windows), and the seconds of computing, in which stages
    that run side by side count each for itself."""

    rows: float
    seconds: float


@dataclass(slots=True)
class Lap:
    """One contender's slices."""

    slices: list[Slice] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """One call: the median over the slices of each one's median."""
        return float(np.median(self.by_round))

    @property
    def by_round(self) -> NDArray[np.float64]:
        """One call's seconds in each round."""
        return np.array([median(each.durations_s) for each in self.slices])

    @property
    def result(self) -> NDArray[Any]:
        """What a call gives."""
        return self.slices[-1].result

    @property
    def stages(self) -> Mapping[str, StageWork]:
        """What each stage that had work did in one call, on average, in the order in which an image meets them."""
        calls = sum(len(each.durations_s) for each in self.slices)
        sums = {
            name: np.sum([each.stages[name] for each in self.slices], axis=0) / calls for name in self.slices[-1].stages
        }
        ordered = sorted(sums, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
        return {name: StageWork(sums[name][0], sums[name][1] / 1e9) for name in ordered if sums[name][0]}


def race(title: str, contenders: Mapping[K, Contender], pace: Pace, say: Callable[[str], None]) -> dict[K, Lap]:
    """The contenders in turn, round after round."""
    laps = {name: Lap() for name in contenders}
    for number in range(1, pace.rounds + 1):
        for name, contender in contenders.items():
            time.sleep(SETTLE_S)
            laps[name].slices.append(contender(pace.slice_s))
        say(f"{title}: round {number} of {pace.rounds}")
    return laps


def speed(lap: Lap, over: Lap) -> float:
    """How many times as fast as the other: the median over the rounds, within which the two ran soon after each other.
    Where the machine's speed drifts, it does so for both."""
    return float(np.median(over.by_round / lap.by_round))


def fastest(laps: Mapping[str, Lap], among: Iterable[str]) -> str:
    """The name of the one that takes least time."""
    return min(among, key=lambda name: laps[name].seconds)
