"""FaceNet: from a published TensorFlow graph to one whose input is uint8 pixels and whose batch is free.

Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering" (2015); the networks are
davidsandberg/facenet's Inception-ResNet-v1 releases.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from facenet_convert.errors import SourceError
from facenet_convert.graphs import SIDE_PX, inference_graph
from facenet_convert.releases import Release
from facenet_convert.sources import ReleaseFiles

INPUT_SIZE_PX = SIDE_PX


def parse(data: bytes) -> Any:
    """The GraphDef in the bytes of a frozen graph; raises SourceError."""
    return _parsed(tf.compat.v1.GraphDef(), data)


def read(files: ReleaseFiles) -> Any:
    """The inference graph of a release, its variables made constants; raises SourceError."""
    data = files.graph.read_bytes()
    if files.form == "pb":
        return inference_graph(parse(data))
    graph_def = _parsed(tf.compat.v1.MetaGraphDef(), data).graph_def
    try:
        return inference_graph(graph_def, tf.train.load_checkpoint(str(files.prefix)).get_tensor)
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        raise SourceError(f"cannot read the checkpoint {files.prefix.name}: {str(error).splitlines()[0]}") from error


def measured(release: Release, graph_def: Any) -> Release:
    """The release with the dimension that its inference graph has; raises SourceError where another was known."""
    try:
        with tf.Graph().as_default():
            (embedding,) = tf.import_graph_def(graph_def, return_elements=["embeddings:0"])
    except ValueError as error:
        raise SourceError(f"not a graph that TensorFlow can run: {str(error).splitlines()[0]}") from error
    dimension = embedding.shape[-1] if embedding.shape.rank == 2 else None
    if dimension is None:
        raise SourceError(f"embeddings has the shape {embedding.shape}, not (N, dimension)")
    if release.dimension not in (0, dimension):
        raise SourceError(
            f"this is not {release.name}: its embeddings have {dimension} dimensions, that release's "
            f"{release.dimension}. If it is another model, give it another name with --name"
        )
    return replace(release, dimension=dimension)


def free_batch(graph_def: Any) -> Any:
    """A copy of the graph in which the batch size, frozen to 1 in the target shapes of Reshape nodes, is dynamic."""
    freed = tf.compat.v1.GraphDef()
    freed.CopyFrom(graph_def)
    nodes = {node.name: node for node in freed.node}
    for node in freed.node:
        target = nodes[node.input[1].split(":")[0]] if node.op == "Reshape" else None
        if target is not None and target.op == "Const":
            shape = tf.make_ndarray(target.attr["value"].tensor)
            if shape[0] == 1:
                width = _flat_width(node.name, nodes) if shape[-1] == -1 else shape[-1]
                free = np.array([-1, *shape[1:-1], width], shape.dtype)
                target.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(free))
    return freed


def network(graph_def: Any, pixels: Any) -> Any:
    """Standardised pixels (N, 160, 160, 3) float32 → embeddings (N, dimension), unit L2 norm."""
    (embedding,) = tf.import_graph_def(graph_def, {"input": pixels}, ["embeddings:0"], name="facenet")
    return embedding


def signature() -> Any:
    """The TensorSpec of the one input: pixels, RGB, named ``image``."""
    return tf.TensorSpec((None, INPUT_SIZE_PX, INPUT_SIZE_PX, 3), tf.uint8, "image")


def fixed(image: Any) -> Any:
    """(N, H, W, 3) uint8 → float32 in −0.996…0.996."""
    return (tf.cast(image, tf.float32) - 127.5) * 0.0078125


def prewhiten(image: Any) -> Any:
    """(N, 160, 160, 3) uint8 → float32 of mean 0 and population standard deviation 1 in each image; the deviation
    is floored at 1/√n over the n values of an image, for images of one colour."""
    pixels = tf.cast(image, tf.float32)
    centred = pixels - _image_mean(pixels)
    # A float32 mean near 200 is off by 1e-5, which the floor of the deviation would make a shift by 0.003.
    centred -= _image_mean(centred)
    deviation = tf.sqrt(_image_mean(tf.square(centred)))
    return centred / tf.maximum(deviation, 1.0 / np.sqrt(INPUT_SIZE_PX * INPUT_SIZE_PX * 3))


STANDARDISATIONS = {"fixed": fixed, "prewhiten": prewhiten}
"""By preprocessing id."""


def _image_mean(values: Any) -> Any:
    """The mean of each image, rows first: one long float32 sum would lose 2e-5 of a deviation."""
    return tf.reduce_mean(tf.reduce_mean(values, [2, 3], keepdims=True), [1], keepdims=True)


def _parsed(message: Any, data: bytes) -> Any:
    try:
        message.ParseFromString(data)
    except Exception as error:
        raise SourceError(f"not a TensorFlow graph, or a truncated one: {error}") from error
    return message


def _flat_width(reshape: str, nodes: dict[str, Any]) -> int:
    """The row count of the weights behind a flattening Reshape: a shape may hold only one −1."""
    for node in nodes.values():
        if node.op == "MatMul" and node.input[0] == reshape:
            return int(tf.make_ndarray(nodes[node.input[1]].attr["value"].tensor).shape[0])
    raise SourceError(f"cannot free the batch size: nothing multiplies the output of {reshape}")
