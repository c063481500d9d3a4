"""Whether and when a message that has no answer is sent again.

A call changes nothing on the server, so a message may safely be sent twice. Its result is given once. The rules are
those of gRPC's own retries (gRFC A6): exponential backoff, the server's pushback, and a bucket of tokens (retry
throttling). gRPC's own retries work on whole calls only, and stop after the first answer; here the unit is a message.
"""

import random

from facenet_client.errors import AnswerTimeout, CallError, ServerOverloaded, ServerUnavailable

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, _MOST_DOUBLINGS = 0.05, 2.0, 16  # the exponent must not overflow a float
_TOKENS, _TOKENS_AN_ANSWER = 10.0, 0.1
_ATTEMPTS_WITHOUT_DEADLINE = 30  # about a minute


def backoff_s(failures: int) -> float:
    """The longest backoff after this number of failures in a row. It doubles with each failure, up to a limit."""
    return min(_FIRST_BACKOFF_S * 2.0 ** min(failures, _MOST_DOUBLINGS), _LONGEST_BACKOFF_S)


class Retry:
    """A client's retries.

    Asking a busy server again costs a token, and each answer gives a tenth of a token back. So the load of many callers
    on a server that refuses stays near the load without retries. A lost server costs no token, because its messages
    wait until this or another server is ready.
    """

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self._tokens = _TOKENS

    def take(self) -> bool:
        """Take a token. False if there is none."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def answered(self) -> None:
        """Note that a message was answered."""
        self._tokens = min(_TOKENS, self._tokens + _TOKENS_AN_ANSWER)

    def wait_s(self, error: CallError, attempts: int, remaining_s: float | None, room_in_s: float) -> float | None:
        """How long to wait before the next attempt. None: another attempt does not help, or would be too late.

        ``attempts``: how many attempts failed, the last one with ``error``. ``remaining_s``: seconds until the
        message's deadline; None: no deadline. ``room_in_s``: seconds until one of the servers has room, by the servers'
        own words.
        """
        if not self.is_on or (remaining_s is None and attempts > _ATTEMPTS_WITHOUT_DEADLINE):
            return None
        wait_s = random.uniform(0, backoff_s(attempts - 1))
        if isinstance(error, ServerOverloaded) and error.retry_after_s is not None:
            wait_s = wait_s + min(error.retry_after_s, room_in_s) if room_in_s else 0.0
        elif not isinstance(error, ServerUnavailable | AnswerTimeout):  # an AnswerTimeout may be due to another
            return None
        return wait_s if remaining_s is None or wait_s < remaining_s else None
