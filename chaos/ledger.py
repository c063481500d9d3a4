"""What became of every item: answered right and once, refused, failed; or lost, doubled, wrong."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from facenet_proto.v1 import face_pb2 as pb

from chaos.stub import vector_of

SIDE = 160


def crop(number: int, stream: int = 0, side: int = SIDE) -> bytes:
    """A crop (side×side×3 bytes) that no other has."""
    head = number.to_bytes(8, "little") + stream.to_bytes(8, "little")
    return head + bytes(side * side * 3 - len(head))


class Marked:
    """Crops for the stand-in embedder, whose vectors prove which crop they answer."""

    def __init__(self, side: int = SIDE) -> None:
        self.side = side

    def crop(self, number: int, stream: int = 0) -> bytes:
        """One that no other is."""
        return crop(number, stream, self.side)

    def item(self, sent: bytes) -> pb.EmbedItem:
        """How one is sent."""
        return pb.EmbedItem(crop=pb.Image(raw=pb.RawImage(rgb=sent, height=self.side, width=self.side)))

    def message(self, *crops: bytes, number: int = 0, timeout_ms: int | None = None) -> bytes:
        """A request message of crops, as bytes."""
        return pb.EmbedRequest(id=number, items=map(self.item, crops), timeout_ms=timeout_ms).SerializeToString()

    def is_right(self, sent: bytes, vector: np.ndarray) -> bool:
        """Whether a vector (n,) float32 is this crop's, bit by bit."""
        expected = vector_of(sent)
        return np.array_equal(vector[: len(expected)], expected) and not vector[len(expected) :].any()


class Known(Marked):
    """Crops for a real network, as pixels or as files: a few, whose embeddings are known from runs alone."""

    def __init__(self, embeddings: dict[bytes, np.ndarray], *, files: bool = False, tolerance: float = 1e-5) -> None:
        super().__init__()
        self._embeddings, self._crops, self._tolerance = embeddings, list(embeddings), tolerance
        self._files = files

    def crop(self, number: int, stream: int = 0) -> bytes:
        """One of them."""
        return self._crops[(number + 7 * stream) % len(self._crops)]

    def item(self, sent: bytes) -> pb.EmbedItem:
        """How one is sent."""
        return pb.EmbedItem(crop=pb.Image(encoded=sent)) if self._files else super().item(sent)

    def is_right(self, sent: bytes, vector: np.ndarray) -> bool:
        """Whether a vector (n,) float32 is this crop's, to the tolerance."""
        return bool(np.abs(self._embeddings[sent] - vector).max() <= self._tolerance)


@dataclass
class Ledger:
    """Counts of outcomes, one for each item that was offered, with the seconds that each took and when it came."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    ends: dict[str, list[float]] = field(default_factory=dict)  # on the monotonic clock
    offered: int = 0
    doubled: int = 0
    crops: Marked = field(default_factory=Marked)

    def offer(self, count: int = 1) -> None:
        """Items that are about to be sent."""
        self.offered += count

    def book(self, outcome: str, seconds: float = 0.0) -> None:
        """An item ended so."""
        self.outcomes[outcome] += 1
        self.seconds.setdefault(outcome, []).append(seconds)
        self.ends.setdefault(outcome, []).append(time.monotonic())

    def book_response(self, response: pb.EmbedResponse, sent: Sequence[bytes], seconds: float) -> None:
        """The answer to a message of crops: each item's result, or that the message was refused or handed back."""
        if response.draining or response.retry_after_ms:
            for _ in sent:
                self.book("not accepted" if response.draining else "REFUSED", seconds)
            return
        for pixels, result in zip(sent, response.results, strict=True):
            if result.HasField("error"):
                self.book(result.error.reason, seconds)
            else:
                vector = np.frombuffer(result.embedding.vector, "<f4")
                self.book("answered" if self.crops.is_right(pixels, vector) else "wrong", seconds)

    def add(self, other: "Ledger") -> None:
        """What another one counted."""
        self.offered += other.offered
        self.doubled += other.doubled
        self.outcomes += other.outcomes
        for mine, theirs in ((self.seconds, other.seconds), (self.ends, other.ends)):
            for outcome, values in theirs.items():
                mine.setdefault(outcome, []).extend(values)

    @property
    def lost(self) -> int:
        """Items without any outcome."""
        return self.offered - self.outcomes.total()

    @property
    def broken_calls(self) -> int:
        """Items whose call ended otherwise than in order or by a refusal."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith("call "))

    @property
    def broken_before_time(self) -> int:
        """Those of them that did not end by their caller's own deadline."""
        return self.broken_calls - self.outcomes["call DEADLINE_EXCEEDED"]

    def within(self, outcome: str, start: float, end: float) -> int:
        """How many ended so between two moments."""
        return sum(start <= at < end for at in self.ends.get(outcome, ()))

    def p99_ms(self, outcome: str, since: float = -math.inf) -> float:
        """Of how long these took that began after a moment; not a number where there are none."""
        took_s, ends = self.seconds.get(outcome, ()), self.ends.get(outcome, ())
        later_s = [seconds for seconds, end in zip(took_s, ends, strict=True) if end - seconds >= since]
        return float(np.percentile(later_s or [np.nan], 99)) * 1e3

    def slow_until(self, start: float, limit_s: float) -> float:
        """Seconds from ``start`` until the last item ended that was not answered within ``limit_s``; for ever where
        none ended after it."""
        late, in_time = [start], [-math.inf]
        for outcome, ends in self.ends.items():
            for at, took_s in zip(ends, self.seconds[outcome], strict=True):
                (in_time if outcome == "answered" and took_s <= limit_s else late).append(at)
        return max(late) - start if max(in_time) > max(late) else math.inf
