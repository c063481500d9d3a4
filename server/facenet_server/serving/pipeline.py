"""The whole way from bytes to answer.

The images of a micro-batch go side by side. Before each network that images share (on the CPU the embedders) they wait
for each other at a barrier: their crops share its batches, with those of other micro-batches. Arithmetic runs in
threads or in other processes; only the waiting is here.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from facenet_server.errors import InvalidInput, NoFace, UnknownModel, UnknownOperatingPoint
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.batcher import Batcher
from facenet_server.serving.image_task import FoundFaces, ImageTask, ReadyCrop
from facenet_server.vision import embeddings, sources
from facenet_server.vision.boxes import Faces
from facenet_server.vision.calibration import BEST_ACCURACY, Calibration
from facenet_server.vision.options import CompareOptions, DetectOptions, EmbedOptions
from facenet_server.vision.sources import DecodeLimits, Encoded, Image, Pixels, Raw

_MAX_GLANCES = 4  # at files, a message: a few microseconds each, up to half a millisecond where someone means ill
_MAX_CROP_PIXELS = 1_000_000  # a ready crop has 25,600: what is far larger need not be decoded to be refused

Vector = NDArray[np.float32]  # (dimension,) of unit length


@dataclass(frozen=True, slots=True)
class Embedder:
    """An embedding network, shared by batches, with what its requests need to know."""

    net: Batcher
    dimension: int
    calibration: Calibration | None
    interchangeable_with: tuple[str, ...] = ()
    input_px: int = 160  # a side of its crops


class Detection(NamedTuple):
    """The faces of an upright image of height × width pixels, some of which may be ``damaged``.

    Where asked for: each face's crop (S, S, 3), None for a face outside the image, and the embeddings (N, D) by the
    embedder ``model``.
    """

    faces: Faces
    height: int
    width: int
    exif_orientation: int
    crops: Sequence[Pixels | None] | None = None
    embeddings: NDArray[np.float32] | None = None
    model: str = ""
    damaged: bool = False


class ImageWorkers(Protocol):
    """Who does the work of images, but for the embedders': threads of this process, or other processes."""

    async def find(self, task: ImageTask, barrier: BatchBarrier) -> FoundFaces:
        """An image's faces. Raises ItemError subclasses."""

    async def decode_crop(self, crop: Encoded, limits: DecodeLimits) -> ReadyCrop:
        """The pixels of a ready crop's file. Raises ItemError subclasses."""

    def crops_ahead(self, count: int) -> AbstractContextManager[None]:
        """Around the embedding of an image's crops: where embedders share the cores, few images begin meanwhile."""


class Embedded(NamedTuple):
    """A vector, the embedder that made it, the EXIF orientation that was applied to its crop, and whether that may be
    damaged."""

    vector: Vector
    model: str
    exif_orientation: int = 1
    damaged: bool = False


class Comparison(NamedTuple):
    """How far apart two faces are; ``found`` holds the one compared on each side that was an image. Without
    calibration there is no probability, and no threshold but a given one."""

    distance: float
    threshold: float | None
    operating_point: str
    probability: float | None
    model: str
    found: tuple[Detection | None, Detection | None]


class ByteBudget:
    """What a message's answers may still take, and who is told what they take."""

    def __init__(self, n_bytes: int, taken: Callable[[int], object] = lambda _: None) -> None:
        self._left = self._all = n_bytes
        self._taken = taken

    @property
    def left(self) -> int:
        """How many bytes may still be taken."""
        return self._left

    def take(self, n_bytes: int) -> None:
        """Claim bytes. Raises InvalidInput where there are not as many."""
        if n_bytes > self._left:
            raise InvalidInput(
                "RESPONSE_TOO_LARGE",
                f"the crops of this message exceed {self._all:,} bytes; ask for smaller ones, fewer faces "
                "(max_faces), or send fewer images a message",
            )
        self._left -= n_bytes
        self._taken(n_bytes)


class Pipeline:
    """The three answers. Each method raises ItemError subclasses for what its item is to blame for; whoever calls it
    lets the item's images leave the barrier once it has ended."""

    def __init__(
        self, workers: ImageWorkers, embedders: Mapping[str, Embedder], default_embedder: str, limits: DecodeLimits
    ) -> None:
        self._workers = workers
        self._embedders = embedders
        self.default_embedder = default_embedder
        self._limits = limits
        self._crop_limits = replace(limits, max_pixels=min(limits.max_pixels, _MAX_CROP_PIXELS))

    async def claimed_pixels(self, images: Sequence[Image]) -> list[int]:
        """How large each image will be, by its header. What takes longer than a thread costs is looked at in one, not
        one of those that compute: the headers of a message wait for no image."""
        if sum(isinstance(image, Encoded) for image in images) <= _MAX_GLANCES:
            seen = [sources.claimed_pixels_at_a_glance(image, self._limits) for image in images]
            known = [pixels for pixels in seen if pixels is not None]
            if len(known) == len(images):
                return known

        def claimed() -> list[int]:
            return [sources.claimed_pixels(image, self._limits) for image in images]

        return await asyncio.to_thread(claimed)

    async def detect(
        self, image: Image, options: DetectOptions, budget: ByteBudget, barrier: BatchBarrier
    ) -> Detection:
        """Faces, and their crops if the options ask for them."""
        task = ImageTask(image, options, max_crop_bytes=budget.left)
        found = await self._workers.find(task, barrier)
        _charge(task, found, budget)
        return _detection(found)

    async def embed(self, image: Image, options: EmbedOptions, budget: ByteBudget, barrier: BatchBarrier) -> Detection:
        """The chosen faces of an image with their embeddings, and their crops if the options ask for them."""
        embedder = self._embedder(options.model)
        task = ImageTask(image, options.detect, options.faces, embedder.input_px, budget.left)
        found = await self._workers.find(task, barrier)
        _charge(task, found, budget)
        vectors = np.empty((0, embedder.dimension), np.float32)
        if found.aligned is not None:
            await barrier.wait()
            with self._workers.crops_ahead(len(found.aligned)):
                (vectors,) = await embedder.net(found.aligned, deadline=barrier.deadline)
        return _detection(found, vectors, self._name(options.model))

    async def embed_crop(self, crop: Image, options: EmbedOptions, deadline: float | None = None) -> Embedded:
        """The embedding of one ready 160×160 crop."""
        embedder = self._embedder(options.model)
        if isinstance(crop, Raw):  # nothing to compute
            ready = ReadyCrop(sources.view_raw(crop, self._crop_limits))
        else:
            ready = await self._workers.decode_crop(crop, self._crop_limits)
        side_px = embedder.input_px
        if ready.pixels.shape != (side_px, side_px, 3):
            height, width = ready.pixels.shape[:2]
            raise InvalidInput(
                "WRONG_SIZE",
                f"a ready crop is {side_px}×{side_px} pixels, this one is {height}×{width}; whole photos are for embed",
            )
        (vectors,) = await embedder.net(ready.pixels[np.newaxis], deadline=deadline)
        return Embedded(vectors[0], self._name(options.model), ready.exif_orientation, ready.damaged)

    async def compare(
        self, a: Image | Embedded, b: Image | Embedded, options: CompareOptions, barrier: BatchBarrier
    ) -> Comparison:
        """The distance between two sides, each an image (whose chosen face counts) or an embedding."""
        embedder, model = self._embedder(options.model), self._name(options.model)
        threshold, operating_point = _decision(embedder.calibration, options)
        for name, side in (("a", a), ("b", b)):  # before any image is worked on
            if isinstance(side, Embedded):
                makers = (model, *embedder.interchangeable_with)
                with _on_side(name):
                    embeddings.check_embedding(side.vector, side.model, makers, embedder.dimension)
        sides = [asyncio.create_task(self._side(name, side, options, barrier)) for name, side in (("a", a), ("b", b))]
        try:
            (vector_a, found_a), (vector_b, found_b) = await asyncio.gather(*sides)
        finally:
            for task in sides:
                task.cancel()  # one side's error is the pair's
            await asyncio.gather(*sides, return_exceptions=True)  # none is on the way when the pair leaves its barrier
        distance = embeddings.distance(vector_a, vector_b)
        probability = embedder.calibration.probability(distance) if embedder.calibration else None
        return Comparison(distance, threshold, operating_point, probability, model, (found_a, found_b))

    async def _side(
        self, name: str, side: Image | Embedded, options: CompareOptions, barrier: BatchBarrier
    ) -> tuple[Vector, Detection | None]:
        if isinstance(side, Embedded):
            return side.vector, None
        detect = replace(options.detect, return_crops=False, max_faces=None)
        embed = EmbedOptions(detect, options.faces, options.model)
        with _on_side(name):
            found = await self.embed(side, embed, ByteBudget(0), barrier)
        if found.embeddings is None or not len(found.embeddings):
            raise NoFace(name)
        return found.embeddings[0], found

    def _name(self, model: str) -> str:
        return model or self.default_embedder

    def _embedder(self, model: str) -> Embedder:
        try:
            return self._embedders[self._name(model)]
        except KeyError:
            raise UnknownModel(model, sorted(self._embedders)) from None


@contextmanager
def _on_side(name: str) -> Iterator[None]:
    """Have an error of one side of a pair say which."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(error.reason, f"side {name}: {error}") from error


def _charge(task: ImageTask, found: FoundFaces, budget: ByteBudget) -> None:
    """Raises InvalidInput where the crops are too many, Overloaded where there is no room for them."""
    if task.options.return_crops:
        budget.take(len(found.faces.boxes) * task.crop_bytes_each)


def _detection(found: FoundFaces, vectors: NDArray[np.float32] | None = None, model: str = "") -> Detection:
    size = found.height, found.width
    return Detection(found.faces, *size, found.exif_orientation, found.crops, vectors, model, found.damaged)


def _decision(calibration: Calibration | None, options: CompareOptions) -> tuple[float | None, str]:
    """The threshold to decide by, if there is one, and where it comes from."""
    if options.threshold is not None:
        return options.threshold, "given"
    known = calibration.operating_points if calibration else {}
    if not known and not options.operating_point:
        return None, "uncalibrated"
    name = options.operating_point or BEST_ACCURACY
    if name not in known:
        raise UnknownOperatingPoint(name, list(known))
    return known[name].threshold, name
