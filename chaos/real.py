"""The real networks under the same checks: crops and images made here, and what the networks say of them alone."""

import io
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from chaos.drivers import channels, one_message, read
from chaos.ledger import SIDE, Known
from chaos.process import Server
from chaos.report import Report
from chaos.stub import Behaviour

Run = Callable[..., Coroutine[Any, Any, Report]]

_KNOWN: dict[str, dict[bool, Known]] = {}  # by folder, and by whether they are files
_CROPS = 37  # no divisor of a message's 64 items: whole messages differ, too


def on_real_networks(run: Run, *, files: bool = False) -> Run:
    """The same check, with a server on the networks of the folder ``models``, and crops whose embeddings are known:
    as pixels, 77 kB each, or as JPEG files, of about a tenth of it."""

    async def with_known_crops(*, models: str, **how: Any) -> Report:
        return await run(models=models, crops=(await known_crops(models))[files], **how)

    return with_known_crops


async def known_crops(models: str) -> dict[bool, Known]:
    """Generated crops, as pixels (False) and as files (True), with the embeddings that a server gives them one by one,
    while it has nothing else to do."""
    if models in _KNOWN:
        return _KNOWN[models]
    pixels = [generated_crop(number) for number in range(_CROPS)]
    async with Server(Behaviour({}, models, core=-1)) as server, channels(server.address, 1) as (channel,):

        async def known(sent: list[bytes], *, files: bool) -> Known:
            embeddings, crops = dict[bytes, np.ndarray](), Known({}, files=files)
            for each in sent:
                response = await read(one_message(channel)(crops.message(each), timeout=30))
                embeddings[each] = np.frombuffer(response.results[0].embedding.vector, "<f4")
            return Known(embeddings, files=files)

        _KNOWN[models] = {
            False: await known([each.tobytes() for each in pixels], files=False),
            True: await known([_jpeg(each) for each in pixels], files=True),
        }
    return _KNOWN[models]


def _jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def generated_crop(number: int) -> np.ndarray:
    """(160, 160, 3) uint8: soft noise, another for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (10, 10, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def generated_image(number: int) -> np.ndarray:
    """(height, width, 3) uint8: one of two public-domain portraits, in a size, brightness and direction of its own."""
    random = np.random.default_rng(number)
    portrait = _portraits()[number % 2]
    side = int(random.integers(150, 260))
    image = np.asarray(portrait.resize((side, side), Image.Resampling.BILINEAR)).astype(np.float32)
    image = np.clip(image * random.uniform(0.6, 1.2), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image[:, ::-1] if random.random() < 0.5 else image)


@cache
def _portraits() -> tuple[Image.Image, Image.Image]:
    import matplotlib.cbook  # large packages, for their portraits: where checks need no image, they are left alone
    import skimage.data

    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return Image.fromarray(skimage.data.astronaut()), Image.open(hopper).convert("RGB").crop((0, 0, 512, 512))
