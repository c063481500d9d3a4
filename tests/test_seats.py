import asyncio

from facenet_server.admission.fair_semaphore import Seats


class Guest:
    """Somebody who takes seats and keeps them until told to leave."""

    def __init__(self, seats: Seats, count: int, caller: str = "") -> None:
        self.seated = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(seats, count, caller))

    async def _stay(self, seats: Seats, count: int, caller: str) -> None:
        async with seats.taken(count, caller):
            self.seated = True
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_seats_are_taken_until_there_are_none() -> None:
    seats = Seats(4)
    two, three, one = Guest(seats, 2), Guest(seats, 3), Guest(seats, 1)
    await settle()
    # One would fit, but does not pass the three that came before.
    assert (two.seated, three.seated, one.seated) == (True, False, False)
    await two.leave()
    await settle()
    assert (three.seated, one.seated) == (True, True)
    await three.leave()
    await one.leave()


async def test_who_needs_more_than_there_are_takes_all() -> None:
    seats = Seats(4)
    many, one = Guest(seats, 64), Guest(seats, 1)
    await settle()
    assert (many.seated, one.seated) == (True, False)
    await many.leave()
    await one.leave()


async def test_a_caller_with_its_most_is_passed_by_others_and_one_who_has_none_may_take_more() -> None:
    seats = Seats(10, most_of_caller=5)
    first, second = Guest(seats, 4, "a"), Guest(seats, 2, "a")
    await settle()
    other, large = Guest(seats, 1, "b"), Guest(seats, 5, "c")
    await settle()
    assert (first.seated, second.seated, other.seated, large.seated) == (True, False, True, True)
    await large.leave()
    larger = Guest(seats, 6, "c")
    await settle()
    assert not larger.seated
    await first.leave()
    await settle()
    assert (second.seated, larger.seated) == (True, True)
    for guest in (second, other, larger):
        await guest.leave()


async def test_a_cancelled_guest_gives_way() -> None:
    seats = Seats(2)
    first, second, third = Guest(seats, 1), Guest(seats, 2), Guest(seats, 1)
    await settle()
    assert (second.seated, third.seated) == (False, False)
    second.task.cancel()
    await settle()
    assert third.seated
    first.task.cancel()
    third.task.cancel()
    await settle()
    last = Guest(seats, 2)
    await settle()
    assert last.seated
    await last.leave()


async def test_a_guest_cancelled_at_the_door_leaves_its_seats() -> None:
    seats = Seats(1)
    first, second = Guest(seats, 1), Guest(seats, 1)
    await settle()
    first._leave.set()
    await asyncio.sleep(0)  # the first has left and the second is admitted, but has not run yet
    second.task.cancel()
    await settle()
    third = Guest(seats, 1)
    await settle()
    assert third.seated
    await third.leave()


async def test_callers_who_wait_take_turns() -> None:
    seats, order = Seats(1), []

    async def guest(caller: str) -> None:
        async with seats.taken(1, caller):
            order.append(caller)

    async with seats.taken(1, "first"):
        guests = [asyncio.create_task(guest(caller)) for caller in ("hog", "hog", "hog", "small")]
        await settle()
    await asyncio.gather(*guests)
    assert order == ["hog", "small", "hog", "hog"]


async def test_callers_who_had_their_turn_and_left_are_not_remembered_without_end() -> None:
    seats = Seats(1)

    async def stay(caller: int) -> None:
        async with seats.taken(1, str(caller)):
            await asyncio.sleep(0)

    patient = [asyncio.create_task(stay(caller)) for caller in range(2500)]  # somebody always waits
    await settle()
    while seats._waiting:
        assert len(seats._starts) <= len(seats._waiting) + 1025
        await asyncio.sleep(0)
    await asyncio.gather(*patient)
    assert not seats._starts
