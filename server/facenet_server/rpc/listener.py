"""The port that the server listens on: its connections' options, and its TLS."""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from facenet_server import addresses
from facenet_server.config import MIB, Config
from facenet_server.errors import StartError
from facenet_server.rpc.auth import Callers
from facenet_server.rpc.health import Health
from facenet_server.rpc.service import SERVICE, FaceService
from facenet_server.rpc.unary import UnaryCalls
from facenet_server.telemetry.process_memory import open_files

_CALLS_BESIDE = 256  # streams of work: what is asked (128 beside one a connection), refusals on their way
_CONNECTIONS_BESIDE = 2048  # idle ones (18 kB each, 49 with TLS), of health's callers, and those that are refused
_FILES_BESIDE = 512  # that a process may have open beside its connections: models, the health port
_IDLE_MS = 10_000  # a connection without a call is closed: a flood of them is gone soon, and callers connect anew
_PROBES = 128  # calls of the health port at once
_UNREAD_BYTES = 128 * 1024  # of a stream that is not read

ChannelOptions = list[tuple[str, int]]
GrpcServer = grpc.aio.Server

_log = logging.getLogger(__name__)


def bind(
    service: FaceService,
    status: Health,
    config: Config,
    credentials: grpc.ServerCredentials | None,
    options: Callable[[Config], ChannelOptions] | None = None,
) -> tuple[grpc.aio.Server, int]:
    """A gRPC server of the service and of the health on ``config.listen``, not started yet, and its port.

    Raises StartError, with the cause, where it cannot listen there, or gRPC can make nothing of the credentials.
    """
    calls = config.max_streams + config.max_connections + _CALLS_BESIDE  # a connection may watch the health
    server = grpc.aio.server(
        options=(options or channel_options)(config),
        maximum_concurrent_rpcs=calls,
        interceptors=service.callers.interceptors(),
    )
    server.add_generic_rpc_handlers((service.handlers(), status.handlers(service.unary_calls)))
    if config.reflection:
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    addresses.check(config.listen)  # gRPC itself would take a Unix socket away from the server that listens on it
    try:
        port = _add_port(server, addresses.target(config.listen), credentials)
    except RuntimeError as error:
        if credentials is not None:
            _check_by_grpc(credentials, config)
        raise StartError(
            f"cannot listen on {config.listen}: gRPC cannot bind it, as its own line says; where that is a host name, "
            "give an IP address instead (--listen)"
        ) from error
    if open_files() < config.max_connections + _FILES_BESIDE:
        _log.warning("this process may open %d files: fewer connections than --max-connections", open_files())
    if credentials is None and not config.is_near:
        _log.warning("%s is open to others in plain text: --tls-certificate, --tls-key", config.listen)
    return server, port


def bind_health(status: Health, listen: str) -> tuple[grpc.aio.Server, int]:
    """A gRPC server of the health alone, in plain text, not started yet, and its port. Raises StartError where it
    cannot listen there."""
    server = grpc.aio.server(options=_options(2 * _PROBES), maximum_concurrent_rpcs=2 * _PROBES)
    server.add_generic_rpc_handlers((status.handlers(UnaryCalls(Callers(), _PROBES)),))
    addresses.check(listen)
    try:
        return server, server.add_insecure_port(addresses.target(listen))
    except RuntimeError as error:
        raise StartError(f"cannot listen on {listen}, as gRPC's own line says (--health-listen)") from error


def _add_port(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> int:
    if credentials is None:
        return server.add_insecure_port(listen)
    return server.add_secure_port(listen, credentials)


def _check_by_grpc(credentials: grpc.ServerCredentials, config: Config) -> None:
    """Raises StartError where no port could be had with the credentials: gRPC tells that as it tells one that is
    taken."""
    try:
        grpc.aio.server().add_secure_port("127.0.0.1:0", credentials)
    except RuntimeError as error:
        files = [file for file in (config.tls_certificate, config.tls_key, config.tls_client_ca) if file]
        raise StartError(
            f"gRPC cannot use {', '.join(files)}: a key of RSA, P-256 or P-384 is what it takes"
        ) from error


def tls(config: Config) -> grpc.ServerCredentials | None:
    """The credentials that TLS needs, read from their files; None without it. Raises StartError, which names the
    file."""
    if not config.tls_certificate:
        return None
    chain, key = _pem(config.tls_certificate), _pem(config.tls_key)
    authorities = _pem(config.tls_client_ca) if config.tls_client_ca else None
    for file in filter(None, (config.tls_certificate, config.tls_client_ca)):
        _check_certificates(file)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls_certificate, config.tls_key, password="")  # or it would ask for one
    except (ssl.SSLError, ValueError) as error:
        named = f"{config.tls_key} is not the key of {config.tls_certificate}"
        raise StartError(f"{named}, in PEM and unencrypted: {error}") from error
    return grpc.ssl_server_credentials([(key, chain)], authorities, authorities is not None)


def _check_certificates(file: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
    except ssl.SSLError as error:
        raise StartError(f"{file} holds no certificates in PEM: {error}") from error


def _pem(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from error


def channel_options(config: Config) -> ChannelOptions:
    """gRPC's options for a server's connections."""
    return [
        ("grpc.max_receive_message_length", config.max_message_mib * MIB),
        ("grpc.max_send_message_length", -1),  # answers are bounded by their requests and max_crop_mib
        ("grpc.max_concurrent_streams", config.max_streams_per_connection),
        *_options(min(config.max_connections + _CONNECTIONS_BESIDE, max(1, open_files() - _FILES_BESIDE))),
    ]


def _options(max_connections: int) -> ChannelOptions:
    """gRPC's options for any port."""
    return [
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", 5_000),  # who connects and says nothing is sent away
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.enable_channelz", 0),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent sharer
        # Bounded flow control: with bandwidth probing on, one unread stream can hold tens of megabytes. So it holds
        # _UNREAD_BYTES, and 1 MiB more where a larger message is read (C-core's kMaxWindowDelta).
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
        # Dead peers are noticed, and callers may probe as often.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
