"""Finding faces where many images share the networks' batches: MTCNN's cascade on an accelerator.

The pure stages are in ``mtcnn``; here is the waiting between them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from facenet_server.serving.barrier import BatchBarrier, micro_batches
from facenet_server.serving.batcher import Batcher, Outputs, Rows
from facenet_server.serving.choosing import choose
from facenet_server.serving.compute import Compute, Steps
from facenet_server.serving.image_task import FoundFaces, ImageTask
from facenet_server.serving.per_image_detector import (
    ONET_PX,
    RNET_PX,
    InThreads,
    WorkLimits,
    at_once,
    check_work,
    cut,
    propose,
)
from facenet_server.vision import decode, mtcnn, resize, tiling
from facenet_server.vision.boxes import NO_FACES, Boxes, Faces
from facenet_server.vision.options import DetectOptions
from facenet_server.vision.resize import Source
from facenet_server.vision.sources import Pixels, Raw
from facenet_server.vision.tiling import Canvases, Tiles


@dataclass(frozen=True, slots=True)
class Nets:
    """The three networks. P-Net runs on a level where it is made, or on shared canvases where there are any."""

    pnet: mtcnn.Net
    rnet: Batcher
    onet: Batcher
    canvases: Batcher | None = None


class BatchedDetector(InThreads):
    """The cascade. An image's steps run one after the other; images of a micro-batch wait for each other before
    each network, so that their windows share its batches."""

    def __init__(self, nets: Nets, limits: WorkLimits, compute: Compute) -> None:
        super().__init__(compute)
        self._nets = nets
        self._limits = limits

    async def find(self, task: ImageTask, barrier: BatchBarrier) -> FoundFaces:
        """MTCNN's faces in the image. Raises InvalidInput."""
        image, options, limits = task.image, task.options, self._limits.decode
        begins = isinstance(image, Raw)  # there is nothing to decode: no step before
        if begins:
            decoded = decode.decode(image, limits)
        else:
            decoded = await self._compute.begin("decode", decode.decode, image, limits, options.max_reduction)
        faces = await self._faces(decoded.pixels, options.reduced(decoded.reduction), barrier, begins)
        return await self._compute.job("align", lambda step: choose(step, decoded, faces, task))

    async def _faces(self, image: Pixels, options: DetectOptions, barrier: BatchBarrier, begins: bool) -> Faces:
        """The cascade: fewer and better boxes at every stage."""
        check_work(image, options, self._limits)
        source, boxes, windows = await self._propose(image, options, barrier, begins)
        if not len(boxes):
            return NO_FACES
        probability, regression = await self._judge(source, boxes, windows, self._nets.rnet, barrier)
        judged = boxes, probability, regression
        boxes, windows = await self._boxes(source, ONET_PX, "refine", mtcnn.refine, *judged, options.thresholds[1])
        if not len(boxes):
            return NO_FACES
        probability, regression, landmarks = await self._judge(source, boxes, windows, self._nets.onet, barrier)
        threshold = options.thresholds[2]
        return await self._compute("finish", mtcnn.finish, boxes, probability, regression, landmarks, threshold)

    async def _propose(
        self, image: Pixels, options: DetectOptions, barrier: BatchBarrier, begins: bool
    ) -> tuple[Source, Boxes, Rows]:
        """P-Net over the pyramid: its boxes, and the first of their windows."""

        def directly(step: Steps) -> tuple[Source, Boxes, Rows]:
            source, boxes = propose(step, image, self._nets.pnet, options, self._limits)
            return source, boxes, _first(step, source, boxes, RNET_PX)

        if self._nets.canvases is None:
            return await self._compute.job("transpose", directly, begins=begins)
        height, width = image.shape[:2]
        scales = mtcnn.scales(height, width, options.min_face_px, options.scale_factor)
        source = await (self._compute.begin if begins else self._compute)("transpose", resize.by_columns, image)
        levels = await self._levels(self._nets.canvases, source, scales, options, barrier)
        merged = await self._boxes(source, RNET_PX, "merge", mtcnn.merge, levels, self._limits.max_candidates)
        return source, *merged

    async def _levels(
        self, net: Batcher, image: Source, scales: Sequence[float], options: DetectOptions, barrier: BatchBarrier
    ) -> Sequence[mtcnn.Windows]:
        """Levels in runs of P-Net that they share with those of other images, in groups that memory may hold."""
        height, width = image.pixels.shape[:2]
        sizes = [mtcnn.level_size(height, width, scale) for scale in scales]
        groups = micro_batches([tiling.count(*size) for size in sizes], len(sizes), tiling.AT_ONCE)
        levels: list[mtcnn.Windows] = []
        for group in groups if sizes else []:
            maps = await self._maps(net, image, scales[group], barrier.deadline)
            found = zip(maps, scales[group], strict=True)
            levels += await self._compute("sift", _sift, found, options.thresholds[0], self._limits.max_candidates)
        return levels

    async def _maps(
        self, net: Batcher, image: Source, scales: Sequence[float], deadline: float | None
    ) -> Sequence[Outputs]:
        """P-Net's maps of some levels."""

        def begin(step: Steps) -> tuple[Tiles, Canvases | None]:
            tiles = Tiles([step("shrink", mtcnn.shrink, image, scale) for scale in scales])
            return tiles, step("lay", tiles.pack)

        def go_on(step: Steps) -> Canvases | None:
            step("lay", tiles.unpack, outputs)
            return step("lay", tiles.pack)

        tiles, laid = await self._compute.job("shrink", begin)
        while laid:
            outputs = await net(*laid, deadline=deadline)
            laid = await self._compute.job("lay", go_on)
        return tiles.maps

    async def _boxes(
        self, image: Source, side_px: int, stage: str, function: Callable[..., Boxes], *args: Any
    ) -> tuple[Boxes, Rows]:
        """A stage's boxes, and the first of their windows."""

        def job(step: Steps) -> tuple[Boxes, Rows]:
            boxes = step(stage, function, *args)
            return boxes, _first(step, image, boxes, side_px)

        return await self._compute.job(stage, job)

    async def _judge(self, image: Source, boxes: Boxes, windows: Rows, net: Batcher, barrier: BatchBarrier) -> Outputs:
        """The network's outputs for the boxes, of which the first windows are there, and the others are cut here."""
        await barrier.wait()  # once a network, however many windows it has: all meet as often
        outputs = [await net(windows, deadline=barrier.deadline)]
        side_px = windows.shape[1]
        for start in range(at_once(side_px), len(boxes), at_once(side_px)):
            further = partial(_first, image=image, boxes=boxes[start:], side_px=side_px)
            windows = await self._compute.job("cut", further)
            outputs.append(await net(windows, deadline=barrier.deadline))
        return outputs[0] if len(outputs) == 1 else tuple(map(np.concatenate, zip(*outputs, strict=True)))


def _first(step: Steps, image: Source, boxes: Boxes, side_px: int) -> Rows:
    """The windows of the first boxes, as many as are cut at once."""
    some = boxes[: at_once(side_px)]
    return cut(step, image, some, side_px) if len(boxes) else np.empty((0, side_px, side_px, 3))


def _sift(maps: Iterable[tuple[Outputs, float]], threshold: float, max_windows: int) -> list[mtcnn.Windows]:
    """What P-Net found in levels, given by its maps and their scales."""
    return [
        mtcnn.sift(probability, regression, scale, threshold, max_windows) for (probability, regression), scale in maps
    ]
