"""What was read and is not answered yet, of one kind of work, and how long it will take."""

import time
from collections import Counter
from collections.abc import Callable

from facenet_server.pace import Pace


class Backlog:
    """Items of one kind, ready crops say, or photos to be searched: how many each caller has here, and how fast they
    have gone lately.

    They count until their answer is made, whether or not its caller takes it; and only answers tell of the pace: not
    items that failed, nor those whose caller left.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = Pace(clock)
        self._of_caller = Counter[str]()
        self._n_items = 0

    def wait_s(self, caller: str, n_items: int) -> float:
        """About how long so many items more of the caller's would wait for others: for its own that came before them,
        and, since callers get equal shares, for as many of each other caller's. 0 where nobody can tell."""
        mine = self._of_caller[caller]
        others = len(self._of_caller) - (mine > 0)
        before = min(self._n_items, mine + (mine + n_items) * others)
        return self._pace.known_seconds_for(before) or 0.0

    def begin(self, caller: str, n_items: int) -> "Work":
        """A message of so many items was read; its ``over`` must be called, however it ends."""
        self._change(caller, n_items)
        return Work(lambda n_done, answered: self._change(caller, -n_done, answered), n_items)

    def _change(self, caller: str, n_items: int, answered: int = 0) -> None:
        self._n_items += n_items
        self._of_caller[caller] += n_items
        if not self._of_caller[caller]:
            del self._of_caller[caller]
        self._pace.note(self._n_items, answered)


class Work:
    """A message's part in it."""

    def __init__(self, done: Callable[[int, int], None], n_items: int) -> None:
        self._done = done
        self._left = n_items

    def answered(self) -> None:
        """One of its items is."""
        if self._left:
            self._left -= 1
            self._done(1, 1)

    def over(self) -> None:
        """It needs no more work: its answer is made, or nobody wants it."""
        self._done(self._left, 0)
        self._left = 0
