import asyncio
from collections import deque

import pytest
from facenet_server.admission.crop_room import CropRoom, Crops
from facenet_server.errors import Overloaded

MOST = 1000  # of which one caller alone may have a half


class Stream:
    """A caller's stream: its answers, in order."""

    def __init__(self, room: CropRoom, caller: str = "a") -> None:
        self._room, self._caller, self._before = room, caller, deque[Crops]()

    def answer(self, n_bytes: int = 0) -> Crops:
        crops = Crops(self._room, self._caller, self._before)
        crops.add(n_bytes)
        return crops


async def waiting(crops: Crops) -> "asyncio.Task[None]":
    task = asyncio.create_task(crops.turn())
    await asyncio.sleep(0)
    return task


async def test_a_caller_with_more_than_its_share_waits_until_its_answers_are_taken() -> None:
    room = CropRoom(MOST)
    first, second = Stream(room).answer(501), Stream(room).answer()
    first.done()
    task = await waiting(second)
    assert not task.done()
    first.gone()
    await asyncio.wait_for(task, 1)
    assert room.n_bytes == 0


async def test_other_callers_do_not_wait_with_it_but_share_the_room() -> None:
    room = CropRoom(MOST)
    Stream(room, "hog").answer(400)
    other = Stream(room, "other").answer(333)
    assert other.has_room()
    other.add(1)
    assert not Stream(room, "other").answer().has_room()


async def test_a_caller_that_had_more_than_its_share_leaves_room_to_others_who_wait() -> None:
    room = CropRoom(MOST)
    hog, other = Stream(room, "hog").answer(400), Stream(room, "other").answer(400)
    task = await waiting(Stream(room, "other").answer())
    assert not task.done()
    hog.gone()
    await asyncio.wait_for(task, 1)
    other.gone()


async def test_where_the_whole_room_is_taken_only_each_callers_oldest_goes_on() -> None:
    room = CropRoom(MOST)
    hog = Stream(room, "hog").answer(5000)
    first, second = Stream(room, "other").answer(), Stream(room, "other").answer()
    assert first.has_room()
    assert not second.has_room()
    task = await waiting(second)
    hog.gone()
    await asyncio.wait_for(task, 1)


async def test_the_oldest_answer_that_is_half_done_goes_on_where_none_is_on_its_way_out() -> None:
    room = CropRoom(MOST)
    oldest, younger = Stream(room).answer(400), Stream(room).answer(400)
    assert oldest.has_room()
    task = await waiting(younger)
    assert not task.done()
    oldest.gone()
    await asyncio.wait_for(task, 1)


async def test_an_answer_behind_one_that_is_half_done_is_not_on_its_way_out() -> None:
    room = CropRoom(MOST)
    stream = Stream(room)
    first, behind = stream.answer(100), stream.answer(700)
    behind.done()
    assert first.has_room()
    first.done()
    assert not Stream(room).answer().has_room()


async def test_an_answer_behind_one_without_crops_that_is_not_taken_is_on_its_way_out() -> None:
    room = CropRoom(MOST)
    stream, other = Stream(room), Stream(room)
    bare, behind, half_done = stream.answer(), stream.answer(700), other.answer()
    behind.done()
    assert not half_done.has_room()  # the older one is half done
    bare.done()
    assert not half_done.has_room()
    bare.gone()
    behind.gone()
    assert half_done.has_room()


async def test_who_let_its_answers_lie_is_refused_more_and_served_again_once_they_are_taken() -> None:
    room = CropRoom(MOST)
    lies, next_one = Stream(room).answer(600), Stream(room).answer()
    lies.done()
    task = await waiting(next_one)
    lies.leave_behind()
    with pytest.raises(Overloaded):
        await asyncio.wait_for(task, 1)
    lies.gone()
    await asyncio.wait_for(next_one.turn(), 1)


async def test_a_little_that_lies_holds_up_nobody() -> None:
    room = CropRoom(MOST)
    lies, half_done = Stream(room).answer(300), Stream(room).answer(300)
    lies.done()
    task = await waiting(half_done)
    assert not task.done()
    lies.leave_behind()
    await asyncio.wait_for(task, 1)


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_nothing_is_left_of_callers_whose_answers_are_gone(steps: int) -> None:
    room = CropRoom(MOST)
    crops = Stream(room).answer(100)
    for step in (crops.done, crops.leave_behind)[:steps]:
        step()
    crops.gone()
    crops.done()  # a task's end may be told late
    assert (room.n_bytes, len(room._callers), room._holders) == (0, 0, 0)
