"""TensorFlow on the original graph, the one that our FaceNet was converted from."""

from importlib.metadata import version

import numpy as np
import tensorflow as tf
from facenet_convert import facenet, weights
from numpy.typing import NDArray

from benchmarks.workers.protocol import serve

DATA = weights.load(weights.FACENET_20180408, cache=weights.default_cache())
GRAPH = facenet.free_batch(facenet.parse(DATA))
NETWORK = tf.compat.v1.wrap_function(lambda image: facenet.network(GRAPH, facenet.fixed(image)), [facenet.signature()])


def embed(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 512) of unit length."""
    vectors: NDArray[np.float32] = NETWORK(tf.constant(crops)).numpy()
    return vectors


if __name__ == "__main__":
    serve({"embed": embed}, {"tensorflow": version("tensorflow")})
