"""Addresses of servers: gRPC targets, and the proxies that the environment sets for them."""

import os
import re
from collections.abc import Sequence

from facenet_client._images import shown

_LISTS = ("ipv4:", "ipv6:")  # schemes whose targets may contain commas
_LOCAL = re.compile(
    r"(dns:///?|ipv4:|ipv6:)?(localhost|127(\.\d+){3}|\[::1\]|%5B::1%5D)(:|$)|unix(-abstract)?:", re.IGNORECASE
)
_SCHEME = re.compile(r"(dns:(//[^/]*/)?|ipv4:|ipv6:)", re.IGNORECASE)
_OTHER = re.compile(r"(unix|unix-abstract|vsock|xds|passthrough):|ipv[46]:.*,", re.IGNORECASE)  # left to gRPC to check
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")  # the first that is set counts; gRPC ignores names in capitals
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # the first that is set counts, for gRPC


def addresses(target: str | Sequence[str]) -> tuple[str, ...]:
    """The gRPC targets of ``target``: a list of texts, or one text with targets separated by commas. Raises ValueError
    if there is no target, and TypeError if something is no text."""
    given = [target] if isinstance(target, str) else target
    if isinstance(given, bytes) or not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise TypeError(f'a target is a text as "127.0.0.1:50051", or a list of them, not {shown(repr(target))}')
    several = [part for text in given for part in ([text] if text.startswith(_LISTS) else text.split(","))]
    found = tuple(part.strip() for part in several)
    if not found or not all(found):
        raise ValueError(f"{shown(repr(target))} names no server, or an empty one")
    for address in found:
        _check_port(address)
    return found


def _check_port(address: str) -> None:
    """Raises ValueError if a host has no port, or no valid port: gRPC would use its default port, on which no FaceNet
    server listens."""
    if "://" in address and not address.startswith(("dns:", "xds:", "unix:")):
        raise ValueError(f"{shown(repr(address))} is a URL: a target is HOST:PORT")
    if _OTHER.match(address):
        return
    host, _, port = _SCHEME.sub("", address).rpartition(":")
    if host and (":" not in host or host.startswith("[")) and port.isdecimal() and 1 <= int(port) <= 65_535:
        return
    if address.count(":") > 1 and "[" not in address and not _SCHEME.match(address):
        raise ValueError(f"{shown(repr(address))} has no port: an IPv6 address goes in brackets, as [::1]:50051")
    raise ValueError(f"{shown(repr(address))} has no port from 1 to 65535: a target is HOST:PORT, as 127.0.0.1:50051")


def is_local(address: str) -> bool:
    """Whether the address is on this machine's loopback interface, or a Unix socket."""
    return _LOCAL.match(address) is not None


def proxy_note(address: str) -> str:
    """A note for an error message: which variable sends connections to this address through a proxy. Empty if none
    does."""
    name = next((name for name in _PROXIES if os.environ.get(name)), None)
    host = _SCHEME.sub("", address).rpartition(":")[0]
    without = next((os.environ[each] for each in _EXCEPTIONS if os.environ.get(each)), "")
    if (
        name is None
        or is_local(address)
        or any(host.endswith(each.strip()) for each in without.split(",") if each.strip())
    ):
        return ""
    return f", asked for through the proxy of {name}: set no_proxy={host} where it needs none"
