"""The limits of admission, what is counted against them, and the counters that decide at once."""

from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How much may be in flight.

    ``items`` and ``n_bytes`` are those of all callers: bytes of request messages, and as many of crops to be sent.
    ``connections`` are those that have streams. ``images``, their ``pixels``, ``raw_crops`` and ``embeddings`` (pairs)
    are those at work.
    """

    items_per_stream: int
    items_per_caller: int
    items: int
    n_bytes: int
    streams: int
    connections: int
    images: int
    pixels: int
    raw_crops: int
    embeddings: int


@dataclass(slots=True)
class Counts:
    """What was admitted and what came of it; at any time accepted = answered + abandoned + in flight."""

    streams: int = 0
    stalled_streams: int = 0
    items_in_flight: int = 0
    bytes_in_flight: int = 0
    accepted_items: int = 0
    answered_items: int = 0
    abandoned_items: int = 0
    refused_items: int = 0
    refused_streams: int = 0


class Headroom:
    """A count of what callers hold for as long as they like, with headroom for newcomers: a caller may hold at most
    half of what the others leave. Its first one needs only a free place."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of_caller = Counter[str]()
        self._total = 0

    def has_room(self, caller: str) -> bool:
        """Whether the caller may hold one more."""
        return _leaves_headroom(self._limit, self._total, self._of_caller[caller])

    def add(self, caller: str, change: int) -> None:
        """Count so many more of the caller's; fewer where they are negative."""
        self._total += change
        add(self._of_caller, caller, change)


class Connections:
    """Connections that have streams open, with the same headroom. One that callers share counts once in all, and once
    for each of them. gRPC tells of no connection without a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._streams_on = Counter[str]()
        self._streams_of = Counter[tuple[str, str]]()  # each caller's on each connection
        self._of_caller = Counter[str]()

    def has_room(self, caller: str, connection: str) -> bool:
        """Whether the caller may open a stream there: the connection has streams, or there is room for another one."""
        is_open = connection in self._streams_on
        return is_open or _leaves_headroom(self._limit, len(self._streams_on), self._of_caller[caller])

    def add(self, caller: str, connection: str, n_streams: int) -> None:
        """Count so many streams more; fewer where they are negative."""
        there = caller, connection
        was_there = there in self._streams_of
        add(self._streams_on, connection, n_streams)
        add(self._streams_of, there, n_streams)
        add(self._of_caller, caller, (there in self._streams_of) - was_there)


def _leaves_headroom(limit: int, used: int, mine: int) -> bool:
    """Whether a caller who has ``mine`` of the ``used`` may have one more."""
    return used < limit and (not mine or mine + 1 <= (limit - (used - mine)) // 2)


def add(counts: Counter[Key], key: Key, change: int) -> None:
    """Change a count; one of none is forgotten."""
    if count := counts[key] + change:
        counts[key] = count
    else:
        counts.pop(key, None)
