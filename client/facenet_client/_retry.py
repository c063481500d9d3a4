"""Whether and when a message that has no answer is sent again.

Face inference changes nothing on the server, so that a message may safely be sent twice; its answer is given once. The
rules are those of gRPC's own retries (gRFC A6): exponential backoff, the server's pushback, and a bucket of tokens
(retry throttling). gRPC's implementation knows calls only, and ends with the first answer; here a message is the unit.
"""

import random

from facenet_client.errors import AnswerTimeout, CallError, ServerOverloaded, ServerUnavailable

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, _MOST_DOUBLINGS = 0.05, 2.0, 16  # a float's power has an end
_TOKENS, _TOKENS_AN_ANSWER = 10.0, 0.1
_ATTEMPTS_WITHOUT_DEADLINE = 30  # about a minute


def backoff_s(failures: int) -> float:
    """The longest backoff after so many failures before: twice as long each time, up to a bound."""
    return min(_FIRST_BACKOFF_S * 2.0 ** min(failures, _MOST_DOUBLINGS), _LONGEST_BACKOFF_S)


class Retry:
    """A client's retries.

    Asking a busy server again costs a token, and each answer brings a tenth of one back: what a crowd of callers sends
    to a server that refuses stays near what they would send once. A lost server costs no token, since its messages
    wait until it, or another one, is ready.
    """

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self._tokens = _TOKENS

    def take(self) -> bool:
        """Take a token, if there is one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def answered(self) -> None:
        """A message was answered."""
        self._tokens = min(_TOKENS, self._tokens + _TOKENS_AN_ANSWER)

    def wait_s(self, error: CallError, attempts: int, remaining_s: float | None, room_in_s: float) -> float | None:
        """How long to wait before the next attempt; None: it does not help, or comes too late.

        ``attempts``: those that failed, the last with the error. ``remaining_s``: until the message's deadline; None:
        it has none. ``room_in_s``: until one of the servers has room, as far as they said.
        """
        if not self.is_on or (remaining_s is None and attempts > _ATTEMPTS_WITHOUT_DEADLINE):
            return None
        wait_s = random.uniform(0, backoff_s(attempts - 1))
        if isinstance(error, ServerOverloaded) and error.retry_after_s is not None:
            wait_s = wait_s + min(error.retry_after_s, room_in_s) if room_in_s else 0.0
        elif not isinstance(error, ServerUnavailable | AnswerTimeout):  # an AnswerTimeout may be another message's
            return None
        return wait_s if remaining_s is None or wait_s < remaining_s else None
