"""Where a server listens: what ``--listen`` names, and what keeps a server from listening there."""

import errno
import os
import re
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from facenet_server.errors import StartError

_UNIX, _ABSTRACT = "unix", "unix-abstract"
_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^][]+)\]|(?P<host>[^][:/]+)):(?P<port>[0-9]{1,5})")
_MOST_PATH_BYTES = 107  # of sockaddr_un.sun_path, without the NUL at its end
_MOST_PORT, _FIRST_FREE_PORT = 65_535, 1024  # ports below need a privilege
_TAKEN = "another program listens there: stop it, or choose another address"
_IN_THE_WAY = (errno.EADDRINUSE, errno.EACCES)  # on one address of several: callers would meet another program there

Resolve = Callable[..., list[Any]]


@dataclass(frozen=True, slots=True)
class HostPort:
    """A TCP address. ``host``: a name, or an IP address without brackets. Port 0: any that is free."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A Unix socket. ``name``: the whole path of its file, or NUL and its name in Linux's abstract namespace."""

    name: bytes

    @property
    def is_abstract(self) -> bool:
        """Whether the socket has no file."""
        return self.name.startswith(b"\0")

    @property
    def path(self) -> Path:
        """The socket's file."""
        return Path(os.fsdecode(self.name))


Address = HostPort | UnixSocket


def parse(listen: str) -> Address:
    """The address that the text names: ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:PATH`` or ``unix-abstract:NAME``. As in
    gRPC's own names of sockets, ``%`` and two hex digits stand for a byte.

    Raises StartError where the text has none of these forms.
    """
    scheme, _, rest = listen.partition(":")
    if scheme in (_UNIX, _ABSTRACT):
        name = unquote_to_bytes(os.fsencode(rest))
        is_remote = rest.startswith("//") and not rest.startswith("///")  # a URI with a host
        if name and b"\0" not in name and not is_remote:
            return UnixSocket(os.path.abspath(name) if scheme == _UNIX else b"\0" + name)
    elif (found := _HOST_PORT.fullmatch(listen)) and int(found["port"]) <= _MOST_PORT:
        return HostPort(found["ipv6"] or found["host"], int(found["port"]))
    raise StartError(
        f"--listen takes HOST:PORT, with a port up to {_MOST_PORT} and IPv6 addresses in brackets ([::1]:50051), or "
        f"unix:PATH, not {listen!r}"
    )


def is_near(address: Address) -> bool:
    """Whether only this machine's programs can call."""
    if isinstance(address, UnixSocket):
        return True
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"


def target(listen: str, port: int | None = None) -> str:
    """The address as gRPC's servers and clients take it: with the port that was bound, or the path of a socket's file
    in full. It has no spaces. Raises StartError."""
    address = parse(listen)
    if isinstance(address, UnixSocket):
        name = address.name.removeprefix(b"\0")
        return f"{_ABSTRACT if address.is_abstract else _UNIX}:{quote(name)}"
    return f"{listen.rpartition(':')[0]}:{address.port if port is None else port}"


def check(listen: str, resolve: Resolve = socket.getaddrinfo) -> None:
    """Raises StartError, with the cause and what to do, where a server cannot listen there now. Nothing listens
    meanwhile. The file of a Unix socket on which nobody listens is removed.

    ``resolve`` looks up a host as ``socket.getaddrinfo`` does; a name server's answer may take seconds.
    """
    address = parse(listen)
    try:
        cause = _socket_cause(address) if isinstance(address, UnixSocket) else _host_cause(address, resolve)
    except OSError as error:
        cause = told(error, address)
    if cause:
        raise StartError(f"cannot listen on {listen}: {cause} (--listen)")


def told(error: OSError, address: Address) -> str:
    """What the system's error means for whoever wants to listen on the address, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return _TAKEN
    if isinstance(error, PermissionError):
        return _permission(address)
    if error.errno == errno.EADDRNOTAVAIL:
        return "the address is none of this machine's: choose one that is, or [::] for all of them"
    if error.errno == errno.EAFNOSUPPORT:
        return "this machine has no addresses of this kind: choose another kind"
    return f"{error.strerror or error}"


def _permission(address: Address) -> str:
    if isinstance(address, UnixSocket):
        return f"this user may not make a socket in {address.path.parent}: let it write there, or choose another folder"
    if address.port < _FIRST_FREE_PORT:
        return (
            f"this user may not take a port below {_FIRST_FREE_PORT}: choose a higher one, or grant the capability "
            "CAP_NET_BIND_SERVICE"
        )
    return "this user may not take the port: choose another one"


def _host_cause(address: HostPort, resolve: Resolve) -> str | None:
    try:
        found = resolve(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"the host name {address.host} does not resolve ({reason}): correct it, or give an IP address"
    places = [(family, place) for family, _, _, _, place in found]
    if address.host == "::":  # where there is no IPv6, gRPC takes this for all addresses of IPv4
        places.append((socket.AF_INET, ("0.0.0.0", address.port)))
    errors = [_bind_error(family, place) for family, place in places]
    failed = [error for error in errors if error]
    if len(failed) < len(errors):  # gRPC listens on those of a name's addresses that this machine has
        failed = [error for error in failed if error.errno in _IN_THE_WAY]
    return told(failed[0], address) if failed else None


def _socket_cause(address: UnixSocket) -> str | None:
    if not hasattr(socket, "AF_UNIX"):
        return "this system has no Unix sockets: choose HOST:PORT"
    size = len(address.name.removeprefix(b"\0"))
    if size > _MOST_PATH_BYTES:
        return f"the socket's path has {size} bytes, more than {_MOST_PATH_BYTES}: choose a shorter one"
    if address.is_abstract:
        error = _bind_error(socket.AF_UNIX, address.name)
        return told(error, address) if error else None
    return _file_cause(address)


def _file_cause(address: UnixSocket) -> str | None:
    """Raises OSError."""
    path = address.path
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}: make it, or choose another one"
    if os.path.lexists(path):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return f"{path} is there and no socket: remove it, or choose another path"
        if _is_answered(path):
            return _TAKEN
        path.unlink(missing_ok=True)  # of a server that was killed
    error = _bind_error(socket.AF_UNIX, address.name)
    if error:
        return told(error, address)
    path.unlink(missing_ok=True)
    return None


def _is_answered(path: Path) -> bool:
    """Whether a program listens on the socket. Raises OSError where that cannot be found out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        code = caller.connect_ex(os.fsencode(path))
    if code in (0, errno.EAGAIN):  # EAGAIN: so many wait already that it would have to wait
        return True
    if code == errno.ECONNREFUSED:
        return False
    raise OSError(code, os.strerror(code))


def _bind_error(family: int, place: Any) -> OSError | None:
    """What the system says when a socket is bound there as gRPC binds it: connections that have ended are not in the
    way (SO_REUSEADDR), and an IPv6 socket may serve IPv4, too."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if family != getattr(socket, "AF_UNIX", None) and os.name == "posix":  # on Windows it would share the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(place)
    except OSError as error:
        return error
    return None
