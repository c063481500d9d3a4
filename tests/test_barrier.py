import asyncio

import pytest
from facenet_server.serving.barrier import BatchBarrier, micro_batches


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_images_wait_for_each_other_before_each_network() -> None:
    barrier, passed = BatchBarrier(2), []

    async def image(name: str) -> None:
        for network in (1, 2):
            await barrier.wait()
            passed.append((network, name))
        barrier.leave(1)

    first = asyncio.create_task(image("first"))
    await settle()
    assert not passed
    await asyncio.gather(first, image("second"))
    assert [network for network, _ in passed] == [1, 1, 2, 2]


async def test_who_leaves_is_not_waited_for() -> None:
    barrier = BatchBarrier(2)
    waiting = asyncio.create_task(barrier.wait())
    await settle()
    barrier.leave(1)
    await waiting


async def test_who_is_cancelled_at_the_gate_does_not_open_it_for_the_others() -> None:
    barrier = BatchBarrier(3)
    cancelled, waiting = asyncio.create_task(barrier.wait()), asyncio.create_task(barrier.wait())
    await settle()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    barrier.leave(1)
    await settle()
    assert not waiting.done()  # the third is still on its way
    await barrier.wait()
    await waiting


@pytest.mark.parametrize(
    ("weights", "groups"),
    [([], [0]), ([1] * 7, [3, 3, 1]), ([4, 4, 4], [2, 1]), ([4, 5, 1, 1], [1, 3]), ([9, 1, 9, 9], [1, 1, 1, 1])],
)
def test_a_message_is_cut_into_companies_by_number_and_weight(weights: list[int], groups: list[int]) -> None:
    cut = micro_batches(weights, 3, 8)
    assert [len(weights[some]) for some in cut] == groups
    assert [each for some in cut for each in weights[some]] == weights
