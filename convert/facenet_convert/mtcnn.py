"""MTCNN's three networks as TensorFlow functions over ordinary images, ready for export.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks" (2016),
with the weights of davidsandberg/facenet's ``det1-3.npy``. Those were trained column-major: the reference
feeds images with height and width swapped. In the packaged weights every convolution kernel is swapped back.
The rows in the first dense layer of R-Net and O-Net are not: their order is changed here. So the exported graphs
take plain (batch, height, width, RGB).
"""

import io
import pickle  # noqa: TID251 (to refuse all but plain arrays)
from collections.abc import Callable, Sequence
from typing import Any

import joblib.numpy_pickle  # noqa: TID251 (its reader is narrowed to plain arrays)
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

_BLOCK = 16  # channels of a block of ONNX Runtime's NCHWc layout with AVX-512

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


VALID = tf.TensorSpec((None, 2), tf.int32, "valid")
"""Rows and columns of each canvas that its image fills."""


def pnet(image: Any, weights: Weights) -> dict[str, Any]:
    """(N, h, w, 3) uint8 → probability (N, h', w'), regression (N, h', w', 4), h' = ⌈(h − 2) / 2⌉ − 4."""
    return _pnet(image, weights)


def pnet_canvas(image: Any, valid: Any, weights: Weights) -> dict[str, Any]:
    """P-Net on canvases (N, H, W, 3) uint8 that hold an image each, in the upper left ``valid`` (N, 2) int32 rows and
    columns.

    In the outputs, the first ⌈(h − 2) / 2⌉ − 4 rows, and as many columns, are those of the image alone.

    Only the pooling, whose last windows may be half empty, looks past an image's end: there the cells outside do not
    count. So images of all sizes share a few shapes.
    """
    return _pnet(image, weights, valid)


def _pnet(image: Any, weights: Weights, valid: Any = None) -> dict[str, Any]:
    x = _conv_prelu_pool(_normalise(image), weights[0:3], valid)
    x = _conv_prelu(x, weights[3:6])
    x = _conv_prelu(x, weights[6:9])
    kernel = np.concatenate([weights[9], weights[11]], axis=-1)  # both heads as one: (1, 1, 32, 4 + 2)
    x = _conv(x, kernel, np.concatenate([weights[10], weights[12]]))
    regression, no_face, face = tf.split(x, [4, 1, 1], axis=-1)
    return {"probability": tf.squeeze(tf.sigmoid(face - no_face), -1), "regression": regression}  # softmax of two


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


def _conv(x: Any, kernel: np.ndarray, bias: np.ndarray | None = None) -> Any:
    x = tf.nn.conv2d(x, kernel, 1, "VALID")
    return x if bias is None else tf.nn.bias_add(x, bias)


def _conv_prelu(x: Any, layer: Weights) -> Any:
    """Convolution and PReLU, s·x + (1 − s)·relu(x).

    The factors of PReLU are 1×1 depthwise convolutions, and the channels are filled up to whole blocks with zeros. So
    ONNX Runtime's CPU provider stays in its blocked layout from one convolution to the next. Its own PRelu kernel would
    leave that layout, and takes several times as long.
    """
    kernel, bias, slope = layer
    slope = slope.ravel()
    spare = -len(slope) % _BLOCK
    kernel = np.pad(kernel, [(0, 0), (0, 0), (0, x.shape[-1] - kernel.shape[2]), (0, spare)])
    x = _conv(x, kernel, np.pad(bias, (0, spare)))
    slope = np.pad(slope, (0, spare))
    return _scale(x, slope) + _scale(tf.nn.relu(x), 1 - slope)


def _conv_prelu_pool(x: Any, layer: Weights, valid: Any = None) -> Any:
    """Convolution, PReLU and 2×2 max-pooling, with all but the convolution after the pool: on a quarter of the cells.

    Over a window, max prelu(x) is prelu(max x) where the slope s is ≥ 0. Where s is negative, it is
    max(P, R) = relu(P − R) + R with P = max x and R = max s·x. A second row of the kernel, s times the first, gives
    s·x.
    """
    kernel, bias, slope = layer
    slope = slope.ravel()
    (falling,) = np.nonzero(slope < 0)
    n_out, n_pooled = len(slope), len(slope) + len(falling)
    kernel = np.concatenate([kernel, kernel[..., falling] * slope[falling]], axis=-1)
    x = _conv(x, kernel, np.concatenate([bias, bias[falling] * slope[falling]]))
    if valid is not None:
        x = tf.where(_inside(x, valid - 2), x, x.dtype.min)
    pooled = tf.nn.max_pool2d(x, 2, 2, "SAME")
    if valid is not None:  # not that the least of all numbers meets others in a fast convolution's sums
        pooled = tf.where(_inside(pooled, (valid - 1) // 2), pooled, 0.0)
    rising = np.diag(slope >= 0)
    to_bent, to_straight = np.zeros((2, n_pooled, n_out), np.float32)
    to_bent[:n_out] = np.eye(n_out)
    to_bent[n_out:][np.arange(len(falling)), falling] = -1
    to_straight[:n_out] = rising * slope
    to_straight[n_out:][np.arange(len(falling)), falling] = 1
    from_bent = np.where(rising, np.diag(1 - slope), np.eye(n_out)).astype(np.float32)
    bent = tf.nn.relu(_conv(pooled, to_bent[np.newaxis, np.newaxis]))
    return _conv(pooled, to_straight[np.newaxis, np.newaxis]) + _conv(bent, from_bent[np.newaxis, np.newaxis])


def _inside(x: Any, valid: Any) -> Any:
    """Which cells of (N, H, W, C) lie in the first ``valid`` (N, 2) rows and columns: (N, H, W, 1) bool."""
    rows = tf.range(tf.shape(x)[1])[np.newaxis, :, np.newaxis, np.newaxis] < valid[:, 0, None, None, None]
    columns = tf.range(tf.shape(x)[2])[np.newaxis, np.newaxis, :, np.newaxis] < valid[:, 1, None, None, None]
    return rows & columns


def _scale(x: Any, factors: np.ndarray) -> Any:
    return tf.nn.depthwise_conv2d(x, factors.astype(np.float32).reshape(1, 1, -1, 1), [1, 1, 1, 1], "VALID")


def _dense_prelu(x: Any, matrix: np.ndarray, layer: Weights) -> Any:
    bias, slope = layer
    x = x @ matrix + bias
    return tf.nn.relu(x) - slope * tf.nn.relu(-x)  # faster than ONNX Runtime's PRelu


def _rows_to_hwc(matrix: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    """Reorder a dense layer's rows, trained on features flattened as (W, H, C), to (H, W, C)."""
    rows = matrix.reshape(width, height, channels, -1)
    return rows.transpose(1, 0, 2, 3).reshape(matrix.shape)
