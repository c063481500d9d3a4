"""What was accepted and is not answered yet, of one kind of work, and how long it will take."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from facenet_server.admission.limits import add
from facenet_server.admission.throughput import Pace

# The shares of its time that a message may have to wait: for what has seats already, beside which there is the rest of
# a batch and its own to wait for; and where all else is guessed, since those who come later have their share, too.
_SEATED, _GUESSED = 0.75, 0.4


class Backlog:
    """Items of one kind, ready crops say, or images to be searched: how many each caller has here, how many of them are
    worked on, in seats, and how fast those have been done lately.

    Items count from when their message may begin, though it may have to wait for room, until they are answered. Time
    counts while there is one in a seat, so that callers who are waited for, to take their answers say, are no
    slowness; and whoever leaves a seat made it free, with an answer or without.
    """

    def __init__(
        self,
        n_at_once: int = 1,
        clock: Callable[[], float] = time.monotonic,
        *,
        most_of_stream: int | None = None,
        one_takes_all: bool = False,
    ) -> None:
        """``n_at_once``: items that do not wait for each other; ``most_of_stream``: how many of a stream wait for seats
        at once, its others behind them; ``one_takes_all``: where one is alone, all threads work on it, so that what it
        takes then is the pace of all."""
        self._n_at_once = n_at_once
        self._pace = Pace(clock, 1 if one_takes_all else n_at_once)
        self._of_caller = Counter[str]()
        self._most_of_stream = most_of_stream
        self._streams_of = dict[str, Counter[Hashable]]()
        self._seated = Counter[str]()  # of each caller, and not answered
        self._n_seated = 0

    def back_in_s(self, caller: str, stream: Hashable, n_items: int, left_s: float) -> float:
        """When to send so many items again, for whose answer there are ``left_s`` seconds; 0 or less where they would
        not wait for too much of these. By then both what they would wait for and their time are less."""
        certain_s, guessed_s = self.waits_s(caller, stream, n_items)
        too_late_s = certain_s / _SEATED + guessed_s / _GUESSED - left_s
        back_s = too_late_s * _SEATED / (1 - _SEATED)
        if back_s <= certain_s:
            return back_s
        too_late_s -= certain_s * (1 - _SEATED) / _SEATED  # what is certain has gone by then
        return certain_s + too_late_s * _GUESSED / (1 - _GUESSED)

    def waits_s(self, caller: str, stream: Hashable, n_items: int) -> tuple[float, float]:
        """About how long so many items more of a caller's stream would wait: for what goes first, whatever comes, which
        is what the caller has in other streams, and what others have in seats; and for the rest of what others have, of
        each as much as the caller has then, since their shares are equal. 0 where nobody can tell."""
        seated, elsewhere = self._seated, self._elsewhere(caller, stream)
        mine = self._streams_of.get(caller, Counter())[stream] + elsewhere
        first = elsewhere + self._n_seated - seated[caller]
        rest = sum(
            max(0, min(n, mine + n_items) - seated[other]) for other, n in self._of_caller.items() if other != caller
        )
        free = self._n_at_once - 1
        certain, before = max(0, first - free), max(0, first + rest - free)
        each_s = self._pace.known_seconds_for(1) or 0.0
        return certain * each_s, (before - certain) * each_s

    def _elsewhere(self, caller: str, stream: Hashable) -> int:
        """What the caller's other streams have that goes before a new item of this one."""
        streams, most = self._streams_of.get(caller, Counter()), self._most_of_stream
        if most is None:
            return self._of_caller[caller] - streams[stream]
        return sum(min(n, most) for other, n in streams.items() if other != stream)

    def begin(self, caller: str, stream: Hashable, n_items: int) -> "Work":
        """A message of so many items is to be answered; its ``over`` must be called, however it ends."""
        self._change(caller, stream, n_items)
        return Work(self, caller, stream, n_items)

    def _change(self, caller: str, stream: Hashable, n_items: int, seated: int = 0, gone: int = 0) -> None:
        if n_items:
            add(self._of_caller, caller, n_items)
            streams = self._streams_of.setdefault(caller, Counter())
            add(streams, stream, n_items)
            if not streams:
                del self._streams_of[caller]
        if seated:
            self._n_seated += seated
            add(self._seated, caller, seated)
            self._pace.note(self._n_seated, gone)


class Work:
    """A message's part in it."""

    def __init__(self, backlog: Backlog, caller: str, stream: Hashable, n_items: int) -> None:
        self._backlog = backlog
        self._of = caller, stream
        self._left = n_items
        self._seated = 0

    @contextmanager
    def aside(self, n_items: int) -> Iterator[None]:
        """Meanwhile so many of its items wait for their own caller, and others not for them."""
        self._backlog._change(*self._of, -n_items)
        try:
            yield
        finally:
            self._backlog._change(*self._of, n_items)

    def seated(self, n_items: int) -> None:
        """So many of its items have a seat now."""
        n_items = min(n_items, self._left - self._seated)  # its prescan may have told of fewer
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
