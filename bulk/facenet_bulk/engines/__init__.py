"""What does the shards of a run: this machine's processes, a Ray cluster, or a fleet of servers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from facenet_bulk.errors import BulkError
from facenet_bulk.output import Model, Record
from facenet_bulk.table import Tally

FORMATS = "JPEG,PNG,WEBP"
"""What is decoded unless something else is asked for, as by a server."""

OnImage = Callable[[int, str], object]
"""Told as images end: how many (fewer than 0: that they are done again), and the reason where one failed."""


class Done(NamedTuple):
    """A shard that is written."""

    shard: int
    tally: Tally


class Engine(Protocol):
    """An engine is opened as a context, which ends all that it started."""

    n_workers: int
    image_formats: str  # that it decodes, in a fixed order; known once ``model`` was asked

    def model(self, name: str | None, precision: str | None) -> Model:
        """The embedder of this name (None: the default one) in this precision. Raises BulkError."""

    def shards(self, record: Record, out: str, numbers: Sequence[int], on_image: OnImage) -> Iterator[Done]:
        """Each of the shards once it is written, in any order. Raises BulkError."""


def in_order(image_formats: Iterable[str]) -> str:
    """Names of formats as a run's record has them."""
    return ",".join(sorted({name.strip().upper() for name in image_formats}))


def chosen(infos: Sequence[Any], default: str, name: str | None, precision: str | None) -> Any:
    """The embedder of this name in this precision among what model files or a server say of themselves. Raises
    BulkError."""
    embedders = {info.name: info for info in infos if info.dimension}
    wanted = name or default or min(embedders, default="")
    if precision and not wanted.endswith(f"-{precision}"):
        wanted = wanted if precision == "fp32" else f"{wanted}-{precision}"
    if wanted not in embedders:
        advice = f"; make it: facenet-convert quantize facenet-{name or default}.onnx" if precision else ""
        raise BulkError(f"there is no embedder {wanted!r}, but {', '.join(sorted(embedders))}{advice}")
    if precision and embedders[wanted].precision != precision:
        raise BulkError(f"the embedder {wanted!r} is {embedders[wanted].precision}, not {precision}")
    return embedders[wanted]


def model_of(infos: Sequence[Any], default: str, name: str | None, precision: str | None) -> Model:
    """The same as a run's record has it."""
    info = chosen(infos, default, name, precision)
    detector = {each.name: each.onnx_sha256 for each in infos if not each.dimension}
    return Model(name=info.name, onnx_sha256=info.onnx_sha256, dimension=info.dimension, detector_sha256s=detector)
