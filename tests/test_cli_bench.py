"""``facenet bench`` against servers on fake networks."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commandline import facenet
from facenet_client.cli.bench import _teller
from facenet_client.load import Progress
from nets import HeldNet, crop, fake_server, square
from PIL import Image

pytestmark = pytest.mark.timeout(60)


async def bench(target: str, *arguments: object, before: str = "") -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(facenet, target, "bench", "--warm-up-s", 0, *arguments, before=before)


async def record(target: str, *arguments: object) -> Any:
    ended = await bench(target, "--json", *arguments)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for left in (20, 50, 80):
        Image.fromarray(square(left)).save(folder / f"{left}.png")
    return folder


async def test_generated_crops_are_embedded_unless_told_otherwise() -> None:
    async with fake_server() as target:
        said = await record(target, "--count", 64, "--batch", 16, "--concurrency", 2)
    assert (said["method"], said["messages"], said["items"], said["errors"]) == ("embed_crops", 4, 64, {})
    assert said["items_per_s"] == pytest.approx(64 / said["elapsed_s"])
    assert 0 < said["latency"]["p50_s"] <= said["latency"]["p99_s"]
    stages = {stage["name"]: stage for stage in said["server"]["stages"]}
    assert stages["colour"]["rows"] == 64
    assert stages["decode"]["rows"] == 64
    assert said["server"]["loop_lag"]["p99_s"] >= 0


async def test_raw_crops_are_not_decoded() -> None:
    async with fake_server() as target:
        said = await record(target, "--count", 4, "--raw")
    assert "decode" not in {stage["name"] for stage in said["server"]["stages"]}


@pytest.mark.parametrize("options", [[], ["--raw"], ["--method", "embed", "--min-face-px", 30]], ids=str)
async def test_photos_of_a_folder_are_searched_for_faces(photos: Path, options: list[object]) -> None:
    async with fake_server() as target:
        said = await record(target, photos, "--count", 6, "--concurrency", 2, *options)
    assert (said["items"], said["distinct_messages"], said["errors"]) == (6, 3, {})


async def test_crops_of_a_folder_are_embedded(tmp_path: Path) -> None:
    Image.fromarray(crop(9)).save(tmp_path / "crop.png")
    async with fake_server() as target:
        said = await record(target, tmp_path, "--crops", "--count", 3, "--model", "other")
    rows = {stage["name"]: stage["rows"] for stage in said["server"]["stages"]}
    assert rows["other"] == 3


async def test_an_open_loop_tells_how_long_messages_waited_for_a_caller() -> None:
    async with fake_server() as target:
        said = await record(target, "--rate", 500, "--arrivals", "constant", "--count", 20)
        ended = await bench(target, "--rate", 500, "--count", 20)
    assert (said["messages"], said["errors"]) == (20, {})
    assert "waiting for a free caller" in ended.stdout


async def test_people_get_a_table() -> None:
    async with fake_server() as target:
        ended = await bench(target, "--duration-s", 0.2)
    assert ended.returncode == 0, ended.stderr
    for part in ("images/s", "p50", "p95", "p99", "errors: none", "colour", "rows/run", "event loop late"):
        assert part in ended.stdout


async def test_errors_are_told_and_set_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    async with fake_server() as target:
        ended = await bench(target, tmp_path, "--count", 5)
    assert ended.returncode == 1
    assert "errors: 5 × UNSUPPORTED_FORMAT" in ended.stdout


async def test_several_addresses_share_the_load() -> None:
    nets = [HeldNet(), HeldNet()]
    for net in nets:
        net.open()
    async with fake_server({"colour": nets[0]}) as first, fake_server({"colour": nets[1]}) as second:
        said = await record(f"{first},{second}", "--count", 40, "--concurrency", 4)
    assert said["items"] == 40
    assert all(net.batches for net in nets)


async def test_more_callers_than_a_connection_holds_get_more_connections() -> None:
    async with fake_server(max_streams_per_connection=3) as target:
        assert (await record(target, "--concurrency", 7, "--count", 20))["items"] == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch", 65], "65 items of a message; the server takes 64"),
        (["--rate", 9, "--window", 2], "an open loop has no window"),
        (["--crops", "--method", "detect"], "--crops goes with --method embed-crops"),
        ([__file__, "--raw"], "without --raw it is sent as it is"),
        (["127.0.0.1:50051"], "the server is given by --server 127.0.0.1:50051"),
        (["nothing/there"], "no such file or folder"),
    ],
    ids=str,
)
async def test_what_cannot_be_done_is_one_clear_line(options: list[object], said: str) -> None:
    async with fake_server() as target:
        ended = await bench(target, *options)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_without_photos_and_without_the_portrait_it_asks_for_photos() -> None:
    async with fake_server() as target:
        hidden = "import sys; sys.modules['skimage'] = None"
        ended = await bench(target, "--method", "detect", before=hidden)
        found = await record(target, "--method", "detect", "--count", 1)
    assert "give PATHs of photos" in ended.stderr
    assert found["items"] == 1


def test_progress_is_a_line() -> None:
    lines: list[str] = []
    _teller(lines.append)(Progress(2.0, 10, 320, 1))
    assert lines == ["2 s, 320 images, 160.0/s, 1 errors"]
    seldom: list[str] = []
    tell = _teller(seldom.append, every_s=10)
    for second in range(1, 26):
        tell(Progress(second, second, second, 0))
    assert [line.partition(" s")[0] for line in seldom] == ["10", "20"]
