"""``facenet-convert quantize``, on an embedder small enough to be quantised in seconds."""

import base64
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import ROOT
from facenet_convert import crops, forms, gate, golden, interchange, metadata, pairs, quantize, verify
from facenet_convert.errors import PrecisionError, SourceError
from facenet_server.vision import calibration as served_calibration
from onnx import numpy_helper
from PIL import Image
from tiny_facenet import calibration, tiny_facenet, write_pairs, write_people

pytestmark = pytest.mark.timeout(60)


@cache
def material() -> crops.Material:
    """The default's crops."""
    return crops.of_portraits()


def silently(items: Sequence[Any], _: str) -> Iterable[Any]:
    return items


def about(model: onnx.ModelProto) -> dict[str, str]:
    return {prop.key: prop.value for prop in model.metadata_props}


def quantise(base: onnx.ModelProto, precision: str, official: pairs.Pairs | None = None) -> quantize.Quantised:
    return quantize.quantise(base, precision, material(), official, silently)


@pytest.fixture
def official(tmp_path: Path) -> pairs.Pairs:
    return pairs.read(write_pairs(tmp_path / "pairs.txt"), write_people(tmp_path / "crops"))


# ---- the forms ----


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("preprocessing", ["fixed", "prewhiten"])
def test_a_form_has_the_ports_of_its_base_and_nearly_its_answers(precision: str, preprocessing: str) -> None:
    base = tiny_facenet(preprocessing=preprocessing)
    made = quantise(base, precision)
    assert list(made.model.graph.input) == list(base.graph.input)
    assert list(made.model.graph.output) == list(base.graph.output)
    assert [opset.domain for opset in made.model.opset_import] == [""]
    found = verify.onnx_runner(made.model)(material().held_out[:8])["embedding"]
    expected = verify.onnx_runner(base)(material().held_out[:8])["embedding"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * expected).sum(axis=1).min() > 0.99


def test_int8_runs_in_integers_from_the_pixels_to_the_pooling(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    data = forms.int8(tiny_facenet(), material().calibration, silently).model.SerializeToString()
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(options.optimized_model_filepath)
    count = Counter(node.op_type for node in optimised.graph.node)
    assert (count["QLinearConv"], count["QLinearConcat"], count["QLinearAdd"]) == (5, 1, 1)
    assert (count["QuantizeLinear"], count["DequantizeLinear"]) == (0, 1)
    assert not count.keys() & {"Conv", "Relu", "Add", "Concat", "Cast"}


def test_the_base_is_left_as_it_was() -> None:
    base = tiny_facenet()
    before = base.SerializeToString()
    for precision in ("int8", "fp16"):
        quantise(base, precision)
    assert base.SerializeToString() == before


@pytest.mark.slow
def test_the_real_embedder_passes_the_gate_in_int8(models: Path) -> None:
    base = onnx.load(models / "facenet-20180408-102900.onnx")
    few = crops.Material(material().calibration[:32], material().held_out[:16], "32 variations of two portraits")
    made = quantize.quantise(base, "int8", few, None, silently)
    assert made.name == "20180408-102900-int8"
    assert float(about(made.model)["cosine_mean"]) > 0.999
    assert made.model.ByteSize() < base.ByteSize() / 3


# ---- what it says of itself ----


def test_a_quantised_model_says_what_it_is_and_what_was_measured() -> None:
    base = tiny_facenet(calibration=calibration())
    made = quantise(base, "int8")
    told = about(made.model)
    assert made.name == told["name"] == "tiny-int8"
    assert (told["precision"], told["base"], told["ranges"]) == ("int8", "tiny", "128 variations of two portraits")
    kept = ("format", "kind", "source", "source_sha256", "preprocessing", "dimension", "input_size_px")
    assert {key: told[key] for key in kept} == {key: about(base)[key] for key in kept}
    assert 0.97 <= float(told["cosine_worst"]) <= float(told["cosine_mean"]) < 1
    assert 0 < float(told["parity_max_abs_diff"]) < 0.1
    assert int(told["held_out_crops"]) == len(material().held_out)


def test_a_calibration_of_fp32_is_not_taken_over_unmeasured() -> None:
    told = about(quantise(tiny_facenet(calibration=calibration()), "int8").model)
    assert not told.keys() & {"calibration", "interchangeable_with"}


def test_a_calibration_is_taken_over_by_a_model_measured_to_be_interchangeable(official: pairs.Pairs) -> None:
    told = about(quantise(tiny_facenet(calibration=calibration()), "fp16", official).model)
    assert json.loads(told["interchangeable_with"]) == ["tiny"]
    assert (told["pairs"], told["pairs_accuracy"]) == ("48", told["pairs_accuracy_fp32"])
    assert served_calibration.parse(told["calibration"]).data == (
        "made up; fitted on tiny, with which this model was interchangeable on 48 pairs"
    )


def test_without_a_calibration_nothing_is_interchangeable(official: pairs.Pairs) -> None:
    made = quantise(tiny_facenet(), "fp16", official)
    assert "interchangeable_with" not in about(made.model)
    assert "uncalibrated" in made.told[-1]


def test_a_model_whose_decisions_differ_is_written_uncalibrated(
    official: pairs.Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interchange, "differences", lambda *_: ["compared with fp32, everything differs"])
    made = quantise(tiny_facenet(calibration=calibration()), "fp16", official)
    assert not about(made.model).keys() & {"calibration", "interchangeable_with"}
    assert "everything differs" in made.told[-1]


# ---- the gate ----


def sabotaged(form: forms.Form) -> forms.Form:
    """The form with a dense layer that gives all faces the same direction."""
    model = onnx.ModelProto()
    model.CopyFrom(form.model)
    (dense,) = (node for node in model.graph.node if node.op_type in ("MatMul", "Gemm"))
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == dense.input[1])
    weights.CopyFrom(numpy_helper.from_array(np.ones_like(numpy_helper.to_array(weights)), weights.name))
    return forms.Form(model, verify.onnx_runner(model))


def test_a_form_whose_embeddings_turn_away_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sabotaged(forms.int8(tiny_facenet(), material().calibration, silently))
    monkeypatch.setattr(forms, "int8", lambda *_: made)
    with pytest.raises(PrecisionError, match="cosine to fp32 on 128 held-out crops"):
        quantise(tiny_facenet(), "int8")


def test_a_form_that_loses_accuracy_is_refused(official: pairs.Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sabotaged(forms.fp16(tiny_facenet()))
    monkeypatch.setattr(forms, "fp16", lambda *_: made)
    monkeypatch.setattr(gate, "check_fidelity", lambda *_: None)
    with pytest.raises(PrecisionError, match="accuracy on 48 pairs falls"):
        quantise(tiny_facenet(), "fp16", official)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        pytest.param({"kind": "onet"}, "no embedder", id="a detector"),
        pytest.param({"format": "1"}, "of this version", id="another format"),
        pytest.param(
            {"base": "tiny", "precision": "int8", "name": "tiny-int8"}, "int8 already", id="quantised already"
        ),
    ],
)
def test_only_fp32_embedders_are_quantised(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(SourceError, match=told):
        quantise(tiny_facenet(**changed), "int8")


# ---- the command ----


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(ROOT / "convert")}
    run = [sys.executable, "-m", "facenet_convert", "quantize", *map(str, arguments)]
    return subprocess.run(run, env=env, capture_output=True, text=True, check=False)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The tiny embedder in a models folder."""
    path = tmp_path / "models" / "facenet-tiny.onnx"
    metadata.write(tiny_facenet(calibration=calibration()), path)
    return path


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_command_writes_the_form_beside_its_base(written: Path, precision: str) -> None:
    ended = command(written, "--precision", precision)
    assert ended.returncode == 0, ended.stderr
    assert "cosine to fp32 on 128 held-out crops" in ended.stdout
    files = json.loads((written.parent / "manifest.json").read_text())["files"]
    assert list(files) == [f"facenet-tiny-{precision}.onnx", "facenet-tiny.onnx"]
    made = onnx.load(written.parent / f"facenet-tiny-{precision}.onnx")
    assert about(made)["precision"] == precision


def test_the_command_takes_crops_pairs_and_another_folder(written: Path, tmp_path: Path) -> None:
    people, file = write_people(tmp_path / "crops"), write_pairs(tmp_path / "pairs.txt")
    before = content(written.parent)
    ended = command(written, "--precision", "fp16", "--crops", people, "--pairs", file, "--out", tmp_path / "elsewhere")
    assert ended.returncode == 0, ended.stderr
    assert "accuracy on 48 pairs" in ended.stdout
    assert content(written.parent) == before
    assert sorted(content(tmp_path / "elsewhere")) == ["facenet-tiny-fp16.onnx", "manifest.json"]


def test_a_refused_form_leaves_the_disk_as_it_was(written: Path, tmp_path: Path) -> None:
    people = write_people(tmp_path / "crops")
    calibrated_on = {crop.tobytes() for crop in crops.of_folder(people).calibration}
    for path in people.rglob("*.png"):
        if crops.load([path]).tobytes() in calibrated_on:
            Image.new("RGB", (160, 160), "grey").save(path)  # ranges set on these say nothing of faces
    before = content(written.parent)
    ended = command(written, "--precision", "int8", "--crops", people)
    assert ended.returncode == 1
    assert "Nothing was written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert content(written.parent) == before


def test_pairs_without_their_crops_are_a_mistake_of_usage(written: Path, tmp_path: Path) -> None:
    ended = command(written, "--precision", "int8", "--pairs", write_pairs(tmp_path / "pairs.txt"))
    assert ended.returncode == 2
    assert "--crops" in ended.stderr


def test_what_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    ended = command(tmp_path / "model.onnx", "--precision", "int8")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr


def test_a_quantised_models_golden_answer_is_the_one_of_products_that_cannot_overflow() -> None:
    """Elsewhere a processor without VNNI would make an answer that no other one gives."""
    form = forms.int8(tiny_facenet(), material().calibration, silently)
    image = (np.arange(160 * 160 * 3) * 37 % 251).reshape(1, 160, 160, 3).astype(np.uint8)
    told = np.frombuffer(base64.b64decode(golden.answer(form.model)), "<f4")
    np.testing.assert_array_equal(told, form.run(image)["embedding"][0])
