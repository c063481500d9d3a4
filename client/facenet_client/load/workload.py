"""What is sent: request messages as bytes, made once."""

from collections.abc import Callable, Iterable
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facenet_client import _wire
from facenet_client._encoding import Encoded
from facenet_client.errors import ItemError
from facenet_client.types import ImageLike

CROP_SIZE_PX = 160


class Message(NamedTuple):
    """A request, serialized, and how many items it holds."""

    data: bytes
    items: int


class Workload(NamedTuple):
    """Messages to one method of the service; each may be sent any number of times."""

    method: str
    exchange: _wire.Exchange[Any, Any]
    messages: tuple[Message, ...]


def workload(method: str, items: Iterable[ImageLike], *, batch: int = 1, **options: Any) -> Workload:
    """The items in messages of ``batch``, with the SDK's options; the first ones fill up the last message.

    ``method`` is "detect", "embed" or "embed_crops". Raises the ItemError of an item that is no image, and ValueError
    for an unknown method, or no items.
    """
    if method not in _EXCHANGES:
        raise ValueError(f"method is {method!r}; there is {', '.join(_EXCHANGES)}")
    exchange = _EXCHANGES[method](options)
    prepared = [_prepared(exchange, item) for item in items]
    if not prepared or batch < 1:
        raise ValueError("no items to send")
    items_left, n_messages = cycle(prepared), -(-len(prepared) // batch)
    messages = tuple(
        Message(exchange.request(0, list(islice(items_left, batch)), None), batch) for _ in range(n_messages)
    )
    return Workload(method, exchange, messages)


def random_crops(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Generated crops, (160, 160, 3) uint8 each: smooth colours with noise, as costly to send and embed as faces."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, CROP_SIZE_PX)[:, np.newaxis, np.newaxis]
    return [_crop(rng, ramp) for _ in range(count)]


def _crop(rng: np.random.Generator, ramp: NDArray[np.float64]) -> NDArray[np.uint8]:
    corners = rng.uniform(40, 215, (4, 3))
    top, bottom = (a + (b - a) * ramp.transpose(1, 0, 2) for a, b in (corners[:2], corners[2:]))
    pixels = top + (bottom - top) * ramp + rng.normal(0, 8, (CROP_SIZE_PX, CROP_SIZE_PX, 3))
    crop: NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return crop


def _prepared(exchange: _wire.Exchange[Any, Any], item: ImageLike) -> Encoded:
    prepared = exchange.prepare(item)
    if isinstance(prepared, ItemError):
        raise prepared
    return prepared


_EXCHANGES: dict[str, Callable[[dict[str, Any]], _wire.Exchange[Any, Any]]] = {
    "detect": _wire.detect,
    "embed": _wire.embed,
    "embed_crops": _wire.embed_crops,
}
