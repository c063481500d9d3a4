"""Inception-ResNet-v1 as a TensorFlow function over the tensors of a Keras file, ready for export.

Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning" (2016), as
davidsandberg/facenet's ``models/inception_resnet_v1.py`` varies it. The layers' names are that module's scopes,
flattened: ``Block17_3`` is ``Repeat_1/block17_3``, ``Block8_6`` the last ``Block8``, which has no ReLU.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Weights = Mapping[str, np.ndarray]
"""By ``layer/tensor``; kernels are (height, width, channels in, channels out)."""

EPSILON = 0.001
"""Of every batch norm, which has no gamma."""

_BLOCK35 = (
    ("Branch_0_Conv2d_1x1",),
    ("Branch_1_Conv2d_0a_1x1", "Branch_1_Conv2d_0b_3x3"),
    ("Branch_2_Conv2d_0a_1x1", "Branch_2_Conv2d_0b_3x3", "Branch_2_Conv2d_0c_3x3"),
)
_BLOCK17 = (
    ("Branch_0_Conv2d_1x1",),
    ("Branch_1_Conv2d_0a_1x1", "Branch_1_Conv2d_0b_1x7", "Branch_1_Conv2d_0c_7x1"),
)
_BLOCK8 = (
    ("Branch_0_Conv2d_1x1",),
    ("Branch_1_Conv2d_0a_1x1", "Branch_1_Conv2d_0b_1x3", "Branch_1_Conv2d_0c_3x1"),
)
_MIXED_6A = (
    ("Branch_0_Conv2d_1a_3x3",),
    ("Branch_1_Conv2d_0a_1x1", "Branch_1_Conv2d_0b_3x3", "Branch_1_Conv2d_1a_3x3"),
)
_MIXED_7A = (
    ("Branch_0_Conv2d_0a_1x1", "Branch_0_Conv2d_1a_3x3"),
    ("Branch_1_Conv2d_0a_1x1", "Branch_1_Conv2d_1a_3x3"),
    ("Branch_2_Conv2d_0a_1x1", "Branch_2_Conv2d_0b_3x3", "Branch_2_Conv2d_1a_3x3"),
)

Branches = Sequence[Sequence[str]]


def network(weights: Weights, pixels: Any) -> Any:
    """Standardised pixels (N, 160, 160, 3) float32 → embeddings (N, dimension), unit L2 norm."""
    net = _Layers(weights)
    x = net.conv(pixels, "Conv2d_1a_3x3", stride=2, padding="VALID")
    x = net.conv(x, "Conv2d_2a_3x3", padding="VALID")
    x = net.conv(x, "Conv2d_2b_3x3")
    x = _max_pool(x)
    x = net.conv(x, "Conv2d_3b_1x1", padding="VALID")
    x = net.conv(x, "Conv2d_4a_3x3", padding="VALID")
    x = net.conv(x, "Conv2d_4b_3x3", stride=2, padding="VALID")
    for number in range(1, 6):
        x = tf.nn.relu(net.residual(x, f"Block35_{number}", _BLOCK35, 0.17))
    x = net.reduction(x, "Mixed_6a", _MIXED_6A)
    for number in range(1, 11):
        x = tf.nn.relu(net.residual(x, f"Block17_{number}", _BLOCK17, 0.10))
    x = net.reduction(x, "Mixed_7a", _MIXED_7A)
    for number in range(1, 6):
        x = tf.nn.relu(net.residual(x, f"Block8_{number}", _BLOCK8, 0.20))
    x = net.residual(x, "Block8_6", _BLOCK8, 1.0)
    x = tf.reduce_mean(x, [1, 2])
    kernel, bias = net.folded("Bottleneck")
    return tf.nn.l2_normalize(tf.matmul(x, kernel) + bias, 1, 1e-10)


class _Layers:
    """The network's building blocks, each over the weights of its name."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def conv(self, x: Any, name: str, stride: int = 1, padding: str = "SAME") -> Any:
        """Convolution, batch norm, ReLU."""
        kernel, bias = self.folded(name)
        return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, stride, padding), bias))

    def folded(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A layer's kernel and bias with its batch norm, (x − mean)/√(variance + ε) + β of each channel, in them.

        Left behind the convolutions, batch norms cost a quarter of the speed, and in int8 they cost accuracy.
        """
        mean, variance, beta = (
            self._weights[f"{name}_BatchNorm/{part}"].astype(np.float64)
            for part in ("moving_mean", "moving_variance", "beta")
        )
        factor = 1 / np.sqrt(variance + EPSILON)
        kernel = self._weights[f"{name}/kernel"].astype(np.float64) * factor
        return kernel.astype(np.float32), (beta - mean * factor).astype(np.float32)

    def residual(self, x: Any, name: str, branches: Branches, scale: float) -> Any:
        """The input plus the scaled branches, brought to its channels by a 1×1 convolution with the scale in it."""
        mixed = tf.concat([self._branch(x, name, convs) for convs in branches], -1)
        kernel, bias = (self._weights[f"{name}_Conv2d_1x1/{part}"] * np.float32(scale) for part in ("kernel", "bias"))
        return x + tf.nn.bias_add(tf.nn.conv2d(mixed, kernel, 1, "SAME"), bias)

    def reduction(self, x: Any, name: str, branches: Branches) -> Any:
        """The branches and a pooling side by side, at half the height and width."""
        return tf.concat([*(self._branch(x, name, convs) for convs in branches), _max_pool(x)], -1)

    def _branch(self, x: Any, name: str, convs: Sequence[str]) -> Any:
        for conv in convs:
            halves = "_1a_" in conv
            x = self.conv(x, f"{name}_{conv}", 2 if halves else 1, "VALID" if halves else "SAME")
        return x


def _max_pool(x: Any) -> Any:
    return tf.nn.max_pool2d(x, 3, 2, "VALID")
