"""What became of every item: answered right and once, refused, failed; or lost, doubled, wrong."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from facenet_proto.v1 import face_pb2 as pb

from chaos.stub import vector_of

CROP_BYTES = 160 * 160 * 3


def crop(number: int, stream: int = 0) -> bytes:
    """A crop (160×160×3 bytes) that no other has."""
    head = number.to_bytes(8, "little") + stream.to_bytes(8, "little")
    return head + bytes(CROP_BYTES - len(head))


def request(*crops: bytes, number: int = 0, timeout_ms: int | None = None) -> pb.EmbedRequest:
    """A message of crops."""
    items = (pb.EmbedItem(crop=pb.Image(raw=pb.RawImage(rgb=pixels, height=160, width=160))) for pixels in crops)
    return pb.EmbedRequest(id=number, items=items, timeout_ms=timeout_ms)


@dataclass
class Ledger:
    """Counts of outcomes, and the seconds that each kind took."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    offered: int = 0

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
        self.book("answered" if np.array_equal(vector, vector_of(sent)) else "wrong", seconds)

    @property
    def lost(self) -> int:
        """Items without any outcome."""
        return self.offered - sum(self.outcomes.values())

    def p99_ms(self, outcome: str) -> float:
        """Of how long these took."""
        return float(np.percentile(self.seconds.get(outcome) or [0.0], 99)) * 1e3
