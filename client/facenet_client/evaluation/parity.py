"""How far a server's answers are from the reference implementation's, on photos whose answers are recorded.

The record is a JSON object with ``compare``, ``align`` and ``embeddings`` for each file. ``compare`` and ``align`` have
``boxes`` (N, 5), each x1 y1 x2 y2 score, and ``landmarks`` (N, 10), each x1…x5 y1…y5. ``embeddings`` (N, D) are those
of the ``compare`` boxes' crops with a margin of 44 px.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from facenet_client.cli.crops import crop_edges
from facenet_client.types import Detection, DetectOptions, Embedding

PARAMETERS: Mapping[str, DetectOptions] = {
    "compare": {
        "min_face_px": 20,
        "thresholds": (0.6, 0.7, 0.7),
        "scale_factor": 0.709,
        "apply_exif_orientation": False,
    },
    "align": {
        "min_face_px": 80,
        "thresholds": (0.6, 0.8, 0.95),
        "scale_factor": 0.709,
        "apply_exif_orientation": False,
    },
}
MODEL = "20180408-102900"
"""The embedder whose vectors faces_golden.json holds."""

MARGIN_PX = 44
MAX_BOX_PX = MAX_LANDMARK_PX = 0.05
MAX_SCORE = 2e-4
MIN_COSINE, MIN_CROP_COSINE = 0.9999, 0.99999


@dataclass
class Parity:
    """The worst differences seen so far, and how many of the cases agreed on the number of faces; ``miscounted``
    names what did not, embeddings included."""

    cases: int = 0
    agreed: int = 0
    faces: int = 0
    embedded: int = 0
    embedded_crops: int = 0
    miscounted: list[str] = field(default_factory=list)
    box_px: float = 0.0
    landmark_px: float = 0.0
    score: float = 0.0
    cosine: float = 1.0
    crop_cosine: float = 1.0

    @property
    def within_bounds(self) -> bool:
        """Whether every figure is as good as promised."""
        return (
            min(self.faces, self.embedded, self.embedded_crops) > 0
            and not self.miscounted
            and self.box_px <= MAX_BOX_PX
            and self.landmark_px <= MAX_LANDMARK_PX
            and self.score <= MAX_SCORE
            and self.cosine >= MIN_COSINE
            and self.crop_cosine >= MIN_CROP_COSINE
        )

    def add_detection(self, name: str, found: Detection, recorded: Mapping[str, Any]) -> None:
        """Compare one image's faces under one parameter set."""
        boxes = np.array(recorded["boxes"]).reshape(-1, 5)
        points = np.array(recorded["landmarks"]).reshape(-1, 2, 5).transpose(0, 2, 1)
        self.cases += 1
        if not self._counted(name, found, len(boxes)):
            return
        self.agreed += 1
        for face, box, landmarks in zip(found.faces, boxes, points, strict=True):
            self.faces += 1
            self.box_px = _worst(self.box_px, np.array(face.box) - box[:4])
            self.score = _worst(self.score, face.score - box[4])
            self.landmark_px = _worst(self.landmark_px, np.array(face.landmarks) - landmarks)

    def add_embeddings(self, name: str, found: Detection, recorded: Any) -> None:
        """Compare the embeddings of an image's faces."""
        if self._counted(name, found, len(recorded)):
            for face, vector in zip(found.faces, recorded, strict=True):
                self.embedded += 1
                self.cosine = float(np.minimum(self.cosine, _cosine(face.embedding, vector)))

    def add_crop_embeddings(self, found: list[Embedding], recorded: Any) -> None:
        """Compare the embeddings of the reference's own crops."""
        for embedding, vector in zip(found, recorded, strict=True):
            self.embedded_crops += 1
            self.crop_cosine = float(np.minimum(self.crop_cosine, _cosine(embedding, vector)))

    def _counted(self, name: str, found: Detection, n_recorded: int) -> bool:
        if found.error is None and len(found.faces) == n_recorded:
            return True
        self.miscounted.append(f"{name}: {found.error or f'{len(found.faces)} faces'}, the reference {n_recorded}")
        return False


def reference_crops(image: Image.Image, boxes: Any) -> list[np.ndarray]:
    """The crops that the reference's ``compare.py`` makes of its boxes: 160×160, bilinear."""
    pixels = image.convert("RGB")
    crops = []
    for x1, y1, x2, y2, _ in boxes:
        edges = crop_edges((x1, y1, x2, y2), pixels.width, pixels.height, MARGIN_PX)
        crops.append(np.asarray(pixels.crop(edges).resize((160, 160), Image.Resampling.BILINEAR)))
    return crops


def _worst(so_far: float, differences: Any) -> float:
    return float(np.maximum(so_far, np.abs(differences).max()))  # unlike max, NaN stays


def _cosine(embedding: Embedding | None, recorded: Any) -> float:
    a, b = np.asarray(embedding, np.float64), np.asarray(recorded, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
