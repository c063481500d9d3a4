"""How fast a server answers while it has something to answer, and so how long what it has will take."""

import math
import time
from collections.abc import Callable

_OVER_S = 10.0  # it forgets what was longer ago, counted in time that was not idle; a pause of seconds is no new pace
_IDLE_OVER_S = 60.0  # what was before an idle time says less the longer that was, once there is anything after it
_UNKNOWN_S = 1.0
_MIN_RETRY_S, _MAX_RETRY_S = 0.02, 5.0
_FAR_MORE = 4.0  # than there was to answer when the pace was learned: batches were smaller then, and nothing full


class Pace:
    """The answering rate over about the last ten seconds in which there was something to answer: idle time does not
    lower it, and the first answers tell as much of it as later ones; after an idle time, more than those before.

    Three sums, each weighted by exp(−age / ``_OVER_S``): what has gone, the time, and the items in flight over it. The
    time counts in part where there was less in flight than can be answered at once, ``n_at_once``.
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
        """So many items are in flight from now on, and so many have just gone: with their answer, or
        without."""
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


def retry_s(seconds: float) -> float:
    """A time as callers are told it."""
    return min(max(seconds, _MIN_RETRY_S), _MAX_RETRY_S)
