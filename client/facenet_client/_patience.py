"""How long to wait before trying again, and how often to."""

from typing import NamedTuple

from facenet_client.errors import ServerOverloaded

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _MOST_DOUBLINGS = 0.05, 2.0, 16  # a float's power has an end


def pause_s(failures: int) -> float:
    """The longest pause after so many failures before: twice as long each time, up to a bound."""
    return min(_FIRST_PAUSE_S * 2.0 ** min(failures, _MOST_DOUBLINGS), _LONGEST_PAUSE_S)


class Rest(NamedTuple):
    """How often an address was lost in a row, until when it rests, on the loop's clock, and whether for a refusal."""

    times: int
    until: float
    refusal: ServerOverloaded | None = None


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
