"""The networks in the reference implementation's own form, for verification only.

MTCNN as davidsandberg/facenet runs it (``align/detect_face.py``): the column-major kernels of ``det1-3.npy``,
images fed as (N, width, height, channels), outputs transposed back, softmax by hand. It shares no code with
``facenet_convert.mtcnn``, whose export it judges.

FaceNet as its authors published it, behind NumPy's standardisation of the pixels. It is the untouched graph, in
training form where the file has it so. Of a Keras file, it is the layers one by one as its ``model_config`` has them.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from facenet_convert.errors import SourceError
from facenet_convert.keras_file import KerasFile

_POOLS = {
    "pnet": [(2, "SAME"), None, None],
    "rnet": [(3, "SAME"), (3, "VALID"), None],
    "onet": [(3, "SAME"), (3, "VALID"), (2, "SAME"), None],
}


def mtcnn(name: str, weights: list[np.ndarray], image: np.ndarray) -> dict[str, np.ndarray]:
    """Run pnet, rnet or onet on (N, h, w, 3) pixels; outputs named and shaped as the exported graph's."""
    queue = iter(weights)
    x = tf.constant((image.astype(np.float32) - 127.5) / 128.0)
    x = tf.transpose(x, [0, 2, 1, 3])  # N, W, H, C
    for pool in _POOLS[name]:
        kernel, bias, slope = next(queue), next(queue), next(queue)
        column_major = np.swapaxes(kernel, 0, 1)  # the packaged kernels are swapped against det1-3.npy
        x = tf.nn.conv2d(x, column_major, strides=[1, 1, 1, 1], padding="VALID") + bias
        x = _parametric_relu(x, slope)
        if pool is not None:
            size, padding = pool
            x = tf.nn.max_pool(x, [1, size, size, 1], [1, 2, 2, 1], padding=padding)
    if name == "pnet":
        regression, probability = (
            tf.transpose(tf.nn.conv2d(x, next(queue), [1, 1, 1, 1], "VALID") + next(queue), [0, 2, 1, 3])
            for _ in range(2)
        )
        return {"probability": _softmax(probability)[..., 1].numpy(), "regression": regression.numpy()}
    x = tf.reshape(x, [x.shape[0], -1])
    x = _parametric_relu(tf.matmul(x, next(queue)) + next(queue), next(queue))
    heads = ["regression", "probability"] if name == "rnet" else ["regression", "landmarks", "probability"]
    outputs = {head: (tf.matmul(x, next(queue)) + next(queue)) for head in heads}
    outputs["probability"] = _softmax(outputs["probability"])[:, 1]
    if name == "onet":
        xs, ys = outputs["landmarks"][:, 0:5], outputs["landmarks"][:, 5:10]
        outputs["landmarks"] = tf.stack([xs, ys], axis=-1)
    return {head: value.numpy() for head, value in outputs.items()}


class KerasFaceNet:
    """A Keras file, layer by layer as ``model_config`` describes it, then the L2 norm, which is outside of it.

    Shares no code with ``inception_resnet_v1``, whose export it judges. A Lambda's bytecode is never run: all of them
    are a + scale·b, with the scale among the layer's arguments.
    """

    def __init__(self, file: KerasFile, preprocessing: str) -> None:
        self._file = file
        self._standardise = STANDARDISATIONS[preprocessing]

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """(N, 160, 160, 3) pixels → embedding (N, dimension). Raises SourceError for a layer that it does not know."""
        pixels = np.stack([self._standardise(row.astype(np.float64)) for row in image])
        values: dict[str, Any] = {}
        for layer in self._file.layers:
            inputs = [values[source[0]] for node in layer["inbound_nodes"] for source in node]
            values[layer["name"]] = self._layer(layer, inputs or [tf.constant(pixels, tf.float32)])
        vectors = values[self._file.layers[-1]["name"]].numpy().astype(np.float64)
        return {"embedding": vectors / np.linalg.norm(vectors, axis=1, keepdims=True)}

    def _layer(self, layer: dict[str, Any], inputs: list[Any]) -> Any:
        about, x = layer["config"], inputs[0]
        match layer["class_name"]:
            case "InputLayer" | "Dropout":
                return x
            case "Conv2D":
                x = tf.nn.conv2d(x, self._tensor(layer, "kernel"), about["strides"], about["padding"].upper())
                return x + self._tensor(layer, "bias") if about["use_bias"] else x
            case "BatchNormalization":
                names = ("moving_mean", "moving_variance", "beta")
                mean, variance, beta = (self._tensor(layer, name) for name in names)
                return (x - mean) / tf.sqrt(variance + about["epsilon"]) + beta
            case "Activation" if about["activation"] == "relu":
                return tf.maximum(x, 0.0)
            case "MaxPooling2D":
                return tf.nn.max_pool(x, about["pool_size"], about["strides"], about["padding"].upper())
            case "Concatenate":
                return tf.concat(inputs, about["axis"])
            case "Lambda":
                return x + about["arguments"]["scale"] * inputs[1]
            case "GlobalAveragePooling2D":
                return tf.reduce_mean(x, [1, 2])
            case "Dense":
                return tf.matmul(x, self._tensor(layer, "kernel"))
        raise SourceError(f"{layer['name']} is a layer that FaceNet does not have: {layer['class_name']}")

    def _tensor(self, layer: dict[str, Any], name: str) -> np.ndarray:
        return self._file.weights[f"{layer['name']}/{name}"]


class FaceNet:
    """A published FaceNet graph, run as it is, one image at a time: a file's batch size may be frozen to 1."""

    def __init__(self, session: Any, preprocessing: str) -> None:
        self._session = session
        self._standardise = STANDARDISATIONS[preprocessing]
        names = {operation.name for operation in session.graph.get_operations()}
        self._switches = {"phase_train:0": False} if "phase_train" in names else {}

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """(N, 160, 160, 3) pixels → embedding (N, dimension)."""
        rows = [self._standardise(row.astype(np.float64)).astype(np.float32)[None] for row in image]
        answers = [self._session.run("embeddings:0", {"input:0": row, **self._switches}) for row in rows]
        return {"embedding": np.concatenate(answers)}


def frozen(graph_def: Any) -> Any:
    """A session on a frozen graph."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    return tf.compat.v1.Session(graph=graph)


def restored(meta: Path, prefix: Path) -> Any:
    """A session on a training graph whose variables are restored from a checkpoint; raises SourceError."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it finds the queues of the graph out of date
    with tf.Graph().as_default() as graph:
        session = tf.compat.v1.Session(graph=graph)
        try:
            saver = tf.compat.v1.train.import_meta_graph(str(meta), clear_devices=True)
            saver.restore(session, str(prefix))
        except (tf.errors.OpError, ValueError) as error:
            raise SourceError(f"TensorFlow cannot restore {prefix.name}: {str(error).splitlines()[0]}") from error
    return session


def prewhiten(pixels: np.ndarray) -> np.ndarray:
    """facenet.py's ``prewhiten`` of one image."""
    deviation = np.maximum(np.std(pixels), 1.0 / np.sqrt(pixels.size))
    return np.asarray((pixels - np.mean(pixels)) / deviation)


STANDARDISATIONS = {"fixed": lambda pixels: (pixels - 127.5) / 128.0, "prewhiten": prewhiten}
"""One image's (H, W, 3) float64 pixels as the network was trained on, by preprocessing id."""


def _parametric_relu(x: tf.Tensor, slope: np.ndarray) -> tf.Tensor:
    return tf.maximum(x, 0.0) + slope * tf.minimum(x, 0.0)


def _softmax(logits: tf.Tensor) -> tf.Tensor:
    exponentials = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    return exponentials / tf.reduce_sum(exponentials, axis=-1, keepdims=True)
