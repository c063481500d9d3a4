"""What the benchmark does with its figures; not the figures."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import embedding
from benchmarks.detection import found
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure, Section, Table, Verdict, proven
from benchmarks.machine import describe
from benchmarks.photos import crops, mosaic
from benchmarks.plots import Line, draw
from benchmarks.racing import Lap, Pace, fastest, race, speed
from benchmarks.report import Report, as_json, as_markdown
from benchmarks.runners import Worker
from benchmarks.sweep import operations
from benchmarks.workers.protocol import Slice

ENDS: dict[str, list[str | int | None]] = {"image": ["n", 3, 8, 8], "out": ["n", 5]}
WEIGHTS = {"kernel": (4, 3, 3, 3), "matrix": (144, 5)}


def timed(*durations_s: float, **stages: tuple[int, int]) -> Slice:
    return Slice(list(durations_s), np.empty(0), stages)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("ratio", 2.5, "×", at_least=2.5), Verdict.PASS),
        (Figure("ratio", 2.49, "×", at_least=2.5), Verdict.FAIL),
        (Figure("time", 0.3, "s", at_most=0.3), Verdict.PASS),
        (Figure("time", 0.31, "s", at_most=0.3), Verdict.FAIL),
        (Figure("ratio", None, "×", at_least=2.5), Verdict.NOT_MEASURED),
        (Figure("rate", 7.0, "/s"), Verdict.UNBOUND),
    ],
    ids=lambda value: value.name if isinstance(value, Verdict) else None,
)
def test_a_bound_holds_to_its_very_value(figure: Figure, verdict: Verdict) -> None:
    assert figure.verdict is verdict


def test_what_was_not_measured_is_not_proven_but_in_a_quick_run() -> None:
    missing = [Figure("int8", None, "×", at_least=2.5), Figure("fp32", 1.0, "×", at_least=0.97), Figure("rate", 1, "")]
    assert not proven(missing, quick=False)
    assert proven(missing, quick=True)
    assert not proven([*missing, Figure("fp16", 0.5, "×", at_least=0.97)], quick=True)


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def contender(name: str, duration_s: float) -> Slice:
        order.append(name)
        return timed(duration_s)

    contenders = {"slow": lambda _: contender("slow", 3.0), "quick": lambda _: contender("quick", 1.0)}
    laps = race("turns", contenders, Pace(rounds=2, slice_s=0.0), lambda _: None)
    assert order == ["slow", "quick", "slow", "quick"]
    assert fastest(laps, laps) == "quick"


def test_a_lap_is_the_median_of_its_slices_medians_and_the_mean_of_its_stages() -> None:
    slices = [
        timed(1, 2, 9, **{"mtcnn-rnet": (9, 9), "cut": (3, 3), "idle": (0, 0)}),
        timed(3, **{"mtcnn-rnet": (9, 9), "cut": (3, 1), "idle": (0, 0)}),
        timed(50, **{"mtcnn-rnet": (2, 2), "cut": (4, 16), "idle": (0, 0)}),
    ]
    lap = Lap(slices)
    assert lap.seconds == 3
    assert list(lap.stages) == ["cut", "mtcnn-rnet"]
    assert lap.stages["cut"].rows == 2
    assert lap.stages["cut"].seconds == pytest.approx(4e-9)


def test_a_drifting_machine_changes_no_ratio() -> None:
    ours, other = Lap([timed(1), timed(2), timed(4)]), Lap([timed(3), timed(6), timed(8)])
    assert speed(ours, other) == 3


def test_embedders_are_compared_each_at_its_best_batch() -> None:
    laps = {
        ("FaceNet Serve, 20180408-102900", 1): Lap([timed(1.0)]),
        ("FaceNet Serve, 20180408-102900", 8): Lap([timed(4.0)]),
        ("FaceNet Serve, 20180408-102900-int8", 8): Lap([timed(1.0)]),
        ("FaceNet Serve, 20170512-110547", 8): Lap([timed(5.0)]),
        ("FaceNet Serve, 20170512-110547-int8", 8): Lap([timed(2.0)]),
        ("bare ONNX Runtime, 20180408-102900, one run per core", 1): Lap([timed(0.6)]),
        ("bare ONNX Runtime, 20180408-102900-int8, one run per core", 1): Lap([timed(0.1)]),
        ("facenet-pytorch", 8): Lap([timed(8.0)]),
        ("TensorFlow", 8): Lap([timed(6.0)]),
    }
    found = [figure.value for figure in embedding._figures(laps)]
    assert found == pytest.approx([1.2, 2.0, 1.5, 4.0, 0.8, 2.5])
    assert embedding._figures({key: lap for key, lap in laps.items() if "int8" not in key[0]})[-1].value is None


def test_a_worker_that_fails_is_quoted() -> None:
    with Worker("no_such_worker") as worker, pytest.raises(BenchmarkError, match=r"No module named .*no_such_worker"):
        _ = worker.versions


def test_boxes_are_found_again_where_they_overlap_enough() -> None:
    expected = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [100, 100, 110, 110]])
    boxes = np.array([[0, 0, 10, 9.5, 0.99], [50, 50, 60, 55, 0.99]])
    assert found(expected, boxes, 0.9).tolist() == [True, False, False]
    assert found(expected, boxes, 0.5).tolist() == [True, True, False]
    assert found(expected, np.empty((0, 5)), 0.5).tolist() == [False, False, False]


def test_mosaics_and_crops_have_the_asked_sizes() -> None:
    assert mosaic(6, 1200, 630).shape == (630, 1200, 3)
    assert crops(3).shape == (3, 160, 160, 3)


def test_operations_count_multiplications_and_additions(tmp_path: Path) -> None:
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in ENDS.items()]
    weights = [numpy_helper.from_array(np.ones(dims, np.float32), name) for name, dims in WEIGHTS.items()]
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"]),  # (N, 4, 6, 6), each of 3·3·3 products
        helper.make_node("Flatten", ["map"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "net", shape[:1], shape[1:], weights)
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    assert operations(tmp_path / "net.onnx") == 2 * (4 * 6 * 6 * 27 + 144 * 5)


def test_a_report_says_the_same_to_machines_and_to_people(tmp_path: Path) -> None:
    table = Table("Rates", ("who", "1", "32"), [("ours", 123.4, 0.1234), ("theirs", 7, None)])
    plot = draw(tmp_path / "rates.svg", [Line("ours", [1, 32], [123.4, 0.1234])], "batch", "rate")
    section = Section("Embedding", [Figure("speed", 1.5, "×", at_least=1.3), Figure("time", 2.0, "s")], [table])
    section.plots.append(plot)
    machine = describe("cpu", {"torch": "2", "onnxruntime": "1"})
    report = Report(machine, False, 12.3, 0.5, [section])

    text = as_markdown(report)
    assert "| speed | 1.5 × | ≥ 1.3 | PASS |  |" in text
    assert "| ours | 123 | 0.123 |\n| theirs | 7 | — |" in text
    assert "| time | 2 s |  |" in text
    assert "![Embedding](rates.svg)" in text
    assert "onnxruntime 1, torch 2. **Other programs took 50%" in text
    (written,) = json.loads(as_json(report))["sections"]
    assert [figure["verdict"] for figure in written["figures"]] == ["PASS", ""]
    assert (tmp_path / "rates.svg").exists()


def test_the_machine_is_described_without_names_and_paths() -> None:
    about = str(asdict(describe("cpu", {})))
    assert str(Path.home()) not in about
    assert sys.executable not in about
