"""The package ``mtcnn`` 1.0, on TensorFlow."""

from importlib.metadata import version

import numpy as np
from mtcnn import MTCNN
from numpy.typing import NDArray

from benchmarks.workers.protocol import serve

DETECTOR = MTCNN()


def detect(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 5) boxes and scores."""
    faces = DETECTOR.detect_faces(
        image,
        box_format="xyxy",
        min_face_size=20,
        scale_factor=0.709,
        threshold_pnet=0.6,
        threshold_rnet=0.7,
        threshold_onet=0.7,
    )
    return np.array([[*face["box"], face["confidence"]] for face in faces]).reshape(-1, 5)


if __name__ == "__main__":
    serve({"detect": detect}, {name: version(name) for name in ("mtcnn", "tensorflow")})
