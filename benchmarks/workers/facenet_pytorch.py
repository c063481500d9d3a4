"""The package ``facenet-pytorch``: its MTCNN, and its Inception-ResNet-v1 (on random weights: the speed is theirs)."""

import sys
from importlib.metadata import version
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.workers.protocol import serve


def suppress(boxes: torch.Tensor, scores: torch.Tensor, _: torch.Tensor, overlap: float) -> torch.Tensor:
    """Non-maximum suppression in one image, as torchvision's ``batched_nms``: what is kept, by descending score."""
    order = scores.argsort(descending=True)
    low = torch.maximum(boxes[order, None, :2], boxes[order, :2])
    high = torch.minimum(boxes[order, None, 2:], boxes[order, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    areas = (boxes[order, 2:] - boxes[order, :2]).prod(dim=1)
    covers = (shared > overlap * (areas[:, None] + areas - shared)).numpy()
    alive = np.ones(len(covers), np.bool_)
    for i in range(len(covers)):
        if alive[i]:
            alive[i + 1 :] &= ~covers[i, i + 1 :]
    return order[torch.from_numpy(alive)]


def torchvision_or_stand_in() -> str:
    """The version of torchvision, of which facenet-pytorch needs one function. Where its compiled part does not fit
    the installed torch (one is built for CUDA, the other is not), that function is put in its place."""
    try:
        import torchvision.ops  # noqa: F401  (does it load?)
    except (ImportError, OSError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.ops", "torchvision.ops.boxes"):
            sys.modules[name] = ModuleType(name)
        sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
        sys.modules["torchvision.ops.boxes"].batched_nms = suppress  # type: ignore[attr-defined]
        return "stand-in for its batched_nms"
    return version("torchvision")


TORCHVISION = torchvision_or_stand_in()

from facenet_pytorch import MTCNN, InceptionResnetV1  # noqa: E402  (after torchvision has been seen to)

DETECTOR = MTCNN(min_face_size=20, thresholds=[0.6, 0.7, 0.7], factor=0.709, keep_all=True)
EMBEDDER = InceptionResnetV1(pretrained=None).eval()


def detect(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 5) boxes and scores."""
    with torch.inference_mode():
        boxes, scores = DETECTOR.detect(image)
    return np.empty((0, 5)) if boxes is None else np.column_stack([boxes, scores]).astype(np.float64)


def embed(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 512) of unit length."""
    with torch.inference_mode():
        pixels = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() - 127.5) / 128.0
        vectors: NDArray[np.float32] = EMBEDDER(pixels).numpy()
    return vectors


if __name__ == "__main__":
    versions = {name: version(name) for name in ("facenet-pytorch", "torch")}
    serve({"detect": detect, "embed": embed}, {**versions, "torchvision": TORCHVISION})
