"""What became of every item: answered right and once, refused, failed; or lost, doubled, wrong."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from facenet_proto.v1 import face_pb2 as pb

from chaos.stub import vector_of

SIDE = 160


def crop(number: int, stream: int = 0, side: int = SIDE) -> bytes:
    """A crop (side×side×3 bytes) that no other has."""
    head = number.to_bytes(8, "little") + stream.to_bytes(8, "little")
    return head + bytes(side * side * 3 - len(head))


def request(*crops: bytes, number: int = 0, timeout_ms: int | None = None) -> pb.EmbedRequest:
    """A message of crops."""
    items = (pb.EmbedItem(crop=pb.Image(raw=pb.RawImage(rgb=pixels, height=SIDE, width=SIDE))) for pixels in crops)
    return pb.EmbedRequest(id=number, items=items, timeout_ms=timeout_ms)


class StandIn:
    """Crops for the stand-in embedder, whose vectors prove which crop they answer."""

    def crop(self, number: int, stream: int = 0) -> bytes:
        """One that no other is."""
        return crop(number, stream)

    def is_right(self, sent: bytes, vector: np.ndarray) -> bool:
        """Whether a vector (n,) float32 is this crop's, bit by bit."""
        expected = vector_of(sent)
        return np.array_equal(vector[: len(expected)], expected) and not vector[len(expected) :].any()


class Known(StandIn):
    """Crops for a real network: a few, whose embeddings are known from runs alone."""

    def __init__(self, embeddings: dict[bytes, np.ndarray], tolerance: float = 1e-5) -> None:
        self._embeddings, self._crops, self._tolerance = embeddings, list(embeddings), tolerance

    def crop(self, number: int, stream: int = 0) -> bytes:
        """One of them."""
        return self._crops[(number + 7 * stream) % len(self._crops)]

    def is_right(self, sent: bytes, vector: np.ndarray) -> bool:
        """Whether a vector (n,) float32 is this crop's, to the tolerance."""
        return bool(np.abs(self._embeddings[sent] - vector).max() <= self._tolerance)


@dataclass
class Ledger:
    """Counts of outcomes, and the seconds that each kind took."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    offered: int = 0
    crops: StandIn = field(default_factory=StandIn)

    def offer(self, count: int = 1) -> None:
        """Items that were sent, or tried to be."""
        self.offered += count

    def book(self, outcome: str, seconds: float = 0.0, count: int = 1) -> None:
        """Items that ended so."""
        self.outcomes[outcome] += count
        self.seconds.setdefault(outcome, []).append(seconds)

    def book_result(self, result: pb.EmbedResult, sent: bytes, seconds: float) -> None:
        """An item's result."""
        if result.HasField("error"):
            self.book(result.error.reason, seconds)
            return
        vector = np.frombuffer(result.embedding.vector, "<f4")
        self.book("answered" if self.crops.is_right(sent, vector) else "wrong", seconds)

    @property
    def lost(self) -> int:
        """Items without any outcome."""
        return self.offered - sum(self.outcomes.values())

    def p99_ms(self, outcome: str) -> float:
        """Of how long these took."""
        return float(np.percentile(self.seconds.get(outcome) or [0.0], 99)) * 1e3
