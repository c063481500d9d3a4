"""What can go wrong on the way from a request to its answer, and at start.

::

    item ──converters──▶ options, image source ──decode──▶ pixels ──mtcnn──▶ faces ──facenet──▶ answer
           InvalidInput                         InvalidInput       InvalidInput    UnknownModel, NoFace,
                                                                                   UnknownOperatingPoint

    where a stream or a unary call opens: Refused
    anywhere on that way: TimedOut; where there is no room, in admission, for crops, memory or a network: Overloaded;
    in a network: DeviceLost

    models folder ──loader──▶ networks ──build──▶ a server ──server──▶ its end
                   StartError           StartError          FatalError

An ItemError spoils its own item and nothing else; ``rpc`` turns it into the wire's form. A Refused or
a ProtocolError ends its stream. A StartError or a FatalError ends the process with one line and exit code 1.
"""

OVERLOADED = "OVERLOADED"


class ItemError(Exception):
    """An item that has no answer. ``reason`` is for programs, the message for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidInput(ItemError):
    """The item or its options are not acceptable; sending it again changes nothing."""


def shown(name: str) -> str:
    """A caller's word as it may be told back: short, and without control characters."""
    return repr(name if len(name) <= 64 else f"{name[:64]}…")


class UnknownModel(ItemError):
    """No embedder of that name is served."""

    def __init__(self, name: str, served: list[str]) -> None:
        super().__init__("UNKNOWN_MODEL", f"no embedder {shown(name)} is served; there is {', '.join(served)}")


class UnknownOperatingPoint(ItemError):
    """The model's calibration has no operating point of that name."""

    def __init__(self, name: str, known: list[str]) -> None:
        there = f"there is {', '.join(known)}" if known else "the model is uncalibrated"
        super().__init__("UNKNOWN_OPERATING_POINT", f"no operating point {shown(name)}; {there}")


class NoFace(ItemError):
    """A comparison needs a face, and the image has none."""

    def __init__(self, side: str) -> None:
        super().__init__("NO_FACE", f"no face was found on side {side}")


class Refused(Exception):
    """There is no room for a stream or a unary call; there may be after ``retry_after_s``."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the server has no room now")
        self.retry_after_s = retry_after_s


class Overloaded(ItemError):
    """There is no room for the item now, for whatever reason; it is safe to send it again, later."""

    def __init__(self, message: str) -> None:
        super().__init__(OVERLOADED, message)


class InternalError(ItemError):
    """A fault of the server, told by an id that its log holds too, and by nothing else."""

    def __init__(self, error_id: str) -> None:
        super().__init__("INTERNAL", f"internal error {error_id}; the server's log tells more")


class TimedOut(ItemError):
    """The caller waits no longer."""

    def __init__(self) -> None:
        super().__init__("TIMED_OUT", "there was no answer within the request's timeout_ms")


class DeviceLost(ItemError):
    """The device that the networks run on failed for good; the server ends. Other servers may do the item."""

    def __init__(self) -> None:
        super().__init__("DEVICE_LOST", "the device failed, and this server ends: send it again, elsewhere")


class ProtocolError(Exception):
    """What arrived is no valid message of the contract: its stream cannot go on."""


class FatalError(Exception):
    """The server cannot go on; a new process may."""


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""
