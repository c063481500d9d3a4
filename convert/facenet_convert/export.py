"""From a TensorFlow function to an ONNX graph with our names: the one place that calls tf2onnx."""

import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import tensorflow as tf
import tf2onnx

from facenet_convert.errors import SourceError

OPSET = 17

Dims = Sequence[str | int]


def to_onnx(
    function: Callable[..., dict[str, Any]], signature: Sequence[Any], dims: dict[str, Dims]
) -> onnx.ModelProto:
    """Export ``function``, whose inputs are the names in ``signature`` and whose outputs are its dict's keys.

    ``dims`` gives every input's and output's dimensions: an int is fixed, a str names a dynamic one.
    Raises SourceError where the exported graph has other inputs, outputs or ranks.
    """
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model: onnx.ModelProto
    with contextlib.redirect_stderr(io.StringIO()):  # TensorFlow's optimiser reports each of its passes there
        model, _ = tf2onnx.convert.from_function(tf.function(function), list(signature), opset=OPSET)
    values = {value.name: value for value in [*model.graph.input, *model.graph.output]}
    if values.keys() != dims.keys():
        raise SourceError(f"the exported graph has inputs and outputs {sorted(values)}, not {sorted(dims)}")
    for name, value in values.items():
        _name_dims(value, dims[name])
    inputs = {spec.name for spec in signature}
    outputs = [values[name] for name in dims if name not in inputs]
    del model.graph.output[:]  # tf.function sorted them by name
    model.graph.output.extend(outputs)
    del model.graph.value_info[:]  # shapes inferred under the old dimension names
    onnx.checker.check_model(model, full_check=True)
    return model


def _name_dims(value: onnx.ValueInfoProto, dims: Dims) -> None:
    shape = value.type.tensor_type.shape
    if shape.dim and len(shape.dim) != len(dims):
        raise SourceError(f"{value.name} has {len(shape.dim)} dimensions, not {len(dims)}")
    del shape.dim[:]
    for dim in dims:
        if isinstance(dim, str):
            shape.dim.add().dim_param = dim
        else:
            shape.dim.add().dim_value = dim
