"""Builds, in a process of its own, a FaceNet training graph in the form of the published releases.

    python training_graph.py GRAPH OUT DIMENSION BATCH_NORM

The topology and the weights are those of the folded inference graph GRAPH, which is walked node by node through
TensorFlow's v1 API. What ``train_softmax.py`` of davidsandberg/facenet adds is put back: the input queue and
``batch_join``, ref variables, and batch norm and dropout under ``tf.cond(phase_train, …)`` with the updates of the
moving averages. The folded batch norms are unfolded by means and variances drawn at random, so the network's answers
stay the same. BATCH_NORM is ``fused`` (as in 2018) or ``plain`` (as in 2017); a DIMENSION other than GRAPH's gets a
bottleneck drawn at random.

Into OUT go the checkpoint with its ``.meta``, and the ``.pb`` frozen as facenet's ``freeze_graph.py`` does.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow.compat.v1 as tf

EPSILON = 0.001
DECAY = 0.995
SIDE_PX = 160
BOTTLENECK = "InceptionResnetV1/Bottleneck"


class Builder:
    """The graph under construction: the tensors made so far, and what the variables will be set to."""

    def __init__(self, folded: Any, dimension: int, fused: bool, phase_train: Any) -> None:
        self.folded = {node.name: node for node in folded.node}
        self.dimension = dimension
        self.fused = fused
        self.phase_train = phase_train
        self.tensors: dict[str, Any] = {}
        self.values: dict[Any, np.ndarray] = {}
        self.rng = np.random.default_rng(dimension)

    def array(self, name: str) -> np.ndarray:
        """A constant of the folded graph."""
        return np.asarray(tf.make_ndarray(self.folded[name].attr["value"].tensor))

    def variable(self, name: str, value: np.ndarray) -> Any:
        """A ref variable that will hold ``value``."""
        made = tf.get_variable(name, value.shape, tf.float32, tf.zeros_initializer(), use_resource=False)
        self.values[made] = value.astype(np.float32)
        return made

    def batch_norm(self, x: Any, scope: str, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> Any:
        """slim's batch norm without gamma, ``updates_collections=None``, under two conditions or one."""
        offset = self.variable(f"{scope}/beta", beta)
        averages = [
            self.variable(f"{scope}/moving_{name}", value) for name, value in [("mean", mean), ("variance", variance)]
        ]
        with tf.name_scope(f"{scope}/"):
            return (self._fused if self.fused else self._plain)(x, offset, averages)

    def _fused(self, x: Any, offset: Any, averages: list[Any]) -> Any:
        scale = tf.ones([x.shape[-1]], name="Const")
        y, *moments = tf.cond(
            self.phase_train,
            lambda: tf.nn.fused_batch_norm(x, scale, offset, epsilon=EPSILON),
            lambda: tf.nn.fused_batch_norm(x, scale, offset, *averages, epsilon=EPSILON, is_training=False),
        )
        return tf.cond(self.phase_train, lambda: _updated(averages, moments, [y])[0], lambda: y)

    def _plain(self, x: Any, offset: Any, averages: list[Any]) -> Any:
        moments = tf.nn.moments(x, list(range(x.shape.rank - 1)))
        mean, variance = tf.cond(
            self.phase_train, lambda: _updated(averages, moments, moments), lambda: [tf.identity(a) for a in averages]
        )
        return tf.nn.batch_normalization(x, mean, variance, offset, None, EPSILON)

    def convolution(self, bias_add: Any, node: Any) -> Any:
        """A convolution with the scale that its folded batch norm will divide out again."""
        kernel, bias = self.array(node.input[1]), self.array(bias_add.input[1])
        conditioned = "/BatchNorm/" in bias_add.name
        mean, variance = self.rng.uniform(-1, 1, bias.shape), 10 ** self.rng.uniform(-2, 1, bias.shape)
        deviation = np.sqrt(variance + EPSILON)
        weights = self.variable(node.input[1], kernel * deviation if conditioned else kernel)
        strides, padding = list(node.attr["strides"].list.i), node.attr["padding"].s.decode()
        y = tf.nn.conv2d(self._tensor(node.input[0]), weights, strides, padding, name=node.name)
        if conditioned:
            scope = bias_add.name.split("/cond/")[0]
            return self.batch_norm(y, scope, bias + mean / deviation, mean, variance)
        return tf.nn.bias_add(y, self.variable(bias_add.input[1], bias), name=bias_add.name)

    def bottleneck(self, x: Any) -> Any:
        """Dropout, the fully connected layer and its batch norm."""
        weights = self.array(f"{BOTTLENECK}/weights")
        names = ("beta", "moving_mean", "moving_variance")
        statistics = [self.array(f"{BOTTLENECK}/BatchNorm/{name}") for name in names]
        if self.dimension != weights.shape[1]:
            weights = self.rng.normal(0, 0.05, (len(weights), self.dimension))
            beta, mean = self.rng.normal(0, 0.1, (2, self.dimension))
            statistics = [beta, mean, 10 ** self.rng.uniform(-1, 1, self.dimension)]
        with tf.name_scope("InceptionResnetV1/Logits/Dropout/"):
            x = tf.cond(self.phase_train, lambda: tf.nn.dropout(x, rate=0.2), lambda: tf.identity(x))
        x = tf.matmul(x, self.variable(f"{BOTTLENECK}/weights", weights), name=f"{BOTTLENECK}/MatMul")
        scope = f"{BOTTLENECK}/BatchNorm"
        if not self.fused:
            return self.batch_norm(x, scope, *statistics)
        y = self.batch_norm(tf.reshape(x, [-1, 1, 1, self.dimension]), scope, *statistics)
        return tf.reshape(y, tf.shape(x))

    def network(self, image: Any) -> Any:
        """(N, 160, 160, 3) → the unscaled embedding (N, dimension)."""
        self.tensors["input"] = image
        for node in list(self.folded.values()):
            if node.op == "Reshape":  # the flattening one: from here on the widths are ours
                x = self._tensor(node.input[0])
                flat = tf.reshape(x, tf.stack([tf.shape(x)[0], -1]), name=node.name)
                flat.set_shape([None, np.prod(x.shape[1:])])
                return self.bottleneck(flat)
            self._tensor(node.name)
        raise AssertionError("no flattening Reshape")

    def _tensor(self, name: str) -> Any:
        """The output of a node of the folded graph, which is not sorted, made anew where it is not yet."""
        name = name.split(":")[0]
        if name not in self.tensors:
            node = self.folded[name]
            self.tensors[name] = self.array(name) if node.op == "Const" else self._made(node)
        return self.tensors[name]

    def _made(self, node: Any) -> Any:
        if node.op == "BiasAdd":
            return self.convolution(node, self.folded[node.input[0]])
        makers: dict[str, Callable[..., Any]] = {
            "Relu": lambda x: tf.nn.relu(x, name=node.name),
            "Add": lambda x, y: tf.add(x, y, name=node.name),
            "Mul": lambda scale, x: tf.multiply(scale, x, name=node.name),
            "ConcatV2": lambda *xs: tf.concat(xs[:-1], 3, name=node.name),
            "MaxPool": lambda x: _pool(tf.nn.max_pool, node, x),
            "AvgPool": lambda x: _pool(tf.nn.avg_pool, node, x),
            "Conv2D": lambda *_: None,  # made with the BiasAdd that its batch norm was folded into
        }
        return makers[node.op](*(self._tensor(name) for name in node.input))


def _updated(averages: list[Any], moments: Any, results: Any) -> list[Any]:
    """``results`` once the moving averages have been moved towards the moments of this batch."""
    pairs = zip(averages, moments, strict=True)
    updates = [tf.assign_sub(average, (average - moment) * (1 - DECAY)) for average, moment in pairs]
    with tf.control_dependencies(updates):
        return [tf.identity(result) for result in results]


def _pool(pool: Callable[..., Any], node: Any, x: Any) -> Any:
    size, strides = list(node.attr["ksize"].list.i), list(node.attr["strides"].list.i)
    return pool(x, size, strides, node.attr["padding"].s.decode(), name=node.name)


def input_pipeline() -> tuple[Any, Any]:
    """Image and label batches from a queue of paths, as facenet's ``create_input_pipeline`` makes them."""
    batch_size = tf.placeholder(tf.int32, name="batch_size")
    paths = tf.placeholder(tf.string, [None, 1], name="image_paths")
    labels = tf.placeholder(tf.int32, [None, 1], name="labels")
    control = tf.placeholder(tf.int32, [None, 1], name="control")
    queue = tf.FIFOQueue(2000, [tf.string, tf.int32, tf.int32], [(1,), (1,), (1,)])
    queue.enqueue_many([paths, labels, control], name="enqueue_op")
    batches = []
    for _ in range(4):
        path, label, flags = queue.dequeue()
        pixels = tf.cast(tf.image.decode_jpeg(tf.read_file(path[0]), 3), tf.float32)
        pixels = tf.image.resize_image_with_crop_or_pad(pixels, SIDE_PX, SIDE_PX)
        image = tf.cond(
            tf.equal(tf.mod(tf.floor_div(flags[0], 8), 2), 1),
            lambda pixels=pixels: (pixels - 127.5) / 128.0,
            lambda pixels=pixels: tf.image.per_image_standardization(pixels),
        )
        image.set_shape((SIDE_PX, SIDE_PX, 3))
        batches.append([[image], label])
    shapes = [(SIDE_PX, SIDE_PX, 3), ()]
    images, integers = tf.train.batch_join(
        batches, batch_size, capacity=1600, enqueue_many=True, shapes=shapes, allow_smaller_final_batch=True
    )
    return images, integers


def freeze(session: Any) -> Any:
    """The frozen GraphDef, its ref operations rewritten as facenet's ``freeze_graph.py`` does."""
    graph_def = session.graph.as_graph_def()
    for node in graph_def.node:
        if node.op == "RefSwitch":
            node.op = "Switch"
            for index, name in enumerate(node.input):
                if "moving_" in name:
                    node.input[index] = f"{name}/read"
        elif node.op in ("AssignSub", "AssignAdd"):
            node.op = node.op.removeprefix("Assign")
            node.attr.pop("use_locking", None)
    return tf.graph_util.convert_variables_to_constants(session, graph_def, ["embeddings", "label_batch"])


def main(graph: Path, out: Path, dimension: int, batch_norm: str) -> None:
    """Build, then save in both forms."""
    tf.disable_eager_execution()
    tf.disable_control_flow_v2()
    tf.disable_resource_variables()
    folded = tf.GraphDef.FromString(graph.read_bytes())
    images, labels = input_pipeline()
    phase_train = tf.placeholder(tf.bool, name="phase_train")
    image = tf.identity(tf.identity(images, "image_batch"), "input")
    tf.identity(labels, "label_batch")
    builder = Builder(folded, dimension, batch_norm == "fused", phase_train)
    tf.nn.l2_normalize(builder.network(image), 1, 1e-10, name="embeddings")
    saver = tf.train.Saver(list(builder.values), max_to_keep=3)
    with tf.Session() as session:
        fed = {variable.initializer.inputs[1]: value for variable, value in builder.values.items()}
        session.run([variable.initializer for variable in builder.values], fed)
        out.mkdir(parents=True)
        saver.save(session, str(out / f"model-{out.name}.ckpt"), global_step=90, write_meta_graph=False)
        saver.export_meta_graph(str(out / f"model-{out.name}.meta"))
        (out / f"{out.name}.pb").write_bytes(freeze(session).SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
