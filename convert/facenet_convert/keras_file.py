"""A Keras 2 model file (HDF5) read as data: its tensors, and its layers as JSON.

Keras' own ``load_model`` would run the Python bytecode that such a file holds for its Lambda layers.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from facenet_convert.errors import SourceError


@dataclass(frozen=True, slots=True)
class KerasFile:
    """``layers`` are those of ``model_config``, in its order, which puts each after its inputs; ``weights`` are the
    tensors by ``layer/tensor``: ``Conv2d_1a_3x3/kernel``."""

    layers: list[dict[str, Any]]
    weights: Mapping[str, np.ndarray]


def parse(data: bytes) -> KerasFile:
    """The bytes of a file that ``Model.save`` of Keras 2 wrote; raises SourceError."""
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            layers = json.loads(file.attrs["model_config"])["config"]["layers"]
            weights = {}
            for layer in file["model_weights"].values():
                for name in layer.attrs["weight_names"]:
                    path = name.decode() if isinstance(name, bytes) else str(name)
                    weights[path.removesuffix(":0")] = np.asarray(layer[path])
    except (KeyError, OSError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"not a Keras model file, or a truncated one: {error}") from error
    return KerasFile(layers, weights)
