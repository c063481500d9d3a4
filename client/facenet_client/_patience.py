"""How long to wait before trying again, and how often to."""

import asyncio
import random
from typing import NamedTuple

from facenet_client.errors import ServerOverloaded

_LONGEST_REST_S = 1.0  # of an address that has no room
_LONGEST_FULL_S = 60.0  # in which others come first, whatever it told
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _MOST_DOUBLINGS = 0.05, 2.0, 16  # a float's power has an end


def pause_s(failures: int) -> float:
    """The longest pause after so many failures before: twice as long each time, up to a bound."""
    return min(_FIRST_PAUSE_S * 2.0 ** min(failures, _MOST_DOUBLINGS), _LONGEST_PAUSE_S)


class Rest(NamedTuple):
    """How often an address was lost in a row, until when it rests, on the loop's clock, and whether for a refusal."""

    times: int
    until: float
    refusal: ServerOverloaded | None = None


class Rests:
    """Which addresses are left alone for a while: those that were lost, longer each time, and those that refused."""

    def __init__(self) -> None:
        self._rests: dict[str, Rest] = {}
        self._full_until: dict[str, float] = {}

    def lost(self, address: str) -> None:
        """The address did not serve."""
        now = _now()
        rest = self._rests.get(address, Rest(0, now))
        if rest.until <= now:  # its other lanes were lost with it
            longest = pause_s(rest.times)
            self._rests[address] = Rest(rest.times + 1, now + random.uniform(longest / 2, longest))

    def back(self, address: str) -> None:
        """It serves."""
        self._rests.pop(address, None)
        self._full_until.pop(address, None)

    def refused(self, address: str, error: ServerOverloaded, retry_after_s: float) -> None:
        """The address has no room now: new streams wait as long as it last said, though not very long: it guesses."""
        self.no_room(address, retry_after_s)
        now = _now()
        until, rest = now + min(retry_after_s, _LONGEST_REST_S), self._rests.get(address, Rest(0, now))
        if not rest.times:  # where it was lost since, it rests for that
            self._rests[address] = Rest(0, until, error)

    def refusal(self, address: str) -> ServerOverloaded | None:
        """Why the address rests, where that is because it had no room, with what is left of the rest."""
        rest, left_s = self._rests.get(address), self.left_s(address)
        if rest is None or rest.refusal is None or not left_s:
            return None
        return ServerOverloaded(str(rest.refusal), retry_after_s=left_s)

    def left_s(self, address: str) -> float:
        """How long the address still rests."""
        rest = self._rests.get(address)
        return 0.0 if rest is None else max(0.0, rest.until - _now())

    def no_room(self, address: str, retry_after_s: float) -> None:
        """The address had no room for a message just now: until when it told, others come first."""
        self._full_until[address] = _now() + min(max(retry_after_s, _FIRST_PAUSE_S), _LONGEST_FULL_S)

    def full_until(self, address: str) -> float:
        """Until when it has no room, as it last told, on the loop's clock; 0 where it has some."""
        return _ahead(self._full_until.get(address, 0.0))

    def free_at(self, address: str) -> float:
        """When it both serves and has room, as far as can be told, on the loop's clock; 0 where that is now."""
        rest = self._rests.get(address)
        return max(self.full_until(address), _ahead(rest.until if rest else 0.0))

    def free_in_s(self, address: str) -> float:
        """The same, in seconds from now."""
        return max(0.0, self.free_at(address) - _now())


def _ahead(time_s: float) -> float:
    return time_s if time_s > _now() else 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()


class Budget:
    """How often calls that have no answer yet may ask busy servers again: a token each, a tenth back for every answer.

    What a crowd of callers sends to a server that refuses stays near what they would send once.
    """

    def __init__(self, tokens: float = 10.0) -> None:
        self._most = self._left = tokens

    def take(self) -> bool:
        """Take a token, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def refill(self) -> None:
        """For an answer."""
        self._left = min(self._most, self._left + 0.1)
