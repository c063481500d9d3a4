"""Finding faces where threads are what there is: MTCNN's cascade of one image in one of them.

The pure stages are in ``mtcnn``; here is who takes them. ``batched_detector`` is the other way, where images share the
networks' batches.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facenet_server.errors import InvalidInput
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.choosing import choose
from facenet_server.serving.compute import Compute, Steps
from facenet_server.serving.image_task import FoundFaces, ImageTask, ReadyCrop
from facenet_server.vision import decode, file_parts, mtcnn, resize
from facenet_server.vision.boxes import NO_FACES, Boxes, Faces, suppress
from facenet_server.vision.mtcnn import Net
from facenet_server.vision.options import DetectOptions
from facenet_server.vision.resize import Source
from facenet_server.vision.sources import DecodeLimits, Encoded, Pixels

RNET_PX, ONET_PX = 24, 48
AT_ONCE_BYTES = 28 << 20  # of windows of one image between their cut and their network

Windows = NDArray[np.float32]  # (N, side, side, 3) in 0…255
Outputs = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """What one image may be, and cost: pixels of its whole pyramid, windows that pass P-Net."""

    decode: DecodeLimits
    max_pyramid_pixels: int
    max_candidates: int


class InThreads:
    """What all detectors in threads do alike."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def decode_crop(self, crop: Encoded, limits: DecodeLimits) -> ReadyCrop:
        """The pixels of a ready crop's file. Raises InvalidInput."""
        decoded = await self._compute.begin("decode", decode.decode, crop, limits)
        return ReadyCrop(decoded.pixels, decoded.exif_orientation, decoded.damaged)

    def crops_ahead(self, count: int) -> AbstractContextManager[None]:
        """Around the embedding of an image's crops: where embedders share the cores, few images begin meanwhile."""
        return self._compute.crops_ahead(count)


def warm_up() -> None:
    """Have the compiled arithmetic ready: seconds the first time on a machine, then the time to read it."""
    file_parts.warm_up()
    source = resize.by_columns(np.zeros((30, 30, 3), np.uint8))
    resize.shrink(source, 20, 20)
    resize.cut(source, np.array([[1, 1, 30, 30]]), 24)
    mtcnn.sift(np.ones((1, 1), np.float32), np.ones((1, 1, 4), np.float32), 1.0, 0.5, 1)
    suppress(np.array([[1.0, 1.0, 30.0, 30.0]]), np.ones(1, np.float32), 0.5)


class PerImageDetector(InThreads):
    """The cascade, each image by itself: from its file to its faces it is one job, whose longer steps other threads
    share while they have no image of their own."""

    def __init__(self, pnet: Net, rnet: Net, onet: Net, limits: WorkLimits, compute: Compute) -> None:
        super().__init__(compute)
        self._pnet, self._rnet, self._onet = pnet, rnet, onet
        self._limits = limits

    async def find(self, task: ImageTask, barrier: BatchBarrier) -> FoundFaces:
        """MTCNN's faces in the image. Raises InvalidInput."""

        def job(step: Steps) -> FoundFaces:
            decoded = step("decode", decode.decode, task.image, self._limits.decode, task.options.max_reduction)
            faces = self._faces(step, decoded.pixels, task.options.reduced(decoded.reduction))
            return choose(step, decoded, faces, task)

        return await self._compute.job("decode", job, begins=True, is_last=not task.input_px, size=barrier.pixels)

    def _faces(self, step: Steps, image: Pixels, options: DetectOptions) -> Faces:
        source, boxes = propose(step, image, self._pnet, options, self._limits)
        if not len(boxes):
            return NO_FACES
        probability, regression = _judged(step, "mtcnn-rnet", self._rnet, source, boxes, RNET_PX)
        boxes = step("refine", mtcnn.refine, boxes, probability, regression, options.thresholds[1])
        if not len(boxes):
            return NO_FACES
        probability, regression, landmarks = _judged(step, "mtcnn-onet", self._onet, source, boxes, ONET_PX)
        return step("finish", mtcnn.finish, boxes, probability, regression, landmarks, options.thresholds[2])


def propose(step: Steps, image: Pixels, pnet: Net, options: DetectOptions, limits: WorkLimits) -> tuple[Source, Boxes]:
    """P-Net over the pyramid, which is made as it goes: the boxes where it sees faces. Raises InvalidInput."""
    check_work(image, options, limits)
    height, width = image.shape[:2]
    scales = mtcnn.scales(height, width, options.min_face_px, options.scale_factor)
    threshold, most = options.thresholds[0], limits.max_candidates
    source = step("transpose", resize.by_columns, image)

    def propose_strip(rows: NDArray[np.generic]) -> Outputs:
        step.give_way()
        return pnet(rows)

    def level(scale: float) -> mtcnn.Windows:
        return step("propose", mtcnn.propose, source, propose_strip, scale, threshold, most)

    levels = step.spread(level, scales)  # the largest first
    return source, step("merge", mtcnn.merge, levels, most)


def check_work(image: Pixels, options: DetectOptions, limits: WorkLimits) -> None:
    """Raises InvalidInput, reason TOO_MUCH_WORK, where the image's pyramid would be too large."""
    height, width = image.shape[:2]
    work = mtcnn.pyramid_pixels(height, width, options.min_face_px, options.scale_factor)
    if work > limits.max_pyramid_pixels:
        raise InvalidInput(
            "TOO_MUCH_WORK",
            f"from min_face_px {options.min_face_px} the pyramid of {height}×{width} pixels has {work:,}; "
            f"the limit is {limits.max_pyramid_pixels:,}: raise min_face_px or shrink the image",
        )


def cut(step: Steps, image: Source, boxes: Boxes, side_px: int) -> Windows:
    """The windows of boxes (N, 4), N ≥ 1."""
    return _together(step, lambda some: (step("cut", resize.cut, image, some, side_px),), boxes, side_px)[0]


def _judged(step: Steps, stage: str, net: Net, image: Source, boxes: Boxes, side_px: int) -> Outputs:
    """The network's outputs for the windows of boxes (N, 4), N ≥ 1."""

    def judge(some: Any) -> Outputs:
        windows = step("cut", resize.cut, image, some, side_px)
        return step.run(stage, net, windows, len(windows))

    return _together(step, judge, boxes, side_px)


def at_once(side_px: int) -> int:
    """How many windows of one image are there at once, over all threads."""
    return max(1, AT_ONCE_BYTES // (side_px**2 * 3 * np.dtype(np.float32).itemsize))


def _together(step: Steps, function: Callable[[Any], Outputs], boxes: Boxes, side_px: int) -> Outputs:
    """The function's arrays for boxes, some of them in each thread that is free."""
    n_threads = step.n_threads
    n_parts = max(n_threads, -(-len(boxes) * n_threads // at_once(side_px)))
    parts = step.spread(function, np.array_split(boxes.astype(np.int64), min(n_parts, len(boxes))))
    return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))
