"""Known people's vectors, who is nearest, and how often that is right. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_client.distances import l2


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """Vectors (N, D) float32 of unit length, one at least, and whose each is."""

    labels: Sequence[str]
    vectors: NDArray[np.float32]


class IdentityScore(NamedTuple):
    """Counts of probes with a face. A known person has a vector in the gallery; a stranger has none."""

    known: int
    named_right: int
    named_wrong: int
    strangers: int
    strangers_named: int

    @property
    def accuracy(self) -> float:
        """The share of known people named right and strangers left unknown; NaN of no probes."""
        right = self.named_right + self.strangers - self.strangers_named
        return _share(right, self.known + self.strangers)

    @property
    def false_accept_rate(self) -> float:
        """The share of strangers named as someone; NaN where there are none."""
        return _share(self.strangers_named, self.strangers)


def nearest(gallery: Gallery, vector: NDArray[np.float32]) -> tuple[str, float]:
    """The label of the nearest vector to (D,), and its L2 distance, 0…2."""
    distances = l2(gallery.vectors, vector)  # (N,)
    place = int(distances.argmin())
    return gallery.labels[place], float(distances[place])


def score(answers: Iterable[tuple[str, str | None]], enrolled: Iterable[str]) -> IdentityScore:
    """Counts over (who it is, the name given or None) of probes, against the people in the gallery."""
    people = set(enrolled)
    known: list[tuple[str, str | None]] = []
    strangers: list[str | None] = []
    for truth, name in answers:
        if truth in people:
            known.append((truth, name))
        else:
            strangers.append(name)
    return IdentityScore(
        known=len(known),
        named_right=sum(name == truth for truth, name in known),
        named_wrong=sum(name is not None and name != truth for truth, name in known),
        strangers=len(strangers),
        strangers_named=sum(name is not None for name in strangers),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
