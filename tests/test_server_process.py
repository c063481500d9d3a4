"""The server as a process: how it starts, refuses to start, and ends."""

import asyncio
import io
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from commandline import error_line
from conftest import ServerProcess, server_process
from facenet_client import AsyncClient, Client, ServerUnavailable
from facenet_proto.v1 import face_pb2 as pb
from facenet_server.models.contract import PORTS
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image
from tiny_facenet import calibration
from tiny_models import tiny_model, write

pytestmark = pytest.mark.timeout(60)

READS_ALL = getattr(os, "geteuid", lambda: 0)() == 0
NOT_BY_ALL = pytest.mark.skipif(READS_ALL, reason="this user may read everything")
HAS_GPU = Path("/dev/nvidiactl").exists() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param("manifest.json", lambda file: shutil.rmtree(file.parent), id="no folder"),
        pytest.param("manifest.json", Path.unlink, id="no manifest"),
        pytest.param("manifest.json", lambda file: file.write_bytes(bytes(range(256))), id="garbage manifest"),
        pytest.param("rnet.onnx", Path.unlink, id="no file"),
        pytest.param("rnet.onnx", lambda file: os.truncate(file, 0), id="empty"),
        pytest.param("rnet.onnx", lambda file: os.truncate(file, file.stat().st_size - 1), id="truncated"),
        pytest.param("rnet.onnx", lambda file: file.write_bytes(tiny_model("onet")), id="another hash"),
        pytest.param("rnet.onnx", replace_by_folder, id="folder"),
        pytest.param("rnet.onnx", lambda file: file.chmod(0), id="unreadable", marks=NOT_BY_ALL),
    ],
)
def test_models_that_are_not_whole_are_one_line_that_names_the_file_and_says_how_to_make_it(
    tiny: Path, file: str, damage: Callable[[Path], object]
) -> None:
    damage(tiny / file)
    told = error_line("--models", str(tiny))
    assert str(tiny / file) in told
    assert "`facenet-convert all" in told


def test_a_second_server_on_the_port_is_refused(tiny: Path) -> None:
    with server_process("--models", str(tiny)) as (target, _):
        assert target in error_line("--models", str(tiny), "--listen", target)


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_cuda_is_refused_where_it_cannot_be_had(tiny: Path) -> None:
    assert "device cuda cannot be had: " in error_line("--models", str(tiny), "--device", "cuda")


@pytest.mark.parametrize(
    ("flag", "value", "instead"),
    [
        ("--image-formats", "JPEG,PSD", "known are JPEG, PNG"),
        ("--listen", "nowhere", "takes HOST:PORT"),
        ("--max-batch-rows", "0", "must be 1 to 2,048, not 0"),
        ("--default-embedder", "x", "there is tiny"),
        ("--device", "tpu", "'auto', 'cuda', 'cpu'"),
        ("--threads", "-1", "must be 0 to 1,024"),
        ("--max-streams", "many", "integer"),
        ("--max-message-mib", "2048", "must be 1 to 2,047 MiB"),
        ("--listen", "127.0.0.1:99999", "port up to 65535"),
        ("--grace-s", "nan", "must be 0 to 86,400 s"),
        ("--stall-s", "0", "must be 0.01 to 86,400 s"),
        ("--workers", "many", "must be auto, or 0 to 1,024"),
        ("--models-folder", "models", "'--models'"),
    ],
    ids=lambda text: text,
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_line_that_says_what_would(
    tiny: Path, flag: str, value: str, instead: str
) -> None:
    assert instead in error_line("--models", str(tiny), flag, value)


def test_settings_come_from_the_environment(models: Path) -> None:
    settings = {
        "FACENET_MODELS": str(models),
        "FACENET_MAX_ITEMS_PER_MESSAGE": "3",
        "FACENET_DEVICE": "cpu",
        "FACENET_IMAGE_FORMATS": "jpeg, png, bmp",
    }
    with server_process(**settings) as (target, _), Client(target) as client:
        info = client.server_info()
    assert info.limits["max_items_per_message"] == 3
    assert info.providers == ("CPUExecutionProvider",)
    assert info.image_formats == ("JPEG", "PNG", "BMP")


def test_health_is_served_for_the_service_and_the_whole(server: str) -> None:
    with grpc.insecure_channel(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "facenet.v1.FaceService"):
            status = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_is_served_by_flag(models: Path) -> None:
    with server_process("--models", str(models), "--reflection") as (target, _):
        with grpc.insecure_channel(target) as channel:
            services = ProtoReflectionDescriptorDatabase(channel).get_services()
            pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            methods = pool.FindServiceByName("facenet.v1.FaceService").methods_by_name
    assert "facenet.v1.FaceService" in services
    assert set(methods) == {"Detect", "Embed", "Compare", "GetServerInfo", "GetServerStats"}


def test_reflection_is_off_by_default(server: str) -> None:
    with grpc.insecure_channel(server) as channel, pytest.raises(grpc.RpcError) as refused:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def open_detect(channel: grpc.aio.Channel) -> Any:
    """A Detect stream."""
    return channel.stream_stream(
        "/facenet.v1.FaceService/Detect",
        request_serializer=pb.DetectRequest.SerializeToString,
        response_deserializer=pb.DetectResponse.FromString,
    )()


async def test_sigterm_finishes_what_is_in_flight(models: Path, astronaut: np.ndarray) -> None:
    pixels = pb.RawImage(rgb=astronaut.tobytes(), height=512, width=512)
    request = pb.DetectRequest(id=1, images=[pb.Image(raw=pixels)] * 20)
    with server_process("--models", str(models)) as (target, server):
        async with grpc.aio.insecure_channel(target) as channel:
            call = open_detect(channel)
            for _ in range(2):  # the first answer shows that the server reads; the second message is in flight
                await call.write(request)
            first: Any = await call.read()
            server.process.send_signal(signal.SIGTERM)
            second: Any = await call.read()
            last: Any = await call.read()
            await call.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
        assert await asyncio.to_thread(server.process.wait, 10) == 0
    assert [len(answer.results) for answer in (first, second)] == [20, 20]
    assert last.draining
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_every_answer_given_before_sigterm_reaches_a_caller_who_goes_on_sending(
    models: Path, astronaut: np.ndarray
) -> None:
    count = 0

    async def endless() -> AsyncIterator[np.ndarray]:
        while True:
            yield astronaut

    async def consume(client: AsyncClient, server: ServerProcess) -> None:
        nonlocal count
        async for _ in client.detect_stream(endless()):
            count += 1
            if count == 20:
                server.process.send_signal(signal.SIGTERM)

    with server_process("--models", str(models)) as (target, server):
        async with AsyncClient(target, retry=False) as client:
            with pytest.raises(ServerUnavailable, match="shutting down"):
                await consume(client, server)
        assert await asyncio.to_thread(server.process.wait, 10) == 0
    assert count >= 20


def test_the_fp32_embedder_stays_the_default_beside_its_quantised_forms(tmp_path: Path) -> None:
    forms: dict[str, Any] = {
        "20180408-102900": {},
        "20180408-102900-fp16": {"precision": "fp16"},
        "20180408-102900-int8": {"precision": "int8", "interchangeable_with": '["20180408-102900"]'},
    }
    files = {f"{kind}.onnx": tiny_model(kind) for kind in PORTS}
    files |= {f"{name}.onnx": tiny_model("embedder", name=name, **told) for name, told in forms.items()}
    with server_process("--models", str(write(tmp_path, files))) as (target, _), Client(target) as client:
        info = client.server_info()
    told = {model.name: (model.precision, model.interchangeable_with) for model in info.models if model.dimension}
    assert info.default_embedder == "20180408-102900"
    assert told == {
        "20180408-102900": ("fp32", ("20180408-102900-int8",)),
        "20180408-102900-fp16": ("fp16", ()),
        "20180408-102900-int8": ("int8", ("20180408-102900",)),
    }


TWO = ("20170512-110547", "20180408-102900")


@pytest.mark.parametrize(
    ("stated", "flags", "default"),
    [
        pytest.param({}, (), TWO[0], id="the first by name"),
        pytest.param({"default_embedder": TWO[1]}, (), TWO[1], id="the folder's"),
        pytest.param({"default_embedder": TWO[1]}, ("--default-embedder", TWO[0]), TWO[0], id="the configured one"),
    ],
)
def test_the_default_embedder_is_the_configured_one_or_the_folders(
    stated: dict[str, str], flags: tuple[str, ...], default: str, tmp_path: Path
) -> None:
    with server_process("--models", str(two_embedders(tmp_path, stated)), *flags) as (target, server):
        with Client(target) as client:
            assert client.server_info().default_embedder == default
        assert f"the default embedder {default} is uncalibrated" in server.log()
        assert ("no default embedder is stated" in server.log()) == (not stated)


def test_a_calibrated_default_embedder_is_no_warning(tmp_path: Path) -> None:
    files = {f"{kind}.onnx": tiny_model(kind) for kind in PORTS}
    files["facenet-tiny.onnx"] = tiny_model("embedder", name="tiny", calibration=calibration())
    with server_process("--models", str(write(tmp_path, files))) as (_, server):
        assert "WARNING" not in server.log()


def test_a_default_embedder_that_is_gone_keeps_the_server_from_starting(tmp_path: Path) -> None:
    line = error_line("--models", str(two_embedders(tmp_path, {"default_embedder": "gone"})))
    assert "'gone' is not there" in line
    assert "--default-embedder" in line


def two_embedders(folder: Path, stated: dict[str, str]) -> Path:
    files = {f"{kind}.onnx": tiny_model(kind) for kind in PORTS}
    files |= {f"facenet-{name}.onnx": tiny_model("embedder", name=name) for name in TWO}
    manifest = write(folder, files) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | stated))
    return folder


async def test_a_second_signal_stops_at_once(models: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2400, 1600)).save(file, "JPEG")  # much to search, little to send
    one, many = (pb.DetectRequest(images=[pb.Image(encoded=file.getvalue())] * count) for count in (1, 64))
    with server_process("--models", str(models)) as (target, server):
        async with grpc.aio.insecure_channel(target) as channel:
            call = open_detect(channel)
            await call.write(many)  # seconds of work, accepted before the next message is answered on another stream
            other = open_detect(channel)
            await other.write(one)
            await other.read()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.wait_for, "draining")
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError):  # one signal alone would have let it be answered
                await call.read()
        assert await asyncio.to_thread(server.process.wait, 30) == 0


def test_a_log_never_shows_an_image_or_an_embedding(models: Path, astronaut: np.ndarray) -> None:
    with server_process("--models", str(models), "--log-level", "debug") as (target, server):
        with Client(target) as client:
            vector = np.asarray(client.embed([astronaut])[0].faces[0].embedding)
            client.detect([b"some bytes of a portrait"])
        server.process.terminate()
        server.wait_for("stopped")
    assert "portrait" not in server.log()
    assert not any(f"{number:.4f}" in server.log() for number in vector[:50])
