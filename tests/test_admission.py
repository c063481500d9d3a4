"""Admission's promises hold in whatever order callers come, wait, are served, stall and leave; and each of them is
checked: a controller with one part replaced by a worse one is found out."""

from collections.abc import Sequence
from typing import Any

import pytest
from admission_machine import LIMITS, AdmissionMachine
from facenet_server.admission.controller import AdmissionController, StreamSession
from facenet_server.admission.fair_semaphore import FairSemaphore
from facenet_server.admission.limits import Headroom
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test


def run(machine: Any, examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


def test_every_promise_of_admission_holds() -> None:
    run(AdmissionMachine, 300)


class Boundless(FairSemaphore):
    """It counts, and lets everybody in."""

    def _fits(self, _: Sequence[int]) -> bool:
        return True

    def _is_within_cap(self, *_: Any) -> bool:
        return True


class OneKindOnly(FairSemaphore):
    """It looks at the first kind of units alone."""

    def _fits(self, cost: Sequence[int]) -> bool:
        return not self._used[0] or self._used[0] + cost[0] <= self._limits[0]


class FirstFlowFirst(FairSemaphore):
    """Whoever waits longest as a flow is served until it has nothing left."""

    def _next(self) -> Any:
        self._starts.update(dict.fromkeys(self._waiting, 0.0))
        return super()._next()


class Greedy(Headroom):
    """A caller may have all that there is."""

    def has_room(self, _: str) -> bool:
        return self._total < self._limit


class Forgetful(StreamSession):
    """What it had when it ends is not counted as abandoned."""

    def _abandon(self) -> None:
        self._admission.counts.abandoned_items -= self._items
        super()._abandon()


class Mutated(AdmissionController):
    """One with a worse part."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.worsen()

    def worsen(self) -> None:
        """Put the part in its place."""


class NoItemLimit(Mutated):
    def worsen(self) -> None:
        self.items = Boundless(LIMITS.items, passes=True)


class NoCapOfACaller(Mutated):
    def worsen(self) -> None:
        self.items = FairSemaphore(LIMITS.items)


class NoByteLimit(Mutated):
    def worsen(self) -> None:
        self.bytes = Boundless(LIMITS.n_bytes, passes=True)


class NoPixelLimit(Mutated):
    def worsen(self) -> None:
        self.images = OneKindOnly(LIMITS.images, LIMITS.pixels)


class NoHeadroom(Mutated):
    def worsen(self) -> None:
        self.streams = Greedy(LIMITS.streams)


class NoFairness(Mutated):
    def worsen(self) -> None:
        self.raw_crops = FirstFlowFirst(LIMITS.raw_crops)


class NoPrediction(Mutated):
    def worsen(self) -> None:
        for estimator in self.estimators.values():
            estimator.waits_s = lambda *_: (0.0, 0.0)  # type: ignore[method-assign]  # the part that is replaced


class NoBoundOnBackoff(Mutated):
    def backoff_s(self) -> float:
        return self._throughput.known_seconds_for(self.counts.items_in_flight) or 0.0


class NoCropLimit(Mutated):
    def worsen(self) -> None:
        self.crop_bytes = Boundless(LIMITS.n_bytes, passes=True)


class NoCountOfTheAbandoned(Mutated):
    def open_stream(self, caller: str, connection: str = "") -> StreamSession:
        super().open_stream(caller, connection)
        return Forgetful(self, caller, connection)


MUTATIONS = {
    "1 items": NoItemLimit,
    "1 items of a caller": NoCapOfACaller,
    "2 bytes": NoByteLimit,
    "3 pixels": NoPixelLimit,
    "4 headroom": NoHeadroom,
    "5 fairness": NoFairness,
    "6 prediction": NoPrediction,
    "7 backoff": NoBoundOnBackoff,
    "9 crops": NoCropLimit,
    "10 counts": NoCountOfTheAbandoned,
}


@pytest.mark.slow
@pytest.mark.parametrize("controller", MUTATIONS.values(), ids=MUTATIONS)
def test_a_worse_part_is_found_out(controller: type[Mutated]) -> None:
    machine = type("Machine", (AdmissionMachine,), {"controller": controller})
    with pytest.raises(AssertionError):
        run(machine, 2000)
