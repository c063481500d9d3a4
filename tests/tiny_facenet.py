"""A tiny embedder in the form of the converted ones: standardisation, convolutions with a scaled residual block,
pooling, a dense layer, the L2 norm. Its weights are random, its answers differ from face to face."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from facenet_convert import metadata, verify
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

NAME = "tiny"
DIMENSION = 16

ABOUT = {
    "format": metadata.FORMAT,
    "source": "a test",
    "source_sha256": "0" * 64,
    "kind": "embedder",
    "name": NAME,
    "preprocessing": "fixed",
    "input_size_px": "160",
    "dimension": str(DIMENSION),
    "parity_max_abs_diff": "0.0",
    "versions": "",
}


def tiny_facenet(
    *, preprocessing: str = "fixed", pads: tuple[int, ...] = (0, 0, 0, 0), **about: str
) -> onnx.ModelProto:
    """The model; ``pads`` are those of its first convolution."""
    graph = _Graph()
    pixels = graph.add("Cast", "image", to=TensorProto.FLOAT)
    if preprocessing == "fixed":
        pixels = graph.add("Mul", graph.add("Sub", pixels, np.float32(127.5)), np.float32(1 / 128))
    else:
        centred = graph.add("Sub", pixels, graph.add("ReduceMean", pixels, axes=[1, 2, 3]))
        deviation = graph.add("Sqrt", graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[1, 2, 3]))
        pixels = graph.add("Div", centred, deviation)
    x = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    x = graph.relu(graph.conv(x, 3, 16, 7, strides=[5, 5], pads=list(pads)))
    x = graph.relu(graph.conv(x, 16, 24, 3, strides=[3, 3]))
    branches = graph.add("Concat", *(graph.relu(graph.conv(x, 24, 8, 1)) for _ in range(2)), axis=1)
    scaled = graph.add("Mul", np.float32(0.17), graph.conv(branches, 16, 24, 1))
    x = graph.add("Relu", graph.add("Add", x, scaled))
    x = graph.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Reshape", x, np.array([-1, 24 * 5 * 5]))
    x = graph.add("MatMul", x, graph.normal(24 * 5 * 5, DIMENSION))
    norm = graph.add("Sqrt", graph.add("ReduceSum", graph.add("Mul", x, x), np.array([1]), keepdims=1))
    model = graph.model(graph.add("Div", x, norm))
    helper.set_model_props(model, {**ABOUT, "preprocessing": preprocessing, **about})
    onnx.checker.check_model(model, full_check=True)
    return model


def calibration(model: str = NAME, threshold: float = 0.5) -> str:
    """A made-up one of a single operating point."""
    rates = {"false_accept_rate": 0.01, "different_pairs": 100, "true_accept_rate": 0.9, "same_pairs": 100}
    return json.dumps(
        {
            "model": model,
            "preprocessing": "fixed",
            "data": "made up",
            "operating_points": [{"name": "best_accuracy", "threshold": threshold, **rates}],
            "probability_map": {"kind": "logistic", "slope": -10.0, "intercept": 5.0},
        }
    )


def write_people(folder: Path, n_people: int = 12, n_crops: int = 4) -> Path:
    """Ready crops in the layout of ``facenet align``: FOLDER/name/name_0001.png, each person in one light and frame."""
    rng = np.random.default_rng(3)
    for person in range(n_people):
        (folder / f"P{person}").mkdir(parents=True)
        window, light = verify.face_window(rng, 160), rng.uniform(0.3, 1.0, 3)
        for number in range(1, n_crops + 1):
            noisy = window * light + rng.normal(0, 4, window.shape)
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(folder / f"P{person}" / f"P{person}_{number:04d}.png")
    return folder


def write_pairs(path: Path, n_people: int = 12) -> Path:
    """An official file of three folds over ``write_people``."""
    lines = []
    for fold in range(3):
        people = [f"P{person}" for person in range(n_people) if person % 3 == fold]
        lines += [f"{name}\t1\t{other}" for name in people for other in (2, 3)]
        lines += [
            f"{name}\t{n}\t{other}\t{n}" for n in (1, 2) for name, other in zip(people, people[::-1], strict=True)
        ]
    path.write_text("\n".join([f"3\t{len(lines) // 6}", *lines]) + "\n")
    return path


class _Graph:
    """A graph under construction; every value is named by its number."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(11)

    def add(self, kind: str, *inputs: "str | np.ndarray | np.generic", **attributes: Any) -> str:
        """A node's output; inputs that are arrays become constants."""
        names = [value if isinstance(value, str) else self._constant(np.asarray(value)) for value in inputs]
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, [name], f"{name}_node", **attributes))
        return name

    def conv(self, x: str, n_in: int, n_out: int, size: int, **attributes: Any) -> str:
        """A convolution with a bias."""
        kernel = self.normal(n_out, n_in, size, size) / np.float32(np.sqrt(n_in * size * size))
        return self.add("Conv", x, kernel, self.normal(n_out) / np.float32(10), **attributes)

    def relu(self, x: str) -> str:
        """Of one value."""
        return self.add("Relu", x)

    def normal(self, *shape: int) -> np.ndarray:
        """Random weights."""
        return self._rng.normal(size=shape).astype(np.float32)

    def model(self, output: str) -> onnx.ModelProto:
        """The whole, from ``image`` to ``embedding``."""
        self._nodes[-1].output[0] = "embedding"
        assert output == self._nodes[-1].name.removesuffix("_node")
        graph = helper.make_graph(
            self._nodes,
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 160, 160, 3])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
            self._constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name
