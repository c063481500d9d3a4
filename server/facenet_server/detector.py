"""Finding faces: MTCNN's cascade through networks that many images share.

The pure stages are in ``mtcnn``; here is the waiting between them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facenet_server import mtcnn, resampling
from facenet_server.batching import Batcher, Outputs
from facenet_server.boxes import Boxes, suppress
from facenet_server.canvases import Canvases
from facenet_server.company import Company
from facenet_server.compute import Compute
from facenet_server.errors import InvalidInput
from facenet_server.images import Pixels
from facenet_server.mtcnn import NO_FACES, Faces
from facenet_server.options import DetectOptions
from facenet_server.resampling import Source

_WINDOWS_AT_ONCE = 4096  # windows of one image between their cut and their network: 28 MB of R-Net's


@dataclass(frozen=True, slots=True)
class Nets:
    """The three networks. P-Net runs on a level where it is made, or on shared canvases where there are any."""

    pnet: mtcnn.Net
    rnet: Batcher
    onet: Batcher
    canvases: Canvases | None = None


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """What one image may cost: pixels of its whole pyramid, windows that pass P-Net."""

    max_pyramid_pixels: int
    max_candidates: int


def warm_up() -> None:
    """Have the compiled arithmetic ready: seconds the first time on a machine, then the time to read it."""
    source = resampling.by_columns(np.zeros((30, 30, 3), np.uint8))
    resampling.shrink(source, 20, 20)
    resampling.cut(source, np.array([[1, 1, 30, 30]]), 24)
    suppress(np.array([[1.0, 1.0, 30.0, 30.0]]), np.ones(1, np.float32), 0.5)


class Detector:
    """The cascade. An image's steps run one after the other; images of a company wait for each other before each
    network, so that their windows share its batches."""

    def __init__(self, nets: Nets, limits: WorkLimits, compute: Compute) -> None:
        self._nets = nets
        self._limits = limits
        self._compute = compute
        self._on_the_way = 0  # images that are searched

    async def find(self, image: Pixels, options: DetectOptions, company: Company) -> Faces:
        """MTCNN's faces in an image."""
        self._check_work(image, options)
        self._on_the_way += 1
        try:
            return await self._find(await self._compute("columns", resampling.by_columns, image), options, company)
        finally:
            self._on_the_way -= 1

    async def _find(self, image: Source, options: DetectOptions, company: Company) -> Faces:
        """The cascade: fewer and better boxes at every stage."""
        thresholds = options.thresholds
        boxes = await self._propose(image, options)
        if not len(boxes):
            return NO_FACES
        probability, regression = await self._judge(image, boxes, 24, self._nets.rnet, company)
        boxes = await self._compute("refine", mtcnn.refine, boxes, probability, regression, thresholds[1])
        if not len(boxes):
            return NO_FACES
        probability, regression, landmarks = await self._judge(image, boxes, 48, self._nets.onet, company)
        return await self._compute("finish", mtcnn.finish, boxes, probability, regression, landmarks, thresholds[2])

    async def _propose(self, image: Source, options: DetectOptions) -> Boxes:
        """P-Net over the pyramid."""
        height, width = image.pixels.shape[:2]
        scales = mtcnn.scales(height, width, options.min_face_px, options.scale_factor)
        if self._nets.canvases is not None:
            found: Sequence[mtcnn.Level] = await asyncio.gather(
                *(self._propose_on_canvas(image, scale, options) for scale in scales)
            )
        else:
            found = await self._propose_directly(image, scales, options)
        return await self._compute("merge", mtcnn.merge, found, self._limits.max_candidates)

    async def _propose_directly(
        self, image: Source, scales: Sequence[float], options: DetectOptions
    ) -> Sequence[mtcnn.Level]:
        """Levels in the threads' own runs of P-Net, side by side where threads are free."""
        propose, pnet, most = mtcnn.propose, self._nets.pnet, self._limits.max_candidates
        left = iter(scales)  # the largest first: each thread takes the next when it is done with one
        found = await asyncio.gather(
            *(
                self._compute("propose", propose, image, pnet, left, options.thresholds[0], most)
                for _ in range(min(self._free_threads(), len(scales)))
            )
        )
        return [level for levels in found for level in levels]

    async def _propose_on_canvas(self, image: Source, scale: float, options: DetectOptions) -> mtcnn.Level:
        """One level, in a run of P-Net that it shares with others of its shape."""
        assert self._nets.canvases is not None
        level = await self._compute("shrink", mtcnn.shrink, image, scale)
        probability, regression = await self._nets.canvases(level)
        most = self._limits.max_candidates
        return await self._compute("sift", mtcnn.sift, probability, regression, scale, options.thresholds[0], most)

    async def _judge(self, image: Source, boxes: Boxes, side_px: int, net: Batcher, company: Company) -> Outputs:
        """The network's outputs for windows of the image."""
        outputs: list[Outputs] = []
        for start in range(0, len(boxes), _WINDOWS_AT_ONCE):
            some = boxes[start : start + _WINDOWS_AT_ONCE]
            parts = np.array_split(some.astype(np.int64), min(self._free_threads(), len(some)))
            cuts = await asyncio.gather(*(self._compute("cut", resampling.cut, image, part, side_px) for part in parts))
            if not start:  # once a network, however many windows it has: all meet as often
                await company.meet()
            outputs.append(await net(np.concatenate(cuts), deadline=company.deadline))
        return outputs[0] if len(outputs) == 1 else tuple(map(np.concatenate, zip(*outputs, strict=True)))

    def _free_threads(self) -> int:
        """The threads that one image may take: all where it is alone."""
        return max(1, self._compute.n_threads // self._on_the_way)

    def _check_work(self, image: Pixels, options: DetectOptions) -> None:
        height, width = image.shape[:2]
        work = mtcnn.pyramid_pixels(height, width, options.min_face_px, options.scale_factor)
        if work > self._limits.max_pyramid_pixels:
            raise InvalidInput(
                "TOO_MUCH_WORK",
                f"from min_face_px {options.min_face_px} the pyramid of {height}×{width} pixels has {work:,}; "
                f"the limit is {self._limits.max_pyramid_pixels:,}: raise min_face_px or shrink the image",
            )
