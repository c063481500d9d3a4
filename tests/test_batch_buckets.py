from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facenet_server.errors import StartError
from facenet_server.models import batch_buckets, loader, runtime
from facenet_server.models.batch_buckets import BatchSizeBuckets
from facenet_server.models.contract import ModelInfo
from facenet_server.models.loader import open_models
from facenet_server.models.runtime import Engine, Network
from facenet_server.vision.tiling import SIDE_PX

NO_MEMORY = "Failed to allocate memory for requested buffer of size 104857600"


class Session:
    """Doubles what it is given, of which it remembers the lengths, with memory for so many rows."""

    def __init__(self, memory_rows: int) -> None:
        self.lengths: list[int] = []
        self._memory_rows = memory_rows

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        (rows,) = inputs.values()
        if len(rows) > self._memory_rows:
            raise RuntimeError(NO_MEMORY)
        self.lengths.append(len(rows))
        return [2 * rows for _ in outputs]


def open_buckets(
    most_rows: int, memory_rows: int = 10**6, memory_sessions: int = 10**6
) -> tuple[BatchSizeBuckets, list[Session]]:
    opened: list[Session] = []

    def open_one() -> Session:
        if len(opened) == memory_sessions:
            raise RuntimeError(NO_MEMORY)
        opened.append(Session(memory_rows))
        return opened[-1]

    return batch_buckets.open_buckets(
        most_rows, open_one, lambda session, bucket: session.run(["a"], {"x": np.ones(bucket)})
    ), opened


@pytest.mark.parametrize(
    ("most_rows", "sizes"), [(1, [1]), (4, [1, 4]), (64, [1, 4, 16, 64]), (100, [1, 2, 7, 25, 100])]
)
def test_rungs_are_four_times_apart_up_to_the_largest_batch(most_rows: int, sizes: list[int]) -> None:
    assert open_buckets(most_rows)[0].sizes == sizes


def network_on(steps: BatchSizeBuckets) -> Network:
    return Network(ModelInfo("r", "rnet", "", "", "", "", 24, 0.0), steps, steps.sizes[-1])


@pytest.mark.parametrize("count", [1, 2, 4, 5, 63, 64, 65, 150])
def test_every_number_of_rows_gets_its_own_answers(count: int) -> None:
    rows = np.random.default_rng(0).random((count, 3))
    for answer in network_on(open_buckets(64)[0])(rows):
        np.testing.assert_array_equal(answer, 2 * rows)


def test_no_session_meets_a_second_shape() -> None:
    steps, opened = open_buckets(64)
    for count in (1, 3, 64, 20, 200, 7):
        network_on(steps)(np.ones(count))
    assert sorted(set(session.lengths).pop() for session in opened) == steps.sizes
    assert all(len(set(session.lengths)) == 1 for session in opened)


def test_where_memory_ends_the_ladder_ends() -> None:
    steps, _ = open_buckets(64, memory_rows=20)
    assert steps.sizes == [1, 4, 16]
    np.testing.assert_array_equal(network_on(steps)(np.arange(40))[0], 2 * np.arange(40))


def test_where_a_session_cannot_even_be_opened_it_ends_too() -> None:
    steps, _ = open_buckets(64, memory_sessions=2)
    assert steps.sizes == [1, 4]


@pytest.mark.parametrize("memory", [{"memory_rows": 0}, {"memory_sessions": 0}])
def test_without_memory_for_a_single_row_it_is_an_error(memory: dict[str, int]) -> None:
    with pytest.raises(RuntimeError, match="Failed to allocate"):
        open_buckets(64, **memory)


class OnPaperOnCuda:
    """A session on the CPU that says it is on a GPU, and remembers the shapes it met."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.shapes: set[tuple[int, ...]] = set()

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> Any:
        self.shapes.add(inputs["image"].shape)
        return self._session.run(outputs, inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch) -> list[OnPaperOnCuda]:
    opened: list[OnPaperOnCuda] = []

    def open_session(data: bytes, providers: list[Any], threads: int) -> OnPaperOnCuda:
        opened.append(OnPaperOnCuda(runtime.open_session(data, [("CPUExecutionProvider", {})], threads)))
        return opened[-1]

    monkeypatch.setattr(loader, "open_session", open_session)
    return opened


def test_a_session_that_came_to_run_on_the_cpu_is_refused(
    models: Path, on_paper: list[OnPaperOnCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    def providers(self: OnPaperOnCuda) -> list[str]:
        return ["CUDAExecutionProvider"] if len(on_paper) == 1 else ["CPUExecutionProvider"]

    monkeypatch.setattr(OnPaperOnCuda, "get_providers", providers)
    with pytest.raises(StartError, match="came to run on CPUExecutionProvider"):
        open_models(models, Engine("cpu", 1, most_rows=MOST_ROWS))


def test_a_start_without_memory_says_so(
    models: Path, on_paper: list[OnPaperOnCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: OnPaperOnCuda, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> Any:
        raise RuntimeError(NO_MEMORY)

    monkeypatch.setattr(OnPaperOnCuda, "run", run)
    with pytest.raises(StartError, match="no memory for it"):
        open_models(models, Engine("cpu", 1))


MOST_ROWS = {"embedder": 4, "rnet": 16, "onet": 16, "pnet_canvas": 4}


def test_on_a_gpu_networks_answer_alike_in_sessions_of_one_shape(models: Path, on_paper: list[OnPaperOnCuda]) -> None:
    plain = open_models(models, Engine("cpu", 1))
    on_paper.clear()
    networks = open_models(models, Engine("cpu", 1, most_rows=MOST_ROWS))
    rng = np.random.default_rng(0)
    windows = rng.uniform(0, 255, (11, 24, 24, 3)).astype(np.float32)
    canvases = rng.integers(0, 256, (3, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    asked: dict[str, list[np.ndarray]] = {
        "mtcnn-rnet": [windows],
        "mtcnn-pnet-canvas": [canvases, np.array([[SIDE_PX, SIDE_PX], [50, 91], [12, 128]], np.int32)],
    }
    for name, inputs in asked.items():
        for answer, expected in zip(networks[name](*inputs), plain[name](*inputs), strict=True):
            assert answer.shape == expected.shape
            np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert all(len(session.shapes) == 1 for session in on_paper)


def test_every_session_is_proven_by_the_golden_answer(
    models: Path, on_paper: list[OnPaperOnCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = OnPaperOnCuda.run

    def run(self: OnPaperOnCuda, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> Any:
        answers = honest(self, outputs, inputs)
        return [1.1 * answer for answer in answers] if len(inputs["image"]) == 16 else answers

    monkeypatch.setattr(OnPaperOnCuda, "run", run)
    with pytest.raises(StartError, match="golden answer"):
        open_models(models, Engine("cpu", 1, most_rows=MOST_ROWS))
