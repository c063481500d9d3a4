"""What can go wrong, for callers of the SDK.

::

    FaceNetError
    ├── ItemError            one item has no answer; it sits on that item's result, the others are answered
    │   ├── ImageError       no usable image: unreadable, no bytes, unknown format, damaged, too large
    │   ├── OptionError      an option is out of range, asks for too much, or names an unknown model
    │   ├── EmbeddingError   an embedding of another model, of a wrong size, or not of unit length
    │   ├── NoFaceError      a comparison needs a face, and the image has none
    │   ├── ServerItemError  the server failed on this item, or had no room for it
    │   └── ItemTimeout      the server had no answer within timeout_s (also a TimeoutError)
    └── CallError            the call as a whole failed; raised
        ├── ServerUnavailable    no connection, or the server is shutting down
        ├── AnswerTimeout        no answer within timeout_s (also a TimeoutError)
        ├── ServerOverloaded     the server has no room now
        ├── RequestRefused       the server does not accept the request
        │   └── AuthenticationError  no token or certificate, or none that the server knows
        └── ServerFault          the server failed, or broke the contract

    TemporaryError           also a base of ServerItemError, ItemTimeout, ServerUnavailable, AnswerTimeout and
                             ServerOverloaded: the same call may succeed later

``grpc.RpcError`` never reaches a caller. All errors of the SDK can be pickled and copied, notes included.
"""

from typing import Any


class FaceNetError(Exception):
    """Base of all errors that the SDK raises on purpose. The ``args`` of an error hold all its data, so that pickle and
    Celery's results can rebuild it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TemporaryError(FaceNetError):
    """The same call may succeed later, or on another server."""


class ItemError(FaceNetError):
    """One item has no answer. ``code`` is a google.rpc.Code number, ``reason`` a word in capitals."""

    def __init__(self, message: str, code: int, reason: str) -> None:
        super().__init__(message)  # one argument: TimeoutError would give three another meaning
        self.args = (message, code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.args[0]} [{self.reason}]"

    def to_dict(self) -> dict[str, Any]:
        """The error's code, reason and message, as a dictionary for JSON."""
        return {"code": self.code, "reason": self.reason, "message": self.args[0]}


class ImageError(ItemError):
    """No usable image: unreadable, no bytes, unknown format, damaged, too large, of a wrong size."""


class OptionError(ItemError):
    """An option is out of range, asks for too much work, or names an unknown model."""


class EmbeddingError(ItemError):
    """An embedding of another model, of a wrong size, or not of unit length."""


class NoFaceError(ItemError):
    """A comparison needs a face, and the image has none."""


class ServerItemError(ItemError, TemporaryError):
    """The server failed on this item, had no room for it, or lost its device. If it failed, the server's log tells more
    under the id in the message."""


class ItemTimeout(ItemError, TemporaryError, TimeoutError):
    """The server had no answer for this item within ``timeout_s``."""


class CallError(FaceNetError):
    """The call as a whole failed. Results that came before remain valid."""


class ServerUnavailable(CallError, TemporaryError):
    """No connection, or the server is shutting down: try again, here or elsewhere."""


class AnswerTimeout(CallError, TemporaryError, TimeoutError):
    """The server took longer than ``timeout_s`` over a message."""


class ServerOverloaded(CallError, TemporaryError):
    """The server has no room for the request now. ``retry_after_s`` says when it will have room; None: not known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class RequestRefused(CallError):
    """The server does not accept the request; sending it again changes nothing."""


class AuthenticationError(RequestRefused):
    """The server does not know the caller, or the token cannot be sent: mend ``credentials``."""


class ServerFault(CallError):
    """The server failed, or gave an answer that the contract does not allow."""
