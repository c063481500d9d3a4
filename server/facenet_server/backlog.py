"""What was accepted and is not answered yet, of one kind of work, and how long it will take."""

import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeVar

from facenet_server.pace import Pace

Key = TypeVar("Key")


class Backlog:
    """Items of one kind, ready crops say, or images to be searched: how many each caller has here, how many of them are
    worked on (in seats), and how fast seats have become free lately.

    Items count from when they are accepted until they leave their seat. Time counts while there is one in a seat, so
    that callers who are waited for, to take their answers say, are no slowness; and whoever leaves a seat made it free,
    with an answer or without.
    """

    def __init__(self, n_at_once: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._n_at_once = n_at_once  # items that do not wait for each other
        self._pace = Pace(clock)
        self._of_caller = Counter[str]()
        self._of_stream = Counter[Hashable]()
        self._seated = Counter[str]()  # of each caller
        self._n_seated = 0

    def wait_s(self, caller: str, stream: Hashable, n_items: int) -> float:
        """About how long so many items more of a caller's stream would wait for others: for what the caller has in
        other streams, and for those of other callers, whose shares are equal: for as many of each as the caller has
        then, but at least for those in seats. 0 where nobody can tell."""
        mine, seated = self._of_caller[caller], self._seated
        others = ((n, seated[other]) for other, n in self._of_caller.items() if other != caller)
        before = mine - self._of_stream[stream] + sum(max(min(n, mine + n_items), first) for n, first in others)
        return self._pace.known_seconds_for(max(0, before - self._n_at_once + 1)) or 0.0

    def begin(self, caller: str, stream: Hashable, n_items: int) -> "Work":
        """A message of so many items is accepted; its ``over`` must be called, however it ends."""
        self._change(caller, stream, n_items)
        return Work(self, caller, stream, n_items)

    def _change(self, caller: str, stream: Hashable, n_items: int, seated: int = 0, gone: int = 0) -> None:
        if n_items:
            _add(self._of_caller, caller, n_items)
            _add(self._of_stream, stream, n_items)
        if seated:
            self._n_seated += seated
            _add(self._seated, caller, seated)
            self._pace.note(self._n_seated, gone)


class Work:
    """A message's part in it."""

    def __init__(self, backlog: Backlog, caller: str, stream: Hashable, n_items: int) -> None:
        self._backlog = backlog
        self._of = caller, stream
        self._left = n_items
        self._seated = 0

    def aside(self, n_items: int) -> None:
        """So many of its items wait for their own caller, and others not for them; as many less, once they do not."""
        self._backlog._change(*self._of, -n_items)

    def seated(self, n_items: int) -> None:
        """So many of its items have a seat now."""
        self._seated += n_items
        self._backlog._change(*self._of, 0, seated=n_items)

    def done(self) -> None:
        """One of them leaves it."""
        if self._seated:
            self._seated -= 1
            self._left -= 1
            self._backlog._change(*self._of, -1, seated=-1, gone=1)

    def over(self) -> None:
        """It needs no more work: its answer is made, or nobody wants it."""
        self._backlog._change(*self._of, -self._left, seated=-self._seated, gone=self._seated)
        self._left = self._seated = 0


def _add(counts: Counter[Key], key: Key, change: int) -> None:
    """Change a count; one of none is forgotten."""
    if count := counts[key] + change:
        counts[key] = count
    else:
        counts.pop(key, None)
