"""Finding faces: MTCNN's cascade through networks that many images share.

The pure stages are in ``mtcnn``; here is the waiting between them.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from facenet_server import canvases, mtcnn, resampling
from facenet_server.batching import Batcher, Outputs, Rows
from facenet_server.boxes import Boxes, suppress
from facenet_server.canvases import Canvases, Mosaic
from facenet_server.company import Company, companies
from facenet_server.compute import Compute, Steps
from facenet_server.errors import InvalidInput
from facenet_server.images import Pixels
from facenet_server.mtcnn import NO_FACES, Faces
from facenet_server.options import DetectOptions
from facenet_server.resampling import Source

_RNET_PX, _ONET_PX = 24, 48
_WINDOWS_AT_ONCE = 4096  # windows of one image between their cut and their network: 28 MB of R-Net's


@dataclass(frozen=True, slots=True)
class Nets:
    """The three networks. P-Net runs on a level where it is made, or on shared canvases where there are any."""

    pnet: mtcnn.Net
    rnet: Batcher
    onet: Batcher
    canvases: Batcher | None = None


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
            return await self._find(image, options, company)
        finally:
            self._on_the_way -= 1

    async def _find(self, image: Pixels, options: DetectOptions, company: Company) -> Faces:
        """The cascade: fewer and better boxes at every stage."""
        source, boxes, windows = await self._propose(image, options, company)
        if not len(boxes):
            return NO_FACES
        probability, regression = await self._judge(source, boxes, windows, self._nets.rnet, company)
        judged = boxes, probability, regression
        boxes, windows = await self._boxes(source, _ONET_PX, "refine", mtcnn.refine, *judged, options.thresholds[1])
        if not len(boxes):
            return NO_FACES
        probability, regression, landmarks = await self._judge(source, boxes, windows, self._nets.onet, company)
        threshold = options.thresholds[2]
        return await self._compute("finish", mtcnn.finish, boxes, probability, regression, landmarks, threshold)

    async def _propose(self, image: Pixels, options: DetectOptions, company: Company) -> tuple[Source, Boxes, Rows]:
        """P-Net over the pyramid: its boxes, and the first of their windows. All in one thread where others are busy
        with other images."""
        height, width = image.shape[:2]
        scales = mtcnn.scales(height, width, options.min_face_px, options.scale_factor)
        pnet, threshold, most = self._nets.pnet, options.thresholds[0], self._limits.max_candidates

        def in_one_thread(step: Steps) -> tuple[Source, Boxes, Rows]:
            source = step("columns", resampling.by_columns, image)
            levels = step("propose", mtcnn.propose, source, pnet, step.wanted(scales), threshold, most)
            boxes = step("merge", mtcnn.merge, levels, most)
            return source, boxes, step("cut", _cut, source, boxes, _RNET_PX)

        if self._nets.canvases is None and self._free_threads() == 1:
            return await self._compute.job("columns", in_one_thread)
        source = await self._compute("columns", resampling.by_columns, image)
        if self._nets.canvases is None:
            levels = await self._propose_directly(source, scales, options)
        else:
            levels = await self._propose_on_canvases(self._nets.canvases, source, scales, options, company)
        return source, *await self._boxes(source, _RNET_PX, "merge", mtcnn.merge, levels, most)

    async def _propose_directly(
        self, image: Source, scales: Sequence[float], options: DetectOptions
    ) -> Sequence[mtcnn.Level]:
        """Levels in the threads' own runs of P-Net, side by side where threads are free."""
        pnet, most = self._nets.pnet, self._limits.max_candidates
        left = iter(scales)  # the largest first: each thread takes the next when it is done with one

        def propose(step: Steps) -> Sequence[mtcnn.Level]:
            return step("propose", mtcnn.propose, image, pnet, step.wanted(left), options.thresholds[0], most)

        n_threads = min(self._free_threads(), len(scales))
        jobs = [asyncio.create_task(self._compute.job("propose", propose)) for _ in range(n_threads)]
        try:
            return [level for levels in await asyncio.gather(*jobs) for level in levels]
        finally:
            for job in jobs:
                job.cancel()  # where one of them failed, the others need not go on

    async def _propose_on_canvases(
        self, net: Batcher, image: Source, scales: Sequence[float], options: DetectOptions, company: Company
    ) -> Sequence[mtcnn.Level]:
        """Levels in runs of P-Net that they share with those of other images, in groups that memory may hold."""
        height, width = image.pixels.shape[:2]
        sizes = [mtcnn.level_size(height, width, scale) for scale in scales]
        groups = companies([canvases.count(*size) for size in sizes], len(sizes), canvases.AT_ONCE)
        levels: list[mtcnn.Level] = []
        for group in groups if sizes else []:
            maps = await self._maps_on_canvases(net, image, scales[group], company.deadline)
            found = zip(maps, scales[group], strict=True)
            levels += await self._compute("sift", _sift, found, options.thresholds[0], self._limits.max_candidates)
        return levels

    async def _maps_on_canvases(
        self, net: Batcher, image: Source, scales: Sequence[float], deadline: float | None
    ) -> Sequence[Outputs]:
        """P-Net's maps of some levels."""

        def begin(step: Steps) -> tuple[Mosaic, Canvases | None]:
            mosaic = Mosaic([step("shrink", mtcnn.shrink, image, scale) for scale in step.wanted(scales)])
            return mosaic, step("lay", mosaic.lay)

        def go_on(step: Steps) -> Canvases | None:
            step("lay", mosaic.put, outputs)
            return step("lay", mosaic.lay)

        mosaic, laid = await self._compute.job("shrink", begin)
        while laid:
            outputs = await net(*laid, deadline=deadline)
            laid = await self._compute.job("lay", go_on)
        return mosaic.maps

    async def _boxes(
        self, image: Source, side_px: int, stage: str, function: Callable[..., Boxes], *args: Any
    ) -> tuple[Boxes, Rows]:
        """A stage's boxes, and the first of their windows: cut in the same job where one thread is free."""
        in_one_thread = self._free_threads() == 1

        def job(step: Steps) -> tuple[Boxes, Rows | None]:
            boxes = step(stage, function, *args)
            return boxes, step("cut", _cut, image, boxes, side_px) if in_one_thread else None

        boxes, windows = await self._compute.job(stage, job)
        return boxes, windows if windows is not None else await self._cut(image, boxes, side_px)

    async def _judge(self, image: Source, boxes: Boxes, windows: Rows, net: Batcher, company: Company) -> Outputs:
        """The network's outputs for the boxes, of which the first windows are there, and the others are cut here."""
        await company.meet()  # once a network, however many windows it has: all meet as often
        outputs = [await net(windows, deadline=company.deadline)]
        for start in range(_WINDOWS_AT_ONCE, len(boxes), _WINDOWS_AT_ONCE):
            windows = await self._cut(image, boxes[start:], windows.shape[1])
            outputs.append(await net(windows, deadline=company.deadline))
        return outputs[0] if len(outputs) == 1 else tuple(map(np.concatenate, zip(*outputs, strict=True)))

    async def _cut(self, image: Source, boxes: Boxes, side_px: int) -> Rows:
        """The first windows, side by side where threads are free."""
        if not len(boxes):
            return _cut(image, boxes, side_px)  # nothing that a thread is needed for
        boxes = boxes[:_WINDOWS_AT_ONCE]
        parts = np.array_split(boxes, min(self._free_threads(), len(boxes)))
        cuts = await asyncio.gather(*(self._compute("cut", _cut, image, part, side_px) for part in parts))
        return np.concatenate(cuts)

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


def _cut(image: Source, boxes: Boxes, side_px: int) -> Rows:
    """The windows of the first boxes, as many as are cut at once."""
    return resampling.cut(image, boxes[:_WINDOWS_AT_ONCE].astype(np.int64), side_px)


def _sift(maps: Iterable[tuple[Outputs, float]], threshold: float, max_windows: int) -> list[mtcnn.Level]:
    """What P-Net found in levels, given by its maps and their scales."""
    return [
        mtcnn.sift(probability, regression, scale, threshold, max_windows) for (probability, regression), scale in maps
    ]
