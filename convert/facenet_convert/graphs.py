"""From a training graph to the inference graph inside it, on the GraphDef: nothing is run.

A released FaceNet graph is cut out of training. Its images come from queues. Every batch norm stands under a
``tf.cond`` on ``phase_train`` in the old form, Switch and Merge, beside the updates of its moving averages. What is
wanted of it is the way from ``input`` to ``embeddings`` that is taken when ``phase_train`` is False.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from facenet_convert.errors import SourceError

INPUT = "input"
OUTPUT = "embeddings"
PHASE_TRAIN = "phase_train"
SIDE_PX = 160

ReadVariable = Callable[[str], np.ndarray]
"""The trained value of a variable, by the name of its node."""

Tensor = tuple[str, int]
"""A node's name and the number of its output."""

_VARIABLES = ("Variable", "VariableV2")
_STATEFUL = re.compile(
    r"^Placeholder|^(Ref)?(Switch|Merge|Enter|Exit|NextIteration)$|^(Stateless)?(If|While|Case)$"
    r"|Variable|^VarHandleOp$|^Assign|Queue|Iterator|Reader|^Random|^PyFunc"
)
"""What must not be left in an inference graph: other inputs, open conditions, anything with a state."""


def inference_graph(graph_def: Any, read: ReadVariable | None = None) -> Any:
    """The nodes between ``input``, now a placeholder of (N, 160, 160, 3) float32, and ``embeddings``, as they
    compute when ``phase_train`` is False; one input, one output, no state.

    Variables become constants by way of ``read``. The given graph is left as it is. Raises SourceError where it is
    no FaceNet graph, or where something else than constants is left that the embedding depends on.
    """
    nodes = {node.name: node for node in graph_def.node}
    missing = {INPUT, OUTPUT} - nodes.keys()
    if missing:
        raise SourceError(f"not a FaceNet graph: it has no node {' and no node '.join(sorted(missing))}")
    nodes |= {INPUT: _placeholder(), PHASE_TRAIN: _constant(PHASE_TRAIN, np.array(False))}
    live = _Resolution(nodes).live(_upstream(nodes, OUTPUT))
    result = tf.compat.v1.GraphDef()
    result.versions.CopyFrom(graph_def.versions)
    for name in _upstream(live, OUTPUT):
        node = live[name]
        if node.op in _VARIABLES and read is not None:
            node = _constant(name, read(name))
        result.node.append(node)
    _check(result)
    return result


class _Resolution:
    """The conditions of a graph being settled: which tensors are dead, and which stand for another one."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        self._nodes = nodes
        self._live: dict[str, Any] = {}
        self._alias: dict[Tensor, Tensor] = {}

    def live(self, order: Iterable[str]) -> dict[str, Any]:
        """Copies of the nodes that run, in ``order``, which puts each after its inputs; they read live tensors
        only, without control inputs, and no Switch or Merge is among them."""
        for name in order:
            node = self._nodes[name]
            controls = [text[1:] for text in node.input if text.startswith("^")]
            inputs = [self._resolve(_tensor(text)) for text in node.input if not text.startswith("^")]
            if not all(self._runs(control) for control in controls):
                continue
            if node.op in ("Merge", "RefMerge"):
                self._merge(name, [tensor for tensor in inputs if tensor is not None])
            elif None not in inputs:
                self._keep(node, [tensor for tensor in inputs if tensor is not None])
        if OUTPUT not in self._live:
            raise SourceError(f"{OUTPUT} is not computed when {PHASE_TRAIN} is False")
        return self._live

    def _keep(self, node: Any, inputs: list[Tensor]) -> None:
        if node.op in ("Switch", "RefSwitch"):
            data, predicate = inputs
            self._alias[node.name, int(self._truth(predicate))] = data
        else:
            self._live[node.name] = _clean(node, inputs)

    def _merge(self, name: str, inputs: list[Tensor]) -> None:
        if len(inputs) > 1:
            raise SourceError(f"{name} has {len(inputs)} live inputs: it does not depend on {PHASE_TRAIN} alone")
        if inputs:
            self._alias[name, 0] = inputs[0]

    def _resolve(self, tensor: Tensor) -> Tensor | None:
        """The live tensor that ``tensor`` stands for; None for a dead one."""
        if tensor in self._alias:
            return self._alias[tensor]
        return tensor if tensor[0] in self._live else None

    def _runs(self, name: str) -> bool:
        return name in self._live or (name, 0) in self._alias or (name, 1) in self._alias

    def _truth(self, predicate: Tensor) -> bool:
        """The value of a condition."""
        node = self._live[predicate[0]]
        while node.op == "Identity":
            node = self._live[_tensor(node.input[0])[0]]
        if node.op != "Const":
            raise SourceError(f"the embedding depends on a condition other than {PHASE_TRAIN}: {node.name}")
        return bool(tf.make_ndarray(node.attr["value"].tensor))


def _upstream(nodes: dict[str, Any], output: str) -> list[str]:
    """The names of the nodes that ``output`` depends on, itself among them, each after its own inputs."""
    order: list[str] = []
    begun: set[str] = set()
    done: set[str] = set()
    stack = [output]
    while stack:
        name = stack[-1]
        if name in done:
            stack.pop()
        elif name in begun:  # all that it needs is done
            order.append(stack.pop())
            done.add(name)
        else:
            begun.add(name)
            if name not in nodes:
                raise SourceError(f"the graph is incomplete: node {name} is missing")
            waiting = [source for source in _all_inputs(nodes[name]) if source not in done]
            if loop := begun.intersection(waiting):
                raise SourceError(f"the graph has a loop at {min(loop)}")
            stack.extend(waiting)
    return order


def _all_inputs(node: Any) -> list[str]:
    return [_tensor(text.lstrip("^"))[0] for text in node.input]


def _tensor(text: str) -> Tensor:
    name, _, index = text.partition(":")
    return name, int(index or 0)


def _clean(node: Any, inputs: list[Tensor]) -> Any:
    """A copy that reads ``inputs``, without places, hints and references."""
    copy = tf.compat.v1.NodeDef()
    copy.CopyFrom(node)
    copy.device = ""
    copy.op = {"RefIdentity": "Identity"}.get(node.op, node.op)
    for key in [key for key in node.attr if key.startswith("_")]:  # colocations with nodes that are gone
        del copy.attr[key]
    del copy.input[:]
    copy.input.extend(f"{name}:{index}" if index else name for name, index in inputs)
    return copy


def _placeholder() -> Any:
    node = tf.compat.v1.NodeDef(name=INPUT, op="Placeholder")
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    node.attr["shape"].shape.CopyFrom(tf.TensorShape([None, SIDE_PX, SIDE_PX, 3]).as_proto())
    return node


def _constant(name: str, value: np.ndarray) -> Any:
    node = tf.compat.v1.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return node


def _check(graph_def: Any) -> None:
    """One placeholder, ``input``; one node that none reads, ``embeddings``; no state."""
    left = [node for node in graph_def.node if _STATEFUL.search(node.op) and node.name != INPUT]
    if any(node.op in _VARIABLES for node in left):
        raise SourceError("the graph holds variables and no values: it is not frozen; convert its checkpoint instead")
    if left:
        some = ", ".join(f"{node.name} ({node.op})" for node in left[:3])
        raise SourceError(f"{len(left)} node(s) that an inference graph cannot hold are left: {some}")
    names = {node.name for node in graph_def.node}
    outputs = names - {source for node in graph_def.node for source in _all_inputs(node)}
    if INPUT not in names or outputs != {OUTPUT}:
        raise SourceError(f"{OUTPUT} does not depend on {INPUT}, or on more than it")
