"""The whole way from bytes to answer.

One image's steps run one after the other. The images of a micro-batch go side by side. Before each network that images
share (on the CPU the embedders) they wait for each other at a barrier: their crops share its batches, with those of
other micro-batches. Arithmetic runs in threads, off the event loop; only the waiting is here.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from facenet_server.errors import InvalidInput, NoFace, UnknownModel, UnknownOperatingPoint
from facenet_server.serving.barrier import BatchBarrier
from facenet_server.serving.batcher import Batcher
from facenet_server.serving.compute import Compute
from facenet_server.vision import decode, facenet
from facenet_server.vision.calibration import BEST_ACCURACY, Calibration
from facenet_server.vision.decode import Decoded, Encoded, Pixels, Raw
from facenet_server.vision.mtcnn import Faces
from facenet_server.vision.options import CompareOptions, DetectOptions, EmbedOptions

_MAX_GLANCES = 4  # at files, a message: a few microseconds each, up to half a millisecond where someone means ill
_MAX_CROP_PIXELS = 1_000_000  # a ready crop has 25,600: what is far larger need not be decoded to be refused

Image = Encoded | Raw
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
    """The faces of an upright image of height × width pixels, some of which may be ``damaged``; where
    asked for, each face's crop (S, S, 3), None for a face outside the image, and its embedding (N, D) by the embedder
    ``model``."""

    faces: Faces
    height: int
    width: int
    exif_orientation: int
    crops: Sequence[Pixels | None] | None = None
    embeddings: NDArray[np.float32] | None = None
    model: str = ""
    damaged: bool = False


class FaceDetector(Protocol):
    """How faces are found: each image by itself, or in batches that images share."""

    async def find(
        self, image: Image, options: DetectOptions, barrier: BatchBarrier, *, is_last: bool = False
    ) -> tuple[Decoded, Faces]:
        """The image's pixels, and the faces in them, in their coordinates; ``is_last`` says that no other step of the
        image follows. Raises ItemError subclasses."""


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

    def take(self, n_bytes: int) -> None:
        """Claim bytes before they are made. Raises InvalidInput where there are not as many."""
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
        self,
        detector: FaceDetector,
        embedders: Mapping[str, Embedder],
        default_embedder: str,
        limits: decode.DecodeLimits,
        compute: Compute,
    ) -> None:
        self._detector = detector
        self._embedders = embedders
        self.default_embedder = default_embedder
        self._limits = limits
        self._crop_limits = replace(limits, max_pixels=min(limits.max_pixels, _MAX_CROP_PIXELS))
        self._compute = compute

    async def claimed_pixels(self, sources: Sequence[Image]) -> list[int]:
        """How large each image will be, by its header. What takes longer than a thread costs is looked at in one, not
        one of those that compute: the headers of a message wait for no image."""
        if sum(isinstance(source, Encoded) for source in sources) <= _MAX_GLANCES:
            seen = [decode.claimed_pixels_at_a_glance(source, self._limits) for source in sources]
            known = [pixels for pixels in seen if pixels is not None]
            if len(known) == len(sources):
                return known

        def claimed() -> list[int]:
            return [decode.claimed_pixels(source, self._limits) for source in sources]

        return await asyncio.to_thread(claimed)

    async def detect(
        self, image: Image, options: DetectOptions, budget: ByteBudget, barrier: BatchBarrier
    ) -> Detection:
        """Faces, and their crops if the options ask for them."""
        decoded, faces = await self._detector.find(image, options, barrier, is_last=not options.return_crops)
        faces, options = faces.take(slice(options.max_faces)), options.reduced(decoded.reduction)
        crops = await self._crops(decoded.pixels, faces, options, budget)
        return _detection(decoded, faces, crops)

    async def embed(self, image: Image, options: EmbedOptions, budget: ByteBudget, barrier: BatchBarrier) -> Detection:
        """The chosen faces of an image with their embeddings, and their crops if the options ask for them."""
        embedder = self._embedder(options.model)
        decoded, faces = await self._detector.find(image, options.detect, barrier)
        pixels, detect = decoded.pixels, options.detect.reduced(decoded.reduction)
        height, width = pixels.shape[:2]
        faces = faces.take(facenet.visible(faces.boxes, height, width, detect.margin_px))
        faces = facenet.select(faces, options.faces, height, width).take(slice(detect.max_faces))
        vectors = np.empty((0, embedder.dimension), np.float32)
        if len(faces.boxes):
            aligned = await self._compute(
                "align", facenet.align, pixels, faces.boxes, detect.margin_px, embedder.input_px
            )
            await barrier.wait()
            with self._compute.crops_ahead(len(aligned)):
                (vectors,) = await embedder.net(aligned, deadline=barrier.deadline)
        crops = await self._crops(pixels, faces, detect, budget)
        return _detection(decoded, faces, crops, vectors, self._name(options.model))

    async def embed_crop(self, crop: Image, options: EmbedOptions, deadline: float | None = None) -> Embedded:
        """The embedding of one ready 160×160 crop."""
        embedder = self._embedder(options.model)
        if isinstance(crop, Raw):  # nothing to compute
            decoded = decode.decode(crop, self._crop_limits)
        else:
            decoded = await self._compute.begin("decode", decode.decode, crop, self._crop_limits)
        pixels = decoded.pixels
        side_px = embedder.input_px
        if pixels.shape != (side_px, side_px, 3):
            height, width = pixels.shape[:2]
            raise InvalidInput(
                "WRONG_SIZE",
                f"a ready crop is {side_px}×{side_px} pixels, this one is {height}×{width}; whole photos are for embed",
            )
        (vectors,) = await embedder.net(pixels[np.newaxis], deadline=deadline)
        return Embedded(vectors[0], self._name(options.model), decoded.exif_orientation, decoded.damaged)

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
                    facenet.check_embedding(side.vector, side.model, makers, embedder.dimension)
        sides = [asyncio.create_task(self._side(name, side, options, barrier)) for name, side in (("a", a), ("b", b))]
        try:
            (vector_a, found_a), (vector_b, found_b) = await asyncio.gather(*sides)
        finally:
            for task in sides:
                task.cancel()  # one side's error is the pair's
            await asyncio.gather(*sides, return_exceptions=True)  # none is on the way when the pair leaves its barrier
        distance = facenet.distance(vector_a, vector_b)
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

    async def _crops(
        self, image: Pixels, faces: Faces, options: DetectOptions, budget: ByteBudget
    ) -> Sequence[Pixels | None] | None:
        if not options.return_crops:
            return None
        budget.take(len(faces.boxes) * options.crop_size_px**2 * 3)
        return await self._compute("align", facenet.crops, image, faces.boxes, options.margin_px, options.crop_size_px)

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


def _detection(
    decoded: Decoded,
    faces: Faces,
    crops: Sequence[Pixels | None] | None,
    embeddings: NDArray[np.float32] | None = None,
    model: str = "",
) -> Detection:
    whole = faces.enlarged(decoded.reduction)
    size = decoded.height, decoded.width
    return Detection(whole, *size, decoded.exif_orientation, crops, embeddings, model, decoded.damaged)


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
