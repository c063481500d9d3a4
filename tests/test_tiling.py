import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facenet_server.build import Parts, open_in_process
from facenet_server.config import Config
from facenet_server.errors import StartError
from facenet_server.inference import open_networks
from facenet_server.models.runtime import Network
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.pipeline import ByteBudget, Detection
from facenet_server.telemetry.counters import Stats
from facenet_server.vision import mtcnn, tiling
from facenet_server.vision.options import DetectOptions
from facenet_server.vision.sources import Raw
from facenet_server.vision.tiling import Tiles


@pytest.fixture(scope="module")
def networks(models: Path) -> dict[str, Network]:
    return open_networks(Config(models=models, device="cpu"))


def given(networks: Mapping[str, Any]) -> Parts:
    return Parts(open_networks=lambda _: networks)


@pytest.mark.parametrize("at_once", [7, 1000])
def test_levels_of_all_sizes_get_their_own_outputs_bit_by_bit(
    at_once: int, networks: dict[str, Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    sizes = [(12, 12), (12, 13), (13, 30), (17, 24), (97, 64), (191, 362), (51, 50)]
    sizes += [(128, 128), (127, 129), (128, 11), (129, 128), (130, 131), (246, 247), (247, 246), (364, 365)]
    levels = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]
    tiles, parts = Tiles(levels), 0
    monkeypatch.setattr(tiling, "AT_ONCE", at_once)
    while (laid := tiles.pack()) is not None:
        assert len(laid[0]) <= at_once
        tiles.unpack(networks["mtcnn-pnet-canvas"](*laid))
        parts += 1
    assert parts == -(-sum(tiling.count(*size) for size in sizes) // at_once)
    for level, (probability, regression) in zip(levels, tiles.maps, strict=True):
        alone = networks["mtcnn-pnet"](level[np.newaxis])
        np.testing.assert_array_equal(probability, alone[0][0])
        np.testing.assert_array_equal(regression, alone[1][0])


@pytest.mark.parametrize(("height", "width"), [(378, 720), (379, 721), (61, 3000), (300, 12), (12, 300)])
def test_a_level_in_strips_gets_the_outputs_of_the_whole_bit_by_bit(
    height: int, width: int, networks: dict[str, Network]
) -> None:
    pnet = networks["mtcnn-pnet"]
    level = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    strips: list[int] = []

    def counted(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        strips.append(len(rows))
        return pnet(rows)

    probability, regression = mtcnn.score(level, counted)
    whole = pnet(level[np.newaxis])
    np.testing.assert_array_equal(probability, whole[0][0])
    np.testing.assert_array_equal(regression, whole[1][0])
    assert (len(strips) > 1) == (height * width > 60_000)


def test_windows_in_slices_get_the_outputs_of_one_run(networks: dict[str, Network]) -> None:
    windows = np.random.default_rng(0).uniform(0, 255, (37, 24, 24, 3)).astype(np.float32)
    together = networks["mtcnn-rnet"](windows)
    alone = [networks["mtcnn-rnet"](window[np.newaxis]) for window in windows]
    for output, singles in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(output, np.concatenate(singles), atol=1e-6)


async def test_detection_is_the_same_on_canvases(
    models: Path, networks: dict[str, Network], astronaut: np.ndarray, hopper: np.ndarray
) -> None:
    async def detect(share_levels: str) -> list[Detection]:
        config = Config(models=models, device="cpu", share_levels=share_levels)
        barrier, stats = BatchBarrier(3), Stats()

        async def one(image: np.ndarray) -> Detection:
            raw = Raw(image.tobytes(), *image.shape[:2])
            try:
                return await pipeline.detect(raw, DetectOptions(), ByteBudget(0), barrier)
            finally:
                barrier.leave(1)

        async with open_in_process(config, stats, given(networks)) as opened:
            pipeline = opened.pipeline
            found = list(await asyncio.gather(one(astronaut), one(hopper), one(astronaut[:15, :15])))
        if share_levels == "on":
            stage = stats.stage("mtcnn-pnet-canvas")
            assert stage.rows > 8 * stage.runs, "levels of all sizes share runs"
        return found

    for alone, shared, n_faces in zip(await detect("off"), await detect("on"), (1, 1, 0), strict=True):
        assert len(alone.faces.boxes) == n_faces
        np.testing.assert_array_equal(alone.faces.boxes, shared.faces.boxes)
        np.testing.assert_array_equal(alone.faces.scores, shared.faces.scores)


async def test_without_the_file_sharing_is_refused(models: Path, networks: dict[str, Network]) -> None:
    config = Config(models=models, device="cpu", share_levels="on")
    others = {name: network for name, network in networks.items() if network.info.kind != "pnet_canvas"}
    with pytest.raises(StartError, match="facenet-convert mtcnn"):
        async with open_in_process(config, Stats(), given(others)):
            pass


async def test_a_thin_image_takes_no_more_memory_than_others(models: Path, networks: dict[str, Network]) -> None:
    calls: list[int] = []
    canvas = networks["mtcnn-pnet-canvas"]

    class Counted:
        info, providers, on_cuda = canvas.info, canvas.providers, False

        def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            calls.append(len(inputs[0]))
            return canvas(*inputs)

    counted: Any = {**networks, "mtcnn-pnet-canvas": Counted()}
    config = Config(models=models, device="cpu", share_levels="on", threads=1)
    thin = Raw(bytes(160 * 32_000 * 3), 160, 32_000)
    async with open_in_process(config, Stats(), given(counted)) as opened:
        found = await opened.pipeline.detect(thin, DetectOptions(min_face_px=160), ByteBudget(0), BatchBarrier(1))
    assert not len(found.faces.boxes)
    assert sum(calls) == tiling.count(12, 2_400)
    assert max(calls) <= tiling.AT_ONCE
