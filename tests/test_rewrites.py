"""Graphs rewritten for lower precision: what must stay the same, and what must not stay."""

from collections import Counter

import numpy as np
import onnx
import pytest
from facenet_convert import rewrites, verify
from facenet_convert.errors import SourceError
from onnx import TensorProto, helper
from tiny_facenet import tiny_facenet

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)


def embeddings(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return verify.onnx_runner(model)(IMAGES)["embedding"]


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_a_scale_behind_a_convolution_goes_into_its_weights() -> None:
    model = tiny_facenet()
    expected, before = embeddings(model), kinds(model)
    assert rewrites.fold_scales(model.graph) == 1
    np.testing.assert_allclose(embeddings(model), expected, atol=1e-6)
    assert kinds(model)["Mul"] == before["Mul"] - 1


def test_a_scale_stays_where_another_node_reads_what_it_scales() -> None:
    model = tiny_facenet()
    (scale,) = (node for node in model.graph.node if node.op_type == "Mul" and node.input[0].startswith("constant"))
    (addition,) = (node for node in model.graph.node if node.op_type == "Add")
    addition.input[0] = scale.input[1]
    expected = embeddings(model)
    assert rewrites.fold_scales(model.graph) == 0
    np.testing.assert_array_equal(embeddings(model), expected)


def test_the_standardisation_becomes_how_pixels_are_read() -> None:
    model = tiny_facenet()
    expected = embeddings(model)
    ((scale, zero_point),) = rewrites.fold_standardisation(model.graph).values()
    assert (float(scale[0]), int(zero_point[0])) == (1 / 128, 128)
    np.testing.assert_allclose(embeddings(model), expected, atol=1e-6)
    assert not kinds(model).keys() & {"Cast", "Sub"}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(tiny_facenet(preprocessing="prewhiten"), id="prewhiten"),
        pytest.param(tiny_facenet(pads=(0, 0, 1, 1)), id="padded: its zeros would change"),
    ],
)
def test_another_beginning_is_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    assert rewrites.fold_standardisation(model.graph) == {}
    assert model.SerializeToString() == before


@pytest.mark.parametrize("preprocessing", ["fixed", "prewhiten"])
def test_only_the_trunk_is_halved(preprocessing: str) -> None:
    model = tiny_facenet(preprocessing=preprocessing)
    expected = embeddings(model)
    rewrites.halve_trunk(model.graph)
    found = embeddings(model)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    assert {types[name] for name in weights} == {TensorProto.FLOAT16}
    casts = [helper.get_attribute_value(node.attribute[0]) for node in model.graph.node if node.op_type == "Cast"]
    assert casts == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT]  # the pixels; into the trunk; out of it


def test_a_halved_model_is_judged_with_every_value_rounded() -> None:
    # 0.3 + 4096 − 4096 is 0 in float16, whose steps there are 4; float32 keeps most of 0.3.
    nodes = [helper.make_node("Add", ["image", "c"], ["sum"]), helper.make_node("Sub", ["sum", "c"], ["embedding"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1]) for name in ("image", "embedding")]
    constant = helper.make_tensor("c", TensorProto.FLOAT16, [1], [4096.0])
    graph = helper.make_graph(nodes, "rounding", ports[:1], ports[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rewrites.separate(model.graph)
    (found,) = verify.onnx_runner(model, optimised=False)(np.array([0.3], np.float16)).values()
    assert found == [0]


def test_what_has_no_dense_layer_is_refused() -> None:
    model = tiny_facenet()
    for node in [node for node in model.graph.node if node.op_type in ("MatMul", "Conv")]:
        node.op_type = "Identity"
    with pytest.raises(SourceError, match="no FaceNet"):
        rewrites.head(model.graph)
    with pytest.raises(SourceError, match="no FaceNet"):
        rewrites.halve_trunk(model.graph)
