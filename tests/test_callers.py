"""Who callers are, and who is kept out: tokens and certificates, over TLS on real sockets."""

from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from authority import Authority, flags, read
from calls import ask, crops, stream, until
from commandline import facenet
from conftest import Call, server_process
from facenet_client import AsyncClient, AuthenticationError, ServerUnavailable
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.errors import StartError
from facenet_server.rpc.auth import read_tokens
from facenet_server.rpc.service import SERVICE, FaceService
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nets import fake_service, square

MESSAGES = {  # of one item, to the methods that take any
    "Detect": pb.DetectRequest(images=[pb.Image()]),
    "Embed": pb.EmbedRequest(items=[pb.EmbedItem()]),
    "Compare": pb.CompareRequest(pairs=[pb.Pair()]),
    "GetServerInfo": pb.GetServerInfoRequest(),
    "GetServerStats": pb.GetServerStatsRequest(),
}
A_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]  # of its own
BAD_TOKENS = {"no token": None, "an unknown one": "s3cret-", "half of one": "s3c", "none at all": ""}


def tokens_file(folder: Path, subjects: Mapping[str, str]) -> str:
    lines = (f"{subject} {sha256(token.encode()).hexdigest()}\n" for token, subject in subjects.items())
    (folder / "tokens").write_text("# who may call\n\n" + "".join(lines))
    return str(folder / "tokens")


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    return tokens_file(tmp_path, {"s3cret": "ada", "s3cret-too": "ada", "0ther": "bob", "": "nobody"})


def embedding(target: str, credentials: grpc.ChannelCredentials, metadata: Any = None) -> Any:
    return stream(target, "Embed", pb.EmbedResponse, credentials, metadata)


def metadata(token: str | None) -> Any:
    return None if token is None else (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
@pytest.mark.parametrize("method", MESSAGES)
async def test_who_has_no_token_is_told_so_before_anything_is_read_of_its_call(
    tls_files: dict[str, str], tokens: str, authority: Authority, method: str, token: str | None
) -> None:
    async def code(token: str | None) -> grpc.StatusCode:
        async with grpc.aio.secure_channel(target, authority.trusted()) as channel:
            question: Any = channel.unary_stream(f"/{SERVICE}/{method}")
            call = question(MESSAGES[method].SerializeToString(), metadata=metadata(token))
            with suppress(grpc.aio.AioRpcError):
                assert len([answer async for answer in call]) == 1
            return await call.code()  # type: ignore[no-any-return]

    async with fake_service(tokens=tokens, **tls_files) as (target, service):
        assert await code(token) == grpc.StatusCode.UNAUTHENTICATED
        assert service.admission.counts.accepted_items == 0
        assert await code("s3cret") == grpc.StatusCode.OK
        assert service.admission.counts.accepted_items == (not method.startswith("Get"))


async def test_a_token_counts_as_such_only_by_its_scheme(
    tls_files: dict[str, str], tokens: str, authority: Authority
) -> None:
    async with fake_service(tokens=tokens, **tls_files) as (target, _):
        for value, code in {
            "Bearer s3cret": grpc.StatusCode.OK,
            "bearer s3cret": grpc.StatusCode.OK,  # RFC 9110: whatever its case
            "Basic s3cret": grpc.StatusCode.UNAUTHENTICATED,
            "s3cret": grpc.StatusCode.UNAUTHENTICATED,
            "Bearer ": grpc.StatusCode.UNAUTHENTICATED,
        }.items():
            async with embedding(target, authority.trusted(), metadata=(("authorization", value),)) as call:
                await call.done_writing()
                assert (value, await call.code()) == (value, code)
        both = (*metadata("s3cret"), *metadata("0ther"))
        async with embedding(target, authority.trusted(), metadata=both) as call:
            assert await call.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_the_sdk_gets_in_with_its_token_over_tls(
    call: Call, tls_files: dict[str, str], tokens: str, authority: Authority
) -> None:
    async with fake_service(tokens=tokens, **tls_files) as (target, _):
        (found,) = await call(target, "detect", [square()], credentials=authority.trusted(token="s3cret"))
        assert len(found.faces) == 1


@pytest.mark.parametrize("token", ["wrong", "", "s3cret\n", "s3cr\u00e9t", "s3\x00cret"])
async def test_a_token_that_is_of_no_use_is_the_callers_mistake_and_told_at_once(
    call: Call, token: str, tls_files: dict[str, str], tokens: str, authority: Authority
) -> None:
    async with fake_service(tokens=tokens, **tls_files) as (target, _):
        with pytest.raises(AuthenticationError, match="token") as told:
            await call(target, "detect", [square()], credentials=authority.trusted(token=token), timeout_s=20)
    assert "s3" not in str(told.value)


async def test_the_sdk_says_why_it_does_not_trust_a_server(
    call: Call, tls_files: dict[str, str], tmp_path: Path
) -> None:
    stranger = Authority(trustme.CA(), tmp_path)
    async with fake_service(**tls_files) as (target, _):
        with pytest.raises(ServerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await call(target, "server_info", credentials=stranger.trusted(), timeout_s=1)


async def third_stream_of(
    served: tuple[str, FaceService], first: grpc.ChannelCredentials, second: grpc.ChannelCredentials
) -> Any:
    """How a stream fares beside two of ``first``, over connections of their own, where a caller may have two.
    No stream is left on the server afterwards."""
    target, service = served
    async with embedding(target, first) as one, embedding(target, first) as two:
        for each in (one, two):
            assert (await ask(each, crops(square()))).results
        async with embedding(target, second) as three:
            await three.done_writing()
            code = await three.code()
    await until(lambda: service.admission.counts.streams == 0)
    return code


async def test_a_tokens_subject_is_one_caller_whatever_its_connections_and_tokens(
    tls_files: dict[str, str], tokens: str, authority: Authority
) -> None:
    ada, ada_too, bob = (authority.trusted(token=token) for token in ("s3cret", "s3cret-too", "0ther"))
    async with fake_service(tokens=tokens, max_streams=4, **tls_files) as served:
        assert await third_stream_of(served, ada, ada) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await third_stream_of(served, ada, ada_too) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await third_stream_of(served, ada, bob) == grpc.StatusCode.OK


async def test_without_tokens_near_connections_are_callers_each(
    tls_files: dict[str, str], authority: Authority
) -> None:
    anybody = authority.trusted()
    async with fake_service(max_streams=4, **tls_files) as served:
        assert await third_stream_of(served, anybody, anybody) == grpc.StatusCode.OK


async def test_a_certificates_subject_is_one_caller_whatever_its_connections_and_certificates(
    tls_files: dict[str, str], authority: Authority
) -> None:
    ada, renewed = (authority.trusted("ada.example") for _ in range(2))
    bob = authority.trusted("bob.example")
    async with fake_service(tls_client_ca=authority.file(), max_streams=4, **tls_files) as served:
        assert await third_stream_of(served, ada, ada) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await third_stream_of(served, ada, renewed) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await third_stream_of(served, ada, bob) == grpc.StatusCode.OK


async def test_with_certificates_and_tokens_it_is_the_tokens_subject_that_counts(
    tls_files: dict[str, str], tokens: str, authority: Authority
) -> None:
    ada = authority.trusted("host-1.example", token="s3cret")
    elsewhere, bob = (
        authority.trusted(f"host-{number}.example", token=t) for number, t in ((2, "s3cret"), (1, "0ther"))
    )
    both = {"tls_client_ca": authority.file(), "tokens": tokens}
    async with fake_service(max_streams=4, **tls_files, **both) as served:
        assert await third_stream_of(served, ada, elsewhere) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await third_stream_of(served, ada, bob) == grpc.StatusCode.OK


async def test_who_has_no_certificate_of_the_authorities_is_kept_out(
    tls_files: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    (folder := tmp_path / "stranger").mkdir()
    stranger = Authority(trustme.CA(), folder)
    chain, key = map(read, stranger.certificate("ada.example"))
    forged = grpc.ssl_channel_credentials(authority.ca.cert_pem.bytes(), key, chain)
    async with fake_service(tls_client_ca=authority.file(), **tls_files) as (target, _):
        for credentials in (authority.trusted(), forged):
            with pytest.raises(ServerUnavailable):
                async with AsyncClient(target, timeout_s=1, credentials=credentials) as client:
                    await client.server_info()
        async with AsyncClient(target, credentials=authority.trusted("ada.example")) as client:
            assert (await client.server_info()).models


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no tokens"),
        ("# nobody yet\n", "no tokens"),
        ("ada s3cret\n", "line 1: not SUBJECT"),
        (f"ada {'0' * 64}\nada\n", "line 2: not SUBJECT"),
        (f"ada {'0' * 64}\nbob {'0' * 64}\n", "line 2: another subject"),
        (b"\xff\xfe", "utf-8"),
        (None, "No such file"),
    ],
)
def test_tokens_that_cannot_be_read_are_refused_by_line_and_not_told(
    tmp_path: Path, text: str | bytes | None, told: str
) -> None:
    file = tmp_path / "tokens"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StartError, match=told) as refused:
        read_tokens(file)
    assert str(file) in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_server_of_known_callers_tells_anybody_its_health_and_the_command_line_what_it_runs(
    tiny: Path, tls_files: dict[str, str], tokens: str, authority: Authority
) -> None:
    open_to_tools = [*flags({**tls_files, "tokens": tokens}), "--reflection"]
    with server_process("--models", str(tiny), *open_to_tools) as (target, server):
        with grpc.secure_channel(target, authority.trusted()) as channel:
            reflection: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            assert reflection(iter(())).code() is grpc.StatusCode.UNAUTHENTICATED
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        let_in = facenet(target, "--ca", authority.file(), "--token", "s3cret", "info", "--json")
        assert let_in.returncode == 0, let_in.stderr
        for arguments, told in {
            ("--ca", authority.file()): "UNAUTHENTICATED",
            ("--token", "s3cret"): "a token goes over TLS only",
            ("--tls", "--token", "s3cret"): "CERTIFICATE_VERIFY_FAILED",
            ("--certificate", authority.file()): "--certificate and --key go together",
        }.items():
            kept_out = facenet(target, *arguments, "--timeout-s", 1, "info")
            assert (kept_out.returncode != 0, told in kept_out.stderr) == (True, True), kept_out.stderr
        assert "s3cret" not in server.log()
