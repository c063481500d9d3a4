"""What may be in flight at the door, and what is."""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits: items of a stream, of a caller, of all; bytes of the messages that hold them; streams."""

    items_per_stream: int
    items_per_caller: int
    items: int
    n_bytes: int
    streams: int


@dataclass(slots=True)
class Counts:
    """What was let in and what came of it; at any time accepted = answered + abandoned + in flight."""

    streams: int = 0
    stalled_streams: int = 0
    items_in_flight: int = 0
    bytes_in_flight: int = 0
    accepted_items: int = 0
    answered_items: int = 0
    abandoned_items: int = 0
    refused_items: int = 0
    refused_streams: int = 0


@dataclass(slots=True)
class Share:
    """What one caller has in flight."""

    items: int = 0
    n_bytes: int = 0


class Expected:
    """Bytes of messages whose reads have just begun: of each caller, and of all."""

    def __init__(self) -> None:
        self.of_caller, self.of_all = Counter[str](), 0

    def add(self, caller: str, n_bytes: int) -> None:
        """Count so many bytes more of the caller's; fewer where they are negative."""
        self.of_all += n_bytes
        self.of_caller[caller] += n_bytes
        if not self.of_caller[caller]:
            del self.of_caller[caller]


def share(limit: int, callers: int) -> int:
    """What one of so many callers may have of a limit: so much that there is as much for a newcomer."""
    return limit // (callers + 1)
