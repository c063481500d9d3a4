"""What the server accepts as a model. The files are tiny, but real ONNX in a real manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from facenet_server.errors import StartError
from facenet_server.models.contract import PORTS
from facenet_server.models.loader import open_models
from facenet_server.models.runtime import Engine, cuda_options, for_one_shape
from onnx import helper, numpy_helper
from tiny_models import tiny_model, write


@pytest.fixture
def files() -> dict[str, bytes]:
    return {f"{kind}.onnx": tiny_model(kind) for kind in (*PORTS, "embedder")}


def test_whole_models_open_under_their_names(tmp_path: Path, files: dict[str, bytes]) -> None:
    files["second.onnx"] = tiny_model("embedder", name="second")
    networks = open_models(write(tmp_path, files), Engine("cpu", 1))
    assert sorted(networks) == ["second", "tiny", "tiny-onet", "tiny-pnet", "tiny-pnet_canvas", "tiny-rnet"]
    (embedding,) = networks["tiny"](np.zeros((3, 160, 160, 3), np.uint8))
    assert embedding.shape == (3, 8)
    assert networks["tiny"].info.dimension == 8
    assert list(networks["tiny"].providers) == ["CPUExecutionProvider"]


def refused(folder: Path) -> str:
    with pytest.raises(StartError) as error:
        open_models(folder, Engine("cpu", 1))
    return str(error.value)


def test_a_folder_without_models_says_how_to_make_them(tmp_path: Path) -> None:
    assert "facenet-convert all" in refused(tmp_path)


def test_one_flipped_byte_is_found(tmp_path: Path, files: dict[str, bytes]) -> None:
    write(tmp_path, files)
    data = bytearray(files["rnet.onnx"])
    data[len(data) // 2] ^= 1
    (tmp_path / "rnet.onnx").write_bytes(data)
    assert "SHA-256" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["pnet", "rnet", "onet", "embedder"])
def test_a_missing_network_is_named(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    del files[f"{kind}.onnx"]
    assert f"no {kind}" in refused(write(tmp_path, files))


def test_p_net_on_canvases_may_be_missing(tmp_path: Path, files: dict[str, bytes]) -> None:
    del files["pnet_canvas.onnx"]
    assert "tiny-pnet_canvas" not in open_models(write(tmp_path, files), Engine("cpu", 1))


def test_a_listed_file_that_is_gone_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    write(tmp_path, files)
    (tmp_path / "onet.onnx").unlink()
    assert "onet.onnx" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        pytest.param({"kind": "embedder", "outputs": {"embedding": [None, 9]}}, "embedding", id="another width"),
        pytest.param({"kind": "embedder", "outputs": {"vector": [None, 8]}}, "vector", id="another output"),
        pytest.param({"kind": "embedder", "format": "0"}, "format", id="another format"),
        pytest.param({"kind": "embedder", "dimension": "many"}, "metadata", id="unreadable metadata"),
    ],
)
def test_a_model_of_another_form_is_refused(
    tmp_path: Path, files: dict[str, bytes], changed: dict[str, str], told: str
) -> None:
    files["embedder.onnx"] = tiny_model(**changed)  # type: ignore[arg-type]
    assert told in refused(write(tmp_path, files))


@pytest.mark.parametrize(
    "answer", [pytest.param("", id="none"), pytest.param("AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8=", id="ones")]
)
def test_a_model_that_does_not_give_its_golden_answer_is_refused(
    tmp_path: Path, files: dict[str, bytes], answer: str
) -> None:
    files["embedder.onnx"] = tiny_model("embedder", golden=answer)
    told = refused(write(tmp_path, files))
    assert "golden answer" in told
    assert "embedder.onnx" in told


@pytest.mark.parametrize("kept", [slice(0), slice(100), slice(-1), slice(1, None)], ids=str)
def test_what_is_no_whole_model_is_refused_though_the_manifest_lists_it(
    tmp_path: Path, files: dict[str, bytes], kept: slice
) -> None:
    files["pnet.onnx"] = files["pnet.onnx"][kept]
    told = refused(write(tmp_path, files))
    assert "pnet.onnx" in told
    assert "facenet-convert all --force" in told


@pytest.mark.parametrize("name", ["weights", "w" * 200], ids=["short", "long"])
def test_weights_in_another_file_are_refused_though_they_lie_where_they_would_be_found(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # 64 numbers: what is shorter, some of ONNX Runtime's optimizers would look at, and fail.
    model = onnx.load_from_string(tiny_model("embedder", outputs={"embedding": [None, 64]}, dimension="64"))
    model.graph.node[-1].output[0] = "zeros"
    model.graph.node.append(helper.make_node("Add", ["zeros", "weights"], ["embedding"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(64, np.float32), "weights"))
    path = tmp_path / "embedder.onnx"
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)
    files["embedder.onnx"] = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert f"{path} has weights in another file" in refused(write(tmp_path, files))


def test_two_detectors_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    files["again.onnx"] = tiny_model("pnet", name="again")
    assert "keep one" in refused(write(tmp_path, files))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"{", id="cut off"),
        pytest.param(b"\x86" * 100, id="no text"),
        pytest.param(b"[" * 100_000, id="too deep"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"files": {"pnet.onnx": {}}}', id="no hash"),
        pytest.param(b'{"files": {"pnet.onnx": "whole"}}', id="a word"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, files: dict[str, bytes], text: bytes) -> None:
    (write(tmp_path, files) / "manifest.json").write_bytes(text)
    told = refused(tmp_path)
    assert "manifest.json" in told
    assert "facenet-convert all --force" in told


def test_a_model_that_says_no_precision_is_fp32(tmp_path: Path, files: dict[str, bytes]) -> None:
    files["int8.onnx"] = tiny_model("embedder", name="tiny-int8", precision="int8")
    networks = open_models(write(tmp_path, files), Engine("cpu", 1))
    assert (networks["tiny"].info.precision, networks["tiny-int8"].info.precision) == ("fp32", "int8")


def test_models_are_interchangeable_when_one_of_them_says_so(tmp_path: Path, files: dict[str, bytes]) -> None:
    files["int8.onnx"] = tiny_model("embedder", name="tiny-int8", interchangeable_with='["tiny", "elsewhere"]')
    files["fp16.onnx"] = tiny_model("embedder", name="tiny-fp16")
    networks = open_models(write(tmp_path, files), Engine("cpu", 1))
    told = {name: network.info.interchangeable_with for name, network in networks.items()}
    assert told["tiny-int8"] == ("elsewhere", "tiny")
    assert told["tiny"] == ("tiny-int8",)
    assert told["tiny-fp16"] == ()


@pytest.mark.parametrize(
    "metadata", [{"precision": "int4"}, {"interchangeable_with": '"tiny"'}, {"interchangeable_with": "[1]"}], ids=str
)
def test_a_strange_precision_or_relation_is_refused(
    tmp_path: Path, files: dict[str, bytes], metadata: dict[str, Any]
) -> None:
    files["embedder.onnx"] = tiny_model("embedder", **metadata)
    assert "metadata" in refused(write(tmp_path, files))


def test_two_models_of_one_name_are_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    files["again.onnx"] = tiny_model("embedder")
    assert "one name" in refused(write(tmp_path, files))


def test_cuda_is_exact_and_unbounded_unless_asked_otherwise() -> None:
    assert cuda_options(Engine("cuda", 1)) == {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    half = for_one_shape(
        [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})], "embedder", "fp16"
    )
    assert half == [("CUDAExecutionProvider", {"use_tf32": "0", "prefer_nhwc": "1"}), ("CPUExecutionProvider", {})]
    assert for_one_shape([("CUDAExecutionProvider", {})], "pnet_canvas", "fp32") == [
        ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "EXHAUSTIVE"})
    ]
    asked = cuda_options(Engine("cuda", 1, gpu_mem_limit_mb=2000, tf32=True))
    assert asked["use_tf32"] == "1"
    assert asked["gpu_mem_limit"] == "2000000000"
