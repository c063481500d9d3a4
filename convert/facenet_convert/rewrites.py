"""Rewrites of ONNX graphs: those that compute the same with fewer nodes, and the one to half precision.

An embedder is pixels → standardisation → trunk (convolutions, up to the pooling and the one dense layer) → head (L2
norm). What is quantised or halved is in the trunk.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from facenet_convert.errors import SourceError

_DENSE = ("MatMul", "Gemm")


class Links:
    """Who makes and who reads each value of a graph, and the constants in it; as they are when it is made."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.makers = {value: node for node in graph.node for value in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for value in node.input:
                self.readers[value].append(node)

    def array(self, value: str) -> np.ndarray:
        """A constant's numbers."""
        return numpy_helper.to_array(self.constants[value])

    def only_reader(self, value: str, kind: str) -> onnx.NodeProto | None:
        """The node that reads ``value``, if it is the only one, and of this kind."""
        readers = self.readers[value]
        return readers[0] if [node.op_type for node in readers] == [kind] else None

    def after(self, node: onnx.NodeProto) -> set[str]:
        """The outputs of all nodes that depend on ``node``, its own among them."""
        found = set(node.output)
        for other in self.nodes:  # sorted: each after its inputs
            if found.intersection(other.input):
                found.update(other.output)
        return found

    def before(self, node: onnx.NodeProto) -> set[str]:
        """The outputs of all nodes that ``node`` depends on, its own among them."""
        found = set(node.output)
        for other in reversed(self.nodes):
            if found.intersection(other.output):
                found.update(other.input)
        return found


def fold_scales(graph: onnx.GraphProto) -> int:
    """Put each constant factor behind a convolution, as the residual blocks have one, into its kernel and bias;
    returns how many."""
    links = Links(graph)
    folded = 0
    for node in links.nodes:
        factors = [value for value in node.input if value in links.constants and links.array(value).size == 1]
        scaled = [value for value in node.input if value not in links.constants]
        if node.op_type != "Mul" or (len(factors), len(scaled)) != (1, 1) or len(links.readers[scaled[0]]) != 1:
            continue
        convolution = links.makers.get(scaled[0])
        if convolution is None or not _owns_constants(convolution, links):
            continue
        factor = links.array(factors[0]).reshape(())
        for value in convolution.input[1:]:
            _set(links.constants[value], links.array(value) * factor)
        convolution.output[0] = node.output[0]
        graph.node.remove(node)
        folded += 1
    _drop_unused_constants(graph)
    return folded


def fold_standardisation(graph: onnx.GraphProto) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Let the first convolution read the pixels as they are: (v − offset)·scale is what v stands for as a quantised
    number, but for the fraction of the offset, which goes into the bias. Exact where nothing is padded.

    Returns that convolution's input with its scale and zero point, (1,) each; nothing where the graph has another
    beginning, as with ``prewhiten``.
    """
    links = Links(graph)
    chain = [node for node in [links.only_reader("image", "Cast")] if node]
    for kind in ("Sub", "Mul", "Transpose", "Conv"):
        following = links.only_reader(chain[-1].output[0], kind) if chain else None
        chain = [*chain, following] if following else []
    if not chain or not _owns_constants(chain[-1], links) or _pads(chain[-1]) or len(chain[-1].input) != 3:
        return {}
    cast, sub, mul, transpose, convolution = chain
    if sub.input[1] not in links.constants or mul.input[1] not in links.constants:
        return {}
    offset, scale = (links.array(node.input[1]).reshape(()) for node in (sub, mul))
    zero_point = np.asarray(np.rint(offset), np.uint8)
    kernel, bias = (links.array(value) for value in convolution.input[1:])
    shift = (float(zero_point) - float(offset)) * float(scale) * kernel.sum(axis=(1, 2, 3), dtype=np.float64)
    _set(links.constants[convolution.input[2]], bias + shift)
    for node in (cast, sub, mul):
        graph.node.remove(node)
    constants = {"pixel_scale": scale, "pixel_zero_point": zero_point}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    read = helper.make_node("DequantizeLinear", ["image", *constants], [mul.output[0]], "standardise")
    graph.node.insert(0, read)
    _drop_unused_constants(graph)
    return {transpose.output[0]: (scale.reshape(1), zero_point.reshape(1))}


def head(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes behind the dense layer, and its own."""
    links = Links(graph)
    outputs = links.after(_last(links, _DENSE))
    return [node.name for node in links.nodes if outputs.intersection(node.output)]


def halve_trunk(graph: onnx.GraphProto) -> None:
    """Make float16 of what lies between the first convolution and the dense layer, both included. The
    standardisation and the norm stay float32."""
    links = Links(graph)
    first = next((node for node in links.nodes if node.op_type == "Conv"), None)
    if first is None:
        raise SourceError("the model has no convolution: it is no FaceNet")
    trunk = links.after(first) & links.before(_last(links, _DENSE))
    inside = [node for node in links.nodes if trunk.intersection(node.output)]
    for value in dict.fromkeys(value for node in inside for value in node.input):
        if value in links.constants and links.constants[value].data_type == TensorProto.FLOAT:
            constant = numpy_helper.from_array(links.array(value).astype(np.float16), f"{value}_half")
            graph.initializer.append(constant)
            _redirect(value, constant.name, inside)
        elif value not in trunk and value not in links.constants:
            _cast(graph, value, TensorProto.FLOAT16, f"{value}_half", inside)
    outside = [node for node in links.nodes if not trunk.intersection(node.output)]
    for value in sorted(trunk):
        if any(value in node.input for node in outside):
            _cast(graph, value, TensorProto.FLOAT, f"{value}_float", outside)
    del graph.value_info[:]  # their types are of before
    _drop_unused_constants(graph)


def separate(graph: onnx.GraphProto) -> None:
    """Put two Identities behind every node.

    Without its optimiser, ONNX Runtime on a CPU then rounds each value to its type. With none or one, it would go on
    with the float32 that it computes float16 in.
    """
    outputs = {value.name for value in graph.output}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for index, value in enumerate(node.output):
            if value not in outputs:
                node.output[index] = f"{value}_computed"
                way = [node.output[index], f"{value}_rounded", value]
                nodes += [helper.make_node("Identity", [way[step]], [way[step + 1]]) for step in (0, 1)]
    del graph.node[:]
    graph.node.extend([onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes])


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Forget the operator sets that no node is of: ONNX Runtime's tools name all that they know."""
    used = {node.domain for node in model.graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)


def _owns_constants(node: onnx.NodeProto, links: Links) -> bool:
    """Whether it is a convolution whose kernel and bias are constants that nobody else reads."""
    values = node.input[1:]
    return node.op_type == "Conv" and all(v in links.constants and len(links.readers[v]) == 1 for v in values)


def _pads(convolution: onnx.NodeProto) -> bool:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in convolution.attribute}
    return any(attributes.get("pads", [])) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")


def _last(links: Links, kinds: Iterable[str]) -> onnx.NodeProto:
    for node in reversed(links.nodes):
        if node.op_type in kinds:
            return node
    raise SourceError(f"the model has no {' or '.join(kinds)}: it is no FaceNet")


def _set(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))


def _redirect(value: str, to: str, readers: Iterable[onnx.NodeProto]) -> None:
    for node in readers:
        for index, name in enumerate(node.input):
            if name == value:
                node.input[index] = to


def _cast(graph: onnx.GraphProto, value: str, to: int, name: str, readers: list[onnx.NodeProto]) -> None:
    """Give ``readers`` the value in another type, by a Cast just before the first of them."""
    at = min(index for index, node in enumerate(graph.node) if node in readers and value in node.input)
    _redirect(value, name, readers)
    graph.node.insert(at, helper.make_node("Cast", [value], [name], f"cast_{name}", to=to))


def _drop_unused_constants(graph: onnx.GraphProto) -> None:
    used = {value for node in graph.node for value in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
