"""What may be in flight at the door, and what is."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key")

_TRIED_BYTES_PER_S = 32e6  # a few hundredths of the loop's time, even where a copy of new pages makes 1 GB/s


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits: items of a stream, of a caller, of all; bytes of the messages that hold them; streams; connections
    that have any."""

    items_per_stream: int
    items_per_caller: int
    items: int
    n_bytes: int
    streams: int
    connections: int


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

    def of_stream(self, caller: str) -> "Expectation":
        """What a new stream of the caller's is expected to bring: nothing yet."""
        return Expectation(self, caller)

    def add(self, caller: str, n_bytes: int) -> None:
        """Count so many bytes more of the caller's; fewer where they are negative."""
        self.of_all += n_bytes
        add(self.of_caller, caller, n_bytes)


class Expectation:
    """The message that one stream of the caller's is expected to bring: its bytes."""

    def __init__(self, expected: Expected, caller: str) -> None:
        self.n_bytes = 0
        self._expected = expected
        self._caller = caller
        self._until: asyncio.TimerHandle | None = None

    def set(self, n_bytes: int, until: asyncio.TimerHandle | None = None) -> None:
        """So many from now on, 0 for none; until the timer comes, if any."""
        if self._until is not None:
            self._until.cancel()
        self._until = until
        self._expected.add(self._caller, n_bytes - self.n_bytes)
        self.n_bytes = n_bytes


class Tries:
    """Reads of messages for which there is no room, should they be as large as those before them: so many bytes a
    second, of which callers have equal shares, since what is read to be thrown away stops the event loop while it is
    copied."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next_s: dict[str, float] = {}  # of callers who had one

    def take(self, caller: str, n_bytes: int, callers: int) -> bool:
        """Whether one of the caller's, who is one of so many, is to be now."""
        now_s = self._clock()
        if now_s < self._next_s.get(caller, now_s):
            return False
        self._next_s = {each: next_s for each, next_s in self._next_s.items() if next_s > now_s}
        self._next_s[caller] = now_s + n_bytes * callers / _TRIED_BYTES_PER_S
        return True


class Connections:
    """Connections that have streams open: of each caller, and of all. gRPC tells of no others. One that a proxy shares
    between callers is one, and each one's."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._streams_on = Counter[str]()
        self._streams_of = Counter[tuple[str, str]]()  # each caller's on each connection
        self._of_caller = Counter[str]()

    def has_room(self, caller: str, connection: str) -> bool:
        """Whether the caller may have a stream there: it is open, or there is room for another one of the caller's."""
        mine = self._of_caller[caller]
        return connection in self._streams_on or leaves_as_much(self._most, len(self._streams_on), mine)

    def add(self, caller: str, connection: str, n_streams: int) -> None:
        """Count one stream more, or fewer where it is negative."""
        there = caller, connection
        was_there = there in self._streams_of
        add(self._streams_on, connection, n_streams)
        add(self._streams_of, there, n_streams)
        add(self._of_caller, caller, (there in self._streams_of) - was_there)


def share(limit: int, callers: int) -> int:
    """What one of so many callers may have of a limit: so much that there is as much for a newcomer."""
    return limit // (callers + 1)


def leaves_as_much(limit: int, used: int, mine: int) -> bool:
    """Whether a caller who has ``mine`` of the ``used`` may have one more of what is held for as long as callers like:
    where it then has no more than is left for a newcomer, whatever the others have; and the first one in any case."""
    return used < limit and (not mine or mine + 1 <= (limit - (used - mine)) // 2)


def add(counts: Counter[Key], key: Key, change: int) -> None:
    """Change a count; one of none is forgotten."""
    if count := counts[key] + change:
        counts[key] = count
    else:
        counts.pop(key, None)
