"""Who callers are: the subject of their token or certificate, else the host that they call from."""

from __future__ import annotations  # grpcio's classes take their type arguments in its stubs only

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from facenet_server.errors import StartError

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_OPEN = "/grpc.health.v1.Health/"  # probes have no tokens
_TOKEN_LINE = re.compile(r"(?P<subject>\S+)\s+(?P<digest>[0-9a-f]{64})")
_UNKNOWN = "a token is needed that this server knows: authorization: Bearer TOKEN"


class Callers:
    """Who calls. ``tokens``: the subject of each token that is known, by the token's SHA-256 in hex; None where
    callers need none."""

    def __init__(self, tokens: Mapping[str, str] | None = None) -> None:
        self._tokens = tokens

    def name(self, context: Context) -> str:
        """The caller of a call: the same for all tokens of a subject, or else for all certificates of one, or else for
        all connections from a host."""
        of_token = self._subject(context.invocation_metadata() or ())
        return of_token or _subject_of_certificate(context) or host(context.peer())

    def knows(self, context: Context) -> bool:
        """Whether the caller of a call has shown who it is, where this server asks for that."""
        return self._tokens is None or bool(
            self._subject(context.invocation_metadata() or ()) or _subject_of_certificate(context)
        )

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """What keeps out those whose token is not known, if any is needed."""
        return [] if self._tokens is None else [_KnownOnly(self._subject)]

    def _subject(self, metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
        given = [str(value) for key, value in metadata if key == "authorization"]
        if self._tokens is None or len(given) != 1:
            return None
        scheme, _, token = given[0].partition(" ")
        # Looked up by its hash, a token's time tells nothing of those that are known.
        known = self._tokens.get(sha256(token.encode()).hexdigest())
        return known if token and scheme.lower() == "bearer" else None


class _KnownOnly(grpc.aio.ServerInterceptor):
    """Ends calls of unknown callers with UNAUTHENTICATED before anything of their messages is read."""

    def __init__(self, subject: Callable[[Any], str | None]) -> None:
        self._subject = subject

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """The method's own handler, or the one that refuses."""
        call = handler_call_details
        if call.method.startswith(_OPEN) or self._subject(call.invocation_metadata):
            return await continuation(call)
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(_: Any, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _UNKNOWN)


def read_tokens(file: Path) -> dict[str, str]:
    """The subject of each token, by the token's SHA-256 in hex, from lines ``SUBJECT SHA256``; empty lines and those
    that begin with # say nothing. A subject may have several tokens, so that one can follow another.

    Raises StartError.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise StartError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        found = _TOKEN_LINE.fullmatch(line)
        if found is None:  # what it says may be a token: it is not told
            raise StartError(f"{file}, line {number}: not SUBJECT and the token's SHA-256 in hex (see sha256sum)")
        if tokens.setdefault(found["digest"], found["subject"]) != found["subject"]:
            raise StartError(f"{file}, line {number}: another subject has this token")
    if not tokens:
        raise StartError(f"{file}: no tokens there; a line for each: SUBJECT and the token's SHA-256 in hex")
    return tokens


def host(peer: str) -> str:
    """A gRPC peer's ("ipv4:10.0.0.7:50312") host, or where that says nothing its connection."""
    address = peer.rpartition(":")[0]
    is_near = peer.startswith(("unix", "ipv4:127.", "ipv6:%5B::1%5D", "ipv6:[::1]"))
    return peer if is_near or not address else address


def _subject_of_certificate(context: Context) -> str | None:
    """Its alternative names, or where it has none its common name: what gRPC takes for a peer's identity."""
    names = sorted(context.peer_identities() or ())
    return b", ".join(names).decode("utf-8", "backslashreplace") or None
