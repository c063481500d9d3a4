"""Files that mean ill, and files damaged at random: each refused for its reason or answered, at nobody else's cost."""

import pytest
from facenet_client import AsyncClient, Detection, ImageLike
from facenet_server.config import Config
from facenet_server.errors import InvalidInput
from facenet_server.vision.decode import decode
from facenet_server.vision.sources import DecodeLimits, Encoded, claimed_pixels
from nets import fake_server, square

from chaos.files import REASONS, Bomb, bombs, damaged

LIMITS = DecodeLimits.of(Config())


@pytest.mark.parametrize("bomb", bombs(), ids=lambda bomb: bomb.name)
def test_a_bomb_is_refused_on_its_header(bomb: Bomb) -> None:
    assert claimed_pixels(Encoded(bomb.data), LIMITS) == 0
    with pytest.raises(InvalidInput) as refused:
        decode(Encoded(bomb.data), LIMITS)
    assert refused.value.reason == bomb.reason


def test_no_file_decodes_to_more_pixels_than_it_claims() -> None:
    for data in damaged(3_000, seed=1):
        try:
            decoded = decode(Encoded(data), LIMITS)
        except InvalidInput:
            continue
        assert decoded.height * decoded.width <= claimed_pixels(Encoded(data), LIMITS)


def told(answer: Detection) -> object:
    assert answer.error is None
    return [(face.box, face.score, face.landmarks) for face in answer.faces]


async def test_bombs_cost_their_neighbours_nothing() -> None:
    sent: list[ImageLike] = [square(), *(bomb.data for bomb in bombs()), square()]
    async with fake_server() as target, AsyncClient(target, timeout_s=30) as client:
        (alone,) = await client.detect([square()])
        first, *refused, last = await client.detect(sent)
    assert told(first) == told(last) == told(alone)
    assert [each.error and each.error.reason for each in refused] == [bomb.reason for bomb in bombs()]


@pytest.mark.timeout(120)
async def test_a_damaged_file_is_answered_or_refused_for_a_documented_reason() -> None:
    files = list(damaged(3_000))
    async with fake_server() as target, AsyncClient(target, timeout_s=60) as client:
        (alone,) = await client.detect([square()])
        answers = [each async for each in client.detect_stream(one for file in files for one in (file, square()))]
    assert len(answers) == 2 * len(files)
    assert {told(each) == told(alone) for each in answers[1::2]} == {True}
    reasons = {each.error.reason for each in answers[::2] if each.error}
    assert reasons <= REASONS
    assert any(each.damaged for each in answers[::2])
