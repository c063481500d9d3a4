"""The port: how many connections it takes, and what its TLS is made of."""

import resource
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from authority import Authority, flags
from commandline import error_line
from conftest import server_process
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from facenet_proto.v1 import face_pb2 as pb
from facenet_proto.v1.face_pb2_grpc import FaceServiceStub
from facenet_server.config import Config
from facenet_server.errors import StartError
from facenet_server.rpc.listener import tls
from grpc_health.v1 import health_pb2, health_pb2_grpc

pytestmark = pytest.mark.timeout(60)


def connection(target: str) -> grpc.Channel:
    """A channel whose connection is its own."""
    return grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])


def detecting(channel: grpc.Channel, messages: Iterable[pb.DetectRequest]) -> Any:
    stub: Any = FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    return stub.Detect(messages)


def held() -> tuple[Iterator[pb.DetectRequest], "SimpleQueue[pb.DetectRequest | None]"]:
    """A stream's messages, as they are put."""
    queue: SimpleQueue[pb.DetectRequest | None] = SimpleQueue()
    return iter(queue.get, None), queue


def test_streams_of_a_connection_beyond_the_most_are_refused_until_another_one_has_none(tiny: Path) -> None:
    one = pb.DetectRequest(images=[pb.Image(encoded=b"no image")])
    with server_process("--models", str(tiny), "--max-connections", "2") as (target, _), ExitStack() as connections:
        first, second, third = (connections.enter_context(connection(target)) for _ in range(3))
        messages, queues = zip(*(held() for _ in range(2)), strict=True)
        streams = [detecting(each, sent) for each, sent in zip((first, second), messages, strict=True)]
        for stream, queue in zip(streams, queues, strict=True):
            queue.put(one)
            assert next(stream).results[0].error.reason == "UNSUPPORTED_FORMAT"
        with pytest.raises(grpc.RpcError) as refused:
            next(detecting(third, iter([one])))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers: Any = refused.value.trailing_metadata()
        health = health_pb2_grpc.HealthStub(third)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert next(detecting(second, iter([one]))).results  # a connection that counts already
        queues[0].put(None)
        assert not list(streams[0])
        time.sleep(int(dict(trailers)["grpc-retry-pushback-ms"]) / 1000)
        assert next(detecting(third, iter([one]))).results
        queues[1].put(None)


def test_connections_far_beyond_the_most_are_closed(tiny: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip(f"this system lets a process open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    with server_process("--models", str(tiny), "--max-connections", "2") as (target, _), ExitStack() as connections:
        host, _, port = target.rpartition(":")
        ends = [connections.enter_context(socket.create_connection((host, int(port)), 5)) for _ in range(2 + 2048 + 8)]
        greeted = [end for end in ends if _is_greeted(end)]
    assert len(greeted) == 2 + 2048


def test_health_on_its_own_port_needs_neither_tls_nor_a_token_and_serves_nothing_else(
    tiny: Path, tls_files: dict[str, str], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"somebody {'0' * 64}\n")
    settings = flags({**tls_files, "tokens": str(tokens), "health_listen": "127.0.0.1:0"})
    with server_process("--models", str(tiny), *settings) as (_, server):
        with grpc.insecure_channel(server.wait_for(r"health on (\S+)")[1]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(health_pb2.HealthCheckRequest(service="liveness"))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            service: Any = FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                service.GetServerInfo(pb.GetServerInfoRequest())
        server.process.terminate()
        assert server.process.wait(20) == 0


def test_a_health_port_that_is_taken_ends_the_start(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = error_line("--models", str(tiny), "--health-listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert "another program listens there" in line


def _is_greeted(end: socket.socket) -> bool:
    """Whether the server said something, HTTP/2's settings, or closed it at once."""
    try:
        return bool(end.recv(1))
    except ConnectionResetError:
        return False


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tls_key": "{other}"}, "is not the key of"),
        ({"tls_key": "{encrypted}"}, "is not the key of"),
        ({"tls_certificate": "{text}"}, "holds no certificates"),
        ({"tls_client_ca": "{text}"}, "holds no certificates"),
        ({"tls_client_ca": "nowhere.pem"}, "nowhere.pem: No such file"),
    ],
)
def test_certificates_that_are_none_are_told_by_their_file(
    tls_files: dict[str, str], authority: Authority, change: dict[str, str], told: str
) -> None:
    _, other = authority.certificate("other.example")
    (text := authority.folder / "text").write_text("no certificate\n")
    encrypted = authority.folder / "encrypted.key"
    encrypted.write_bytes(_encrypted(Path(tls_files["tls_key"]).read_bytes()))
    files = {name: value.format(other=other, text=text, encrypted=encrypted) for name, value in change.items()}
    settings: dict[str, Any] = {**tls_files, **files}
    with pytest.raises(StartError, match=told) as refused:
        tls(Config(**settings))
    assert all(value in str(refused.value) for value in files.values())


def _encrypted(key: bytes) -> bytes:
    loaded = serialization.load_pem_private_key(key, None)
    how = serialization.PrivateFormat.TraditionalOpenSSL, serialization.BestAvailableEncryption(b"a password")
    return loaded.private_bytes(serialization.Encoding.PEM, *how)


def test_certificates_that_only_others_take_are_not_told_as_a_port_that_is_taken(
    tiny: Path, tls_files: dict[str, str], authority: Authority
) -> None:
    (authority.folder / "lists.pem").write_bytes(_revocations())
    line = error_line(
        "--models", str(tiny), *flags({**tls_files, "tls_client_ca": str(authority.folder / "lists.pem")})
    )
    assert "gRPC cannot use" in line
    assert "lists.pem" in line


def _revocations() -> bytes:
    """A list of revoked certificates, which OpenSSL takes among authorities."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    made = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(now).next_update(now + timedelta(1))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tls_key": "server.key"}, "go together"),
        ({"tls_certificate": "server.pem"}, "go together"),
        ({"tls_client_ca": "ca.pem"}, "--tls-client-ca needs"),
        ({"tokens": "tokens", "listen": "0.0.0.0:50051"}, "tokens are secret"),
        ({"tokens": "tokens", "listen": "127.evil.example:50051"}, "tokens are secret"),
        ({"tokens": "tokens", "listen": "[::]:50051"}, "tokens are secret"),
    ],
)
def test_settings_that_would_let_in_more_than_they_say_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(StartError, match=told):
        Config(**given).with_streams_for(None).check()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:50051", "localhost:50051", "unix:/run/facenet/socket"])
def test_tokens_may_come_in_plain_text_from_this_machine(listen: str) -> None:
    Config(tokens="tokens", listen=listen).with_streams_for(None).check()


def test_a_key_without_its_certificate_is_one_line(tiny: Path) -> None:
    assert "go together" in error_line("--models", str(tiny), "--tls-key", "server.key")
