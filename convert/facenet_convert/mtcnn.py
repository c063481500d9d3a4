"""MTCNN's three networks as TensorFlow functions over ordinary images, ready for export.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks" (2016),
with the weights of davidsandberg/facenet's ``det1-3.npy``. Those were trained column-major: the reference
feeds images with height and width swapped. The packaged weights have every convolution kernel swapped back
already; what is left is the order of the rows in the first dense layer of R-Net and O-Net, which is changed
here, so that the exported graphs take plain (batch, height, width, RGB).
"""

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import joblib.numpy_pickle
import lz4.frame
import numpy as np
import tensorflow as tf

from facenet_convert.errors import SourceError

Weights = list[np.ndarray]
Network = Callable[[Any, Weights], dict[str, Any]]

SHAPES: dict[str, Sequence[tuple[int, ...]]] = {
    "pnet": (
        *((3, 3, 3, 10), (10,), (1, 1, 10)),
        *((3, 3, 10, 16), (16,), (1, 1, 16)),
        *((3, 3, 16, 32), (32,), (1, 1, 32)),
        *((1, 1, 32, 4), (4,), (1, 1, 32, 2), (2,)),
    ),
    "rnet": (
        *((3, 3, 3, 28), (28,), (1, 1, 28)),
        *((3, 3, 28, 48), (48,), (1, 1, 48)),
        *((2, 2, 48, 64), (64,), (1, 1, 64)),
        *((576, 128), (128,), (128,)),
        *((128, 4), (4,), (128, 2), (2,)),
    ),
    "onet": (
        *((3, 3, 3, 32), (32,), (1, 1, 32)),
        *((3, 3, 32, 64), (64,), (1, 1, 64)),
        *((3, 3, 64, 64), (64,), (1, 1, 64)),
        *((2, 2, 64, 128), (128,), (1, 1, 128)),
        *((1152, 256), (256,), (256,)),
        *((256, 4), (4,), (256, 10), (10,), (256, 2), (2,)),
    ),
}
"""The arrays of each file, in order: per layer kernel, bias, PReLU slope; at last the heads: box regression,
landmarks (O-Net), probability."""

SIDES_PX = {"pnet": 0, "rnet": 24, "onet": 48}
"""The sides of the square inputs; 0: any height and width."""

_ALLOWED = {
    ("joblib.numpy_pickle", "NumpyArrayWrapper"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
}


class _ArraysOnly(joblib.numpy_pickle.NumpyUnpickler):  # type: ignore[misc]  # joblib has no types
    """joblib's reader, unable to name anything but plain arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def parse(name: str, data: bytes) -> Weights:
    """The arrays of one packaged weight file, ``name`` being pnet, rnet or onet; shapes as in SHAPES.

    Raises SourceError where the file holds anything else.
    """
    try:
        file = io.BytesIO(lz4.frame.decompress(data))
        arrays: Weights = _ArraysOnly("", file, ensure_native_byte_order=True).load()
    except Exception as error:  # a pickle machine fails in any way on foreign bytes
        raise SourceError(f"{name}: not a file of MTCNN weights: {error}") from error
    found = [np.shape(array) for array in arrays] if isinstance(arrays, list) else type(arrays).__name__
    if found != list(SHAPES[name]):
        raise SourceError(f"{name}: expected arrays of shapes {list(SHAPES[name])}, found {found}")
    return arrays


def signature(name: str) -> Any:
    """The TensorSpec of a network's one input: pixels in 0…255, RGB, named ``image``."""
    if name == "pnet":
        return tf.TensorSpec((None, None, None, 3), tf.uint8, "image")
    side = SIDES_PX[name]
    return tf.TensorSpec((None, side, side, 3), tf.float32, "image")


def pnet(image: Any, weights: Weights) -> dict[str, Any]:
    """(N, h, w, 3) uint8 → probability (N, h', w'), regression (N, h', w', 4), h' = ⌈(h − 2) / 2⌉ − 4."""
    x = _conv_prelu(_normalise(image), weights[0:3])
    x = tf.nn.max_pool2d(x, 2, 2, "SAME")
    x = _conv_prelu(x, weights[3:6])
    x = _conv_prelu(x, weights[6:9])
    regression = tf.nn.bias_add(tf.nn.conv2d(x, weights[9], 1, "VALID"), weights[10])
    logits = tf.nn.bias_add(tf.nn.conv2d(x, weights[11], 1, "VALID"), weights[12])
    return {"probability": tf.nn.softmax(logits)[..., 1], "regression": regression}


def rnet(image: Any, weights: Weights) -> dict[str, Any]:
    """(N, 24, 24, 3) float32 in 0…255 → probability (N,), regression (N, 4)."""
    x = _conv_prelu(_normalise(image), weights[0:3])
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    x = _conv_prelu(x, weights[3:6])
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    x = _conv_prelu(x, weights[6:9])  # (N, 3, 3, 64)
    x = _dense_prelu(tf.reshape(x, (-1, 576)), _rows_to_hwc(weights[9], 3, 3, 64), weights[10:12])
    regression = x @ weights[12] + weights[13]
    return {"probability": tf.nn.softmax(x @ weights[14] + weights[15])[:, 1], "regression": regression}


def onet(image: Any, weights: Weights) -> dict[str, Any]:
    """(N, 48, 48, 3) float32 in 0…255 → probability (N,), regression (N, 4), landmarks (N, 5, 2) as x, y
    in fractions of the window."""
    x = _conv_prelu(_normalise(image), weights[0:3])
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    x = _conv_prelu(x, weights[3:6])
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    x = _conv_prelu(x, weights[6:9])
    x = tf.nn.max_pool2d(x, 2, 2, "SAME")
    x = _conv_prelu(x, weights[9:12])  # (N, 3, 3, 128)
    x = _dense_prelu(tf.reshape(x, (-1, 1152)), _rows_to_hwc(weights[12], 3, 3, 128), weights[13:15])
    regression = x @ weights[15] + weights[16]
    points = tf.reshape(x @ weights[17] + weights[18], (-1, 2, 5))  # the five x, then the five y
    return {
        "probability": tf.nn.softmax(x @ weights[19] + weights[20])[:, 1],
        "regression": regression,
        "landmarks": tf.transpose(points, (0, 2, 1)),
    }


NETWORKS: dict[str, Network] = {"pnet": pnet, "rnet": rnet, "onet": onet}


def _normalise(image: Any) -> Any:
    return (tf.cast(image, tf.float32) - 127.5) * 0.0078125


def _conv_prelu(x: Any, layer: Weights) -> Any:
    kernel, bias, slope = layer
    return _prelu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "VALID"), bias), slope)


def _dense_prelu(x: Any, matrix: np.ndarray, layer: Weights) -> Any:
    bias, slope = layer
    return _prelu(x @ matrix + bias, slope)


def _prelu(x: Any, slope: np.ndarray) -> Any:
    # Written out: ONNX Runtime's PRelu kernel on CPU is several times slower than these three.
    return tf.nn.relu(x) - slope * tf.nn.relu(-x)


def _rows_to_hwc(matrix: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    """Reorder a dense layer's rows, trained on features flattened as (W, H, C), to (H, W, C)."""
    rows = matrix.reshape(width, height, channels, -1)
    return rows.transpose(1, 0, 2, 3).reshape(matrix.shape)
