"""Cutting the inference graph out of a training graph, on graphs of a few nodes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from facenet_convert import graphs
from facenet_convert.errors import SourceError

Body = Callable[[Any, Any], Any]


def a_graph(body: Body) -> Any:
    """A GraphDef whose ``embeddings`` is ``body(input, phase_train)``."""
    with tf.Graph().as_default() as graph:
        images = tf.raw_ops.PlaceholderWithDefault(input=np.zeros((1, 160, 160, 3), np.float32), shape=[1, 160, 160, 3])
        phase_train = tf.compat.v1.placeholder(tf.bool, name="phase_train")
        tf.identity(body(tf.identity(images, "input"), phase_train), "embeddings")
    return graph.as_graph_def()


def conditioned(training: Body, inference: Body) -> Body:
    """One of two bodies by the old ``tf.cond``: Switch and Merge."""

    def body(images: Any, phase_train: Any) -> Any:
        predicate = tf.identity(phase_train)
        off, on = tf.raw_ops.Switch(data=images, pred=predicate)
        return tf.raw_ops.Merge(inputs=[inference(off, predicate), training(on, predicate)])[0]

    return body


def mean(images: Any, _: Any) -> Any:
    return tf.reduce_mean(images, [1, 2])


def variance(images: Any, _: Any) -> Any:
    return tf.math.reduce_variance(images, [1, 2])


def run(graph_def: Any, images: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            return np.asarray(session.run("embeddings:0", {"input:0": images}))


IMAGES = np.random.default_rng(1).random((2, 160, 160, 3), np.float32)


def test_a_condition_is_settled_for_inference_and_any_batch_is_taken() -> None:
    graph_def = a_graph(conditioned(training=variance, inference=mean))
    cut = graphs.inference_graph(graph_def)
    assert {node.op for node in cut.node}.isdisjoint({"Switch", "Merge", "PlaceholderWithDefault"})
    np.testing.assert_allclose(run(cut, IMAGES), IMAGES.mean((1, 2)), rtol=1e-6)


def test_a_condition_inside_a_condition_is_settled() -> None:
    inner = conditioned(training=variance, inference=mean)
    cut = graphs.inference_graph(a_graph(conditioned(training=variance, inference=inner)))
    np.testing.assert_allclose(run(cut, IMAGES), IMAGES.mean((1, 2)), rtol=1e-6)


def test_what_waits_for_a_dead_node_is_dead() -> None:
    def body(images: Any, phase_train: Any) -> Any:
        _, on = tf.raw_ops.Switch(data=phase_train, pred=phase_train)
        with tf.control_dependencies([tf.identity(on)]):
            training = tf.reduce_max(images, [1, 2])
        return tf.raw_ops.Merge(inputs=[mean(images, None), training])[0]

    np.testing.assert_allclose(run(graphs.inference_graph(a_graph(body)), IMAGES), IMAGES.mean((1, 2)), rtol=1e-6)


def test_the_given_graph_is_left_as_it_is() -> None:
    graph_def = a_graph(conditioned(training=variance, inference=mean))
    before = graph_def.SerializeToString(deterministic=True)
    graphs.inference_graph(graph_def)
    assert graph_def.SerializeToString(deterministic=True) == before


def test_a_variable_takes_its_value_from_the_checkpoint_or_is_refused() -> None:
    def body(images: Any, phase_train: Any) -> Any:
        weights = tf.raw_ops.VariableV2(shape=[3, 2], dtype=tf.float32, name="weights")
        return mean(images, phase_train) @ tf.identity(weights)

    graph_def = a_graph(body)
    values = {"weights": np.arange(6, dtype=np.float32).reshape(3, 2)}
    cut = graphs.inference_graph(graph_def, values.__getitem__)
    np.testing.assert_allclose(run(cut, IMAGES), IMAGES.mean((1, 2)) @ values["weights"], rtol=1e-5)
    with pytest.raises(SourceError, match="not frozen"):
        graphs.inference_graph(graph_def)


def another_condition(images: Any, _: Any) -> Any:
    off, on = tf.raw_ops.Switch(data=images, pred=tf.reduce_any(images > 0))
    return tf.raw_ops.Merge(inputs=[off, on])[0]


def another_input(images: Any, _: Any) -> Any:
    return images * tf.compat.v1.placeholder(tf.float32, name="temperature")


def a_queue(images: Any, _: Any) -> Any:
    queue = tf.queue.FIFOQueue(1, [tf.float32], [()])
    return images * queue.dequeue()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(another_condition, "a condition other than phase_train", id="another condition"),
        pytest.param(another_input, "temperature", id="another input"),
        pytest.param(a_queue, "queue", id="a queue"),
        pytest.param(lambda *_: tf.constant([1.0]), "does not depend on input", id="no input"),
        pytest.param(
            lambda images, train: tf.raw_ops.Merge(inputs=[images, images])[0], "2 live inputs", id="no condition"
        ),
        pytest.param(
            lambda images, train: tf.raw_ops.Switch(data=images, pred=train)[1], "not computed", id="training only"
        ),
        pytest.param(
            lambda images, train: tf.cond(train, lambda: images, lambda: -images), "cannot hold", id="a new condition"
        ),
    ],
)
def test_a_graph_that_is_not_settled_by_phase_train_alone_is_refused(body: Body, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        graphs.inference_graph(a_graph(body))


def test_a_graph_with_a_missing_node_or_a_loop_is_refused() -> None:
    graph_def = a_graph(mean)
    (last,) = (node for node in graph_def.node if node.name == "embeddings")
    last.input[0] = "nowhere"
    with pytest.raises(SourceError, match="nowhere is missing"):
        graphs.inference_graph(graph_def)
    last.input[0] = "embeddings"
    with pytest.raises(SourceError, match="loop"):
        graphs.inference_graph(graph_def)
    last.name = "logits"
    with pytest.raises(SourceError, match="no node embeddings"):
        graphs.inference_graph(graph_def)
