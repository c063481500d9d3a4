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

from typing import NamedTuple

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


class Reason(NamedTuple):
    """What a reason of an ItemError means, and what the operator does."""

    kind: type[ItemError]
    text: str
    operator: str = ""


REASONS: dict[str, Reason] = {
    "EMPTY": Reason(InvalidInput, "The item holds no image, or one without bytes or pixels; or a side holds nothing."),
    "UNSUPPORTED_FORMAT": Reason(
        InvalidInput,
        "The bytes are no image, or an image of a format or variant that the server does not read.",
        "Adds formats with --image-formats.",
    ),
    "TRUNCATED": Reason(InvalidInput, "The file ends before its image does."),
    "CORRUPT": Reason(InvalidInput, "The header contradicts itself, or the pixels cannot be unpacked."),
    "DAMAGED": Reason(InvalidInput, "Pixels may be damaged, and refuse_damaged is set."),
    "IMAGE_TOO_LARGE": Reason(
        InvalidInput,
        "The bytes, the pixels, a side or the ratio of the sides are beyond a limit.",
        "Raises --max-image-megapixels or --max-message-mib.",
    ),
    "TOO_COMPLEX": Reason(InvalidInput, "The header has too many parts, or the JPEG too many scans."),
    "WRONG_SIZE": Reason(InvalidInput, "A ready crop is not 160×160 px, or a raw image's bytes do not fit its size."),
    "OPTION_OUT_OF_RANGE": Reason(
        InvalidInput, "An option of the message is outside its range; all its items get this."
    ),
    "TOO_MUCH_WORK": Reason(
        InvalidInput,
        "The pyramid or the windows are beyond a limit: give a larger min_face_px.",
        "Raises --max-pyramid-megapixels.",
    ),
    "RESPONSE_TOO_LARGE": Reason(
        InvalidInput,
        "The message's crops are beyond a limit: fewer faces or images, smaller crops.",
    ),
    "MODEL_MISMATCH": Reason(
        InvalidInput, "The embedding's model is neither the comparison's model nor interchangeable with it."
    ),
    "BAD_EMBEDDING": Reason(InvalidInput, "The embedding has a wrong dimension, or an L2 norm that is not 1."),
    "UNKNOWN_MODEL": Reason(
        UnknownModel,
        "No embedder of that name is served; GetServerInfo has the names.",
        "Adds the model in a new folder.",
    ),
    "UNKNOWN_OPERATING_POINT": Reason(UnknownOperatingPoint, "The model's calibration has no point of that name."),
    "NO_FACE": Reason(NoFace, "A comparison needs a face, and a side's image has none."),
    OVERLOADED: Reason(
        Overloaded,
        "There is no room for the item now. Come back after the response's retry_after_ms.",
        "Looks up the text of the message in operations.md.",
    ),
    "TIMED_OUT": Reason(
        TimedOut,
        "There was no answer within the request's timeout_ms, or the stream's deadline.",
        "Adds cores or servers if it happens often.",
    ),
    "DEVICE_LOST": Reason(
        DeviceLost,
        "The device of the networks failed for good, and the server ends. Send it elsewhere; the SDK sends the whole "
        "message again by itself.",
        "Looks at nvidia-smi; the supervisor starts the process again.",
    ),
    "INTERNAL": Reason(
        InternalError,
        "A fault of the server; or each worker that had this item crashed, was killed or took too long, and its bytes "
        "are refused for ten minutes. In either case do not send it again in that time. The message has an error id.",
        "Looks for the error id in the log.",
    ),
}
"""Each reason of an ItemError: its kind, what it means, and what the operator does. docs/reference.md shows them."""

STATUSES: tuple[tuple[str, str, str, str], ...] = (
    (
        "RESOURCE_EXHAUSTED",
        "There is no room for the stream or unary call. The trailer grpc-retry-pushback-ms says when to come back.",
        "Comes back after the time that the trailer gives, or goes to another server.",
        "Finds the limit in operations.md.",
    ),
    (
        "RESOURCE_EXHAUSTED",
        "A message is over --max-message-mib, or gRPC takes no more calls. There is no trailer.",
        "Sends smaller messages; backs off.",
        "Raises --max-message-mib, or --max-streams and --max-connections.",
    ),
    (
        "UNAVAILABLE",
        "The server drains: it answers what it accepted, for at most --grace-s. The rest is cut off.",
        "Sends again, elsewhere, what has no answer.",
        "Nothing: a drain ends by itself.",
    ),
    (
        "UNAVAILABLE",
        "There is no connection, or no TLS handshake. This status is gRPC's own.",
        "Waits, and sends again, elsewhere.",
        "Checks that the server runs, its address, the network, and the certificate's names and dates.",
    ),
    (
        "CANCELLED",
        "Answers lay unread for --max-write-stall-s, or the call met the server's stop.",
        "Reads its answers; sends again.",
        "Nothing.",
    ),
    (
        "DEADLINE_EXCEEDED",
        "The call's deadline passed.",
        "Gives more time.",
        "Adds cores or servers if it happens often.",
    ),
    (
        "DEADLINE_EXCEEDED",
        "A stream's first message did not come within 10 s, or a unary call's within 1 s.",
        "Sends as soon as it has opened a call.",
        "Nothing; if many callers see it, checks the network.",
    ),
    (
        "INVALID_ARGUMENT",
        "The bytes are no message of the contract, the message has too many items, or a unary one has over 4 KiB.",
        "Mends its code.",
        "Compares the versions; raises --max-items-per-message.",
    ),
    ("NOT_FOUND", "Health is asked for a service that is not here.", "Mends its code.", "Corrects the probe."),
    ("UNIMPLEMENTED", "There is no such service or method.", "Mends its code.", "Compares the versions."),
    (
        "UNAUTHENTICATED",
        "The call has no token that the server knows, or two tokens.",
        "Mends its token.",
        "Adds the token to the file and restarts the server: it reads tokens at its start.",
    ),
    (
        "INTERNAL",
        "A fault of the server that ended a whole call: `internal error ID`. The log has this error id.",
        "Sends again, once at most, what has no answer.",
        "Looks for the error id in the log.",
    ),
    (
        "INTERNAL",
        "gRPC's `Internal error from Core`: a refusal overtook the caller's writing. It has no error id.",
        "Takes it as a refusal, as the SDK does.",
        "As for RESOURCE_EXHAUSTED.",
    ),
)
"""What calls end with, when, and what the caller and the operator do. docs/reference.md shows them."""
