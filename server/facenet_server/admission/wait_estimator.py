"""How long a message would wait for work of one kind, from what is in flight and the throughput lately."""

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable

from facenet_server.admission.limits import add

# The shares of its time that a message may wait: for what has seats already, beside which there is the rest of a batch
# and its own to wait for; and where the wait is a guess, since those who come later have their share, too.
_CERTAIN, _GUESSED = 0.75, 0.4

_OVER_S = 10.0  # throughput is an average of so long, in time that was not idle; a pause of seconds is no new one
_IDLE_OVER_S = 60.0  # what was before an idle time says less the longer that was, once there is anything after it
_UNKNOWN_S = 1.0
_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.02, 5.0
_FAR_MORE = 4.0  # than was in flight when the throughput was measured: batches were smaller then, and nothing full


class Throughput:
    """Items per second, over about the last ten seconds in which there was something to do.

    Idle time does not lower the rate. The first answers weigh as much as later ones; after an idle time, they weigh
    more than those before.

    Three sums, each weighted by exp(−age / ``_OVER_S``): items gone, the time, and the items in flight over it. Time
    counts in part where there was less in flight than is done at once, ``n_at_once``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, n_at_once: int = 1) -> None:
        self._clock = clock
        self._n_at_once = n_at_once
        self._at_s = clock()
        self._in_flight = 0
        self._gone = self._seconds = self._item_seconds = 0.0
        self._idle_fades = 1.0  # of the sums before an idle time, where nothing has gone since
        self._since_s = self._item_since_s = 0.0  # their parts since anything has gone

    def note(self, in_flight: int, gone: int = 0) -> None:
        """So many items are in flight from now on, and so many have just gone: with their answer, or without."""
        self._advance()
        if gone:
            self._gone = self._gone * self._idle_fades + gone
            self._seconds = (self._seconds - self._since_s) * self._idle_fades + self._since_s
            self._item_seconds = (self._item_seconds - self._item_since_s) * self._idle_fades + self._item_since_s
            self._idle_fades, self._since_s, self._item_since_s = 1.0, 0.0, 0.0
        self._in_flight = in_flight

    def seconds_for(self, n_items: int) -> float:
        """About how long answering so many takes, to be told to callers; where it cannot tell, a second."""
        if (seconds := self.known_seconds_for(n_items)) is None:
            return _UNKNOWN_S
        return min(seconds, _UNKNOWN_S) if n_items * self._seconds > _FAR_MORE * self._item_seconds else seconds

    def known_seconds_for(self, n_items: int) -> float | None:
        """The same by nothing but the rate: too much where batches were smaller so far. None before any answer."""
        self._advance()
        return n_items * self._seconds / self._gone if self._gone else None

    def _advance(self) -> None:
        now = self._clock()
        passed_s, self._at_s = now - self._at_s, now
        if not self._in_flight:
            self._idle_fades *= math.exp(-passed_s / _IDLE_OVER_S)
            return
        fades = math.exp(-passed_s / _OVER_S)
        weight_s = _OVER_S * (1 - fades) * min(1.0, self._in_flight / self._n_at_once)
        item_weight_s = weight_s * self._in_flight
        self._gone *= fades
        self._seconds, self._since_s = self._seconds * fades + weight_s, self._since_s * fades + weight_s
        self._item_seconds = self._item_seconds * fades + item_weight_s
        self._item_since_s = self._item_since_s * fades + item_weight_s


class WaitEstimator:
    """Items of one kind, raw crops say, or images to be searched: how many each caller has in flight, how many of them
    are at work, in seats, and the throughput.

    Items count from when their message may begin, though it may have to wait for room, until they are answered. Time
    counts while an item has a seat, so that a caller who takes no answers is no slowness; whoever leaves a seat frees
    it, with an answer or without.
    """

    def __init__(
        self,
        n_at_once: int = 1,
        clock: Callable[[], float] = time.monotonic,
        *,
        most_of_stream: int | None = None,
        one_takes_all: bool = False,
    ) -> None:
        """``n_at_once``: items that do not wait for each other.

        ``most_of_stream``: how many items of a stream wait for seats at once, its others behind them.
        ``one_takes_all``: a lone item has all threads, so that its time is the pace of all.
        """
        self._n_at_once = n_at_once
        self._throughput = Throughput(clock, 1 if one_takes_all else n_at_once)
        self._of_caller = Counter[str]()
        self._most_of_stream = most_of_stream
        self._streams_of = dict[str, Counter[Hashable]]()
        self._seated = Counter[str]()  # of each caller, and not answered
        self._n_seated = 0

    def refused_for_s(self, caller: str, stream: Hashable, n_items: int, remaining_s: float) -> float:
        """For how long so many items are refused, whose answer is of use for ``remaining_s`` seconds: 0 or less where
        their wait is short enough now. By then both what they wait for and their time are less."""
        certain_s, guessed_s = self.waits_s(caller, stream, n_items)
        too_late_s = certain_s / _CERTAIN + guessed_s / _GUESSED - remaining_s
        back_s = too_late_s * _CERTAIN / (1 - _CERTAIN)
        if back_s <= certain_s:
            return back_s
        too_late_s -= certain_s * (1 - _CERTAIN) / _CERTAIN  # what is certain has gone by then
        return certain_s + too_late_s * _GUESSED / (1 - _GUESSED)

    def waits_s(self, caller: str, stream: Hashable, n_items: int) -> tuple[float, float]:
        """About how long so many items more of a caller's stream would wait. Certain: for what the caller has in other
        streams, and what others have in seats. Guessed: for the rest of what others have, of each as much as the caller
        has then, since their shares are equal. 0 before any throughput is known."""
        seated, elsewhere = self._seated, self._elsewhere(caller, stream)
        mine = self._streams_of.get(caller, Counter())[stream] + elsewhere
        first = elsewhere + self._n_seated - seated[caller]
        rest = sum(
            max(0, min(n, mine + n_items) - seated[other]) for other, n in self._of_caller.items() if other != caller
        )
        free = self._n_at_once - 1
        certain, before = max(0, first - free), max(0, first + rest - free)
        each_s = self._throughput.known_seconds_for(1) or 0.0
        return certain * each_s, (before - certain) * each_s

    def _elsewhere(self, caller: str, stream: Hashable) -> int:
        """What the caller's other streams have that goes before a new item of this one."""
        streams, most = self._streams_of.get(caller, Counter()), self._most_of_stream
        if most is None:
            return self._of_caller[caller] - streams[stream]
        return sum(min(n, most) for other, n in streams.items() if other != stream)

    def begin(self, caller: str, stream: Hashable, n_items: int) -> "Ticket":
        """A message of so many items is to be answered; its ticket must be ``finished``, however it ends."""
        self._change(caller, stream, n_items)
        return Ticket(self, caller, stream, n_items)

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
            self._throughput.note(self._n_seated, gone)


class Ticket:
    """The items of one message, for the estimator."""

    def __init__(self, estimator: WaitEstimator, caller: str, stream: Hashable, n_items: int) -> None:
        self._estimator = estimator
        self._of = caller, stream
        self._left = n_items
        self._seated = 0

    def seated(self, n_items: int) -> None:
        """So many of its items have a seat now."""
        n_items = min(n_items, self._left - self._seated)  # its prescan may have told of fewer
        self._seated += n_items
        self._estimator._change(*self._of, 0, seated=n_items)

    def done(self) -> None:
        """One of its items leaves its seat."""
        if self._seated:
            self._seated -= 1
            self._left -= 1
            self._estimator._change(*self._of, -1, seated=-1, gone=1)

    def finished(self, _: object = None) -> None:
        """None of its items needs any more work: they are answered, or nobody wants them."""
        self._estimator._change(*self._of, -self._left, seated=-self._seated, gone=self._seated)
        self._left = self._seated = 0


def clamped_backoff_s(seconds: float) -> float:
    """A time as callers are told it."""
    return min(max(seconds, _MIN_BACKOFF_S), _MAX_BACKOFF_S)
