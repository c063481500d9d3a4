import asyncio

from facenet_server.crop_room import CropRoom, Crops

MOST = 1000  # of which one caller alone may have a half


async def waiting(crops: Crops) -> "asyncio.Task[None]":
    task = asyncio.create_task(crops.turn())
    await asyncio.sleep(0)
    return task


async def test_a_caller_with_more_than_its_share_waits_until_its_answers_are_taken() -> None:
    room = CropRoom(MOST)
    first, second = Crops(room, "a"), Crops(room, "a")
    first.add(501)
    first.done()
    first.leave()
    task = await waiting(second)
    assert not task.done()
    first.gone()
    await asyncio.wait_for(task, 1)
    assert room.n_bytes == 0


async def test_other_callers_do_not_wait_with_it_but_share_the_room() -> None:
    room = CropRoom(MOST)
    hog, other = Crops(room, "hog"), Crops(room, "other")
    hog.add(5000)
    assert other.has_room()
    other.add(333)
    assert other.has_room()
    other.add(1)
    another = Crops(room, "other")
    assert not another.has_room()


async def test_the_oldest_answer_that_is_half_done_goes_on_where_none_is_on_its_way_out() -> None:
    room = CropRoom(MOST)
    oldest, younger = Crops(room, "a"), Crops(room, "a")
    oldest.add(400)
    younger.add(400)
    assert oldest.has_room()
    task = await waiting(younger)
    oldest.add(400)
    oldest.done()
    assert not task.done()  # it is the oldest now; whoever is done is about to leave, or so it seems
    await asyncio.wait_for(task, 1)
    oldest.leave()
    assert not younger.has_room()
    oldest.gone()
    assert younger.has_room()


async def test_an_answer_without_crops_on_its_way_out_holds_up_nobody() -> None:
    room = CropRoom(MOST)
    bare, half_done = Crops(room, "a"), Crops(room, "a")
    bare.done()
    bare.leave()
    half_done.add(700)
    assert half_done.has_room()


async def test_nothing_is_left_of_callers_whose_answers_are_gone() -> None:
    room = CropRoom(MOST)
    for step in range(3):
        crops = Crops(room, "a")
        crops.add(100)
        if step > 0:
            crops.done()
        if step > 1:
            crops.leave()
        crops.gone()
    assert (room.n_bytes, len(room._of_caller)) == (0, 0)
