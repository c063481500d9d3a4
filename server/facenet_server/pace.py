"""How fast a server answers while it has something to answer."""

import math
import time
from collections.abc import Callable

_OVER_S = 1.0  # it forgets what was longer ago, counted in time that was not idle


class Pace:
    """Items answered a second, over about the last second in which there were any to answer: idle time neither lowers
    nor ages it, and the first answers tell as much of it as later ones.

    Two sums, both weighted by exp(−age / ``_OVER_S``): the answers, and the time itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at_s = clock()
        self._answers = self._seconds = 0.0
        self._busy = False

    def note(self, in_flight: int, answered: int = 0) -> None:
        """So many items are in flight from now on, and so many have just been answered."""
        self._advance()
        self._answers += answered
        self._busy = in_flight > 0

    def per_second(self) -> float:
        """The rate; 0.0 where nothing was answered yet."""
        self._advance()
        return self._answers / self._seconds if self._seconds else 0.0

    def _advance(self) -> None:
        now = self._clock()
        if self._busy:
            fades = math.exp((self._at_s - now) / _OVER_S)
            self._answers *= fades
            self._seconds = self._seconds * fades + _OVER_S * (1 - fades)
        self._at_s = now
