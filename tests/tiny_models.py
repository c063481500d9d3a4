"""Models of the right form that compute nothing: tiny, but real ONNX in a real manifest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
from facenet_convert import golden
from facenet_server.models.contract import PORTS
from onnx import TensorProto, helper

METADATA = {
    "format": "4",
    "source": "a test",
    "source_sha256": "0" * 64,
    "preprocessing": "fixed",
    "parity_max_abs_diff": "0.0",
}
DTYPES = {
    "tensor(uint8)": TensorProto.UINT8,
    "tensor(int32)": TensorProto.INT32,
    "tensor(float)": TensorProto.FLOAT,
}


def tiny_model(kind: str, *, outputs: dict[str, list[int | None]] | None = None, **metadata: str) -> bytes:
    """A model of the right form that answers zeros for as many rows as it gets."""
    if kind == "embedder":
        inputs: dict[str, Any] = {"image": ("tensor(uint8)", (None, 160, 160, 3))}
        shapes: dict[str, list[int | None]] = {"embedding": [None, 8]}
        metadata = {"name": "tiny", "dimension": "8", "input_size_px": "160", **metadata}
    else:
        inputs = dict(PORTS[kind].inputs)
        shapes = {name: list(shape) for name, shape in PORTS[kind].outputs.items()}
        metadata = {"name": f"tiny-{kind}", "input_size_px": str(inputs["image"][1][1] or 0), **metadata}
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
    ]
    initializers = [helper.make_tensor("first", TensorProto.INT64, [1], [0])]
    for name, dims in (outputs or shapes).items():
        rest = helper.make_tensor(f"{name}_rest", TensorProto.INT64, [len(dims) - 1], [dim or 1 for dim in dims[1:]])
        initializers.append(rest)
        nodes.append(helper.make_node("Concat", ["rows", rest.name], [f"{name}_shape"], axis=0))
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}_shape"], [name]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, DTYPES[dtype], shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (outputs or shapes).items()],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {**METADATA, "golden": golden.answer(model), "kind": kind, **metadata})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """The files in the folder, with their manifest; the folder."""
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps({"format": "1", "files": listed}))
    return folder
