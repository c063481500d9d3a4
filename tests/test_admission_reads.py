"""When a running stream is read: what must be free for it, and what others are expected to bring."""

import asyncio
from contextlib import ExitStack

import pytest
from doors import Clock, accept, door, waiting
from facenet_server.admission import controller
from facenet_server.admission.limits import Tries


async def test_a_stream_is_read_once_its_callers_share_has_room_for_a_message_like_its_last() -> None:
    admission = door(n_bytes=1000)  # of which one caller may have a half
    with admission.enter("a") as large, admission.enter("a") as other:
        accept(large, 1, 300)
        accept(other, 1, 150)
        large.answered(1, 300)
        accept(other, 1, 100)
        task = await waiting(large)
        assert other.has_room()
        assert not task.done()
        other.answered(1, 100)
        await task


async def test_a_stream_with_large_messages_is_read_after_a_while_where_other_callers_leave_any_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller, "_PATIENCE_S", 0.1)
    admission = door(n_bytes=1000)
    with admission.enter("a") as large, admission.enter("b") as b, admission.enter("c") as c:
        accept(large, 1, 900)
        large.answered(1, 900)
        accept(b, 1, 300)
        accept(c, 1, 300)
        assert not large.has_room()
        await asyncio.wait_for(large.turn(), 1)
        assert not large.hold(1, 900)


async def test_a_callers_streams_whose_messages_are_not_likely_to_fit_are_read_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller, "_PATIENCE_S", 0.1)
    admission = door(n_bytes=1000)
    with ExitStack() as stack:
        one, another, of_other, b, c = (stack.enter_context(admission.enter(name)) for name in "aadbc")
        for visit in (one, another, of_other):
            accept(visit, 1, 400)
            visit.answered(1, 400)
        accept(b, 1, 330)
        accept(c, 1, 330)
        first, second, others = [await waiting(visit) for visit in (one, another, of_other)]
        await asyncio.wait_for(first, 1)
        assert not one.hold(1, 400)
        await asyncio.wait_for(others, 1)
        assert not of_other.hold(1, 400)
        await asyncio.sleep(0.2)
        assert not second.done()
        c.answered(1, 330)
        b.answered(1, 330)
        await asyncio.wait_for(second, 1)
        assert another.hold(1, 400)


def test_callers_share_what_is_read_though_it_is_not_likely_to_fit() -> None:
    clock = Clock()
    tries = Tries(clock)
    assert tries.take("a", 16_000_000, 2)  # a second of its half
    assert tries.take("b", 1_000_000, 2)
    clock.now_s = 0.5
    assert not tries.take("a", 1, 2)
    assert tries.take("b", 1, 2)
    clock.now_s = 1.0
    assert tries.take("a", 1, 2)


async def test_a_stream_that_has_its_items_does_not_hold_up_one_that_waits_for_more_bytes() -> None:
    admission = door(n_bytes=1000, items_per_stream=8)
    with admission.enter("a") as full, admission.enter("a") as other, admission.enter("a") as third:
        accept(full, 8, 100)
        accept(other, 1, 200)
        other.answered(1, 200)
        accept(third, 1, 350)
        of_full, of_other = await waiting(full), await waiting(other)
        third.answered(1, 350)
        await of_other
        assert not of_full.done()
        of_full.cancel()


async def test_what_is_expected_of_a_callers_other_streams_takes_room_until_it_came_or_is_late() -> None:
    admission = door(n_bytes=1000)
    with admission.enter("a") as first, admission.enter("a") as second, admission.enter("b") as other:
        for visit in (first, second, other):
            accept(visit, 1, 150)
        first.answered(1, 150)  # a has 150 of the 333 that it may have
        first.expect()
        assert not second.has_room()
        task = await waiting(second)
        accept(first, 1, 20)
        await task
        second.expect()  # and nothing comes
        assert not first.has_room()
        await asyncio.wait_for(first.turn(), 2)
        assert other.has_room()


async def test_who_waits_for_much_room_is_read_after_a_while_where_there_is_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller, "_PATIENCE_S", 0.1)
    admission = door(n_bytes=1000)
    with admission.enter("a") as large, admission.enter("a") as other:
        accept(large, 1, 400)
        large.answered(1, 400)
        accept(other, 1, 200)
        task = await waiting(large)
        await asyncio.wait_for(task, 1)
        assert not large.hold(1, 400)
        assert not large.has_room()


async def test_a_caller_with_nothing_in_flight_is_not_read_for_more_than_its_share() -> None:
    admission = door(n_bytes=1000)
    with ExitStack() as open_streams:
        visits = [open_streams.enter_context(admission.enter("a")) for _ in range(4)]
        for visit in visits:
            accept(visit, 1, 300)
            visit.answered(1, 300)
        visits[0].expect()
        assert not visits[1].has_room()
        assert admission.enter("a")  # what is expected keeps nobody out
        visits[0].expect_no_more()
        assert visits[1].has_room()


async def test_who_is_woken_has_its_room_until_it_reads() -> None:
    admission = door(n_bytes=1000)
    with admission.enter("a") as waits, admission.enter("a") as busy:
        accept(waits, 1, 200)
        waits.answered(1, 200)
        for _ in range(2):
            accept(busy, 1, 200)
        task = await waiting(waits)
        busy.answered(1, 200)
        assert not busy.has_room()
        await task
        waits.expect()
        assert not busy.has_room()
        accept(waits, 1, 50)
        assert busy.has_room()


async def test_who_is_woken_is_not_thrown_back_by_those_who_are_woken_after_it() -> None:
    admission = door(n_bytes=1000)
    with admission.enter("a") as busy, admission.enter("a") as small, admission.enter("a") as large:
        for visit, n_bytes in ((small, 50), (large, 150)):
            accept(visit, 1, n_bytes)
            visit.answered(1, n_bytes)
        accept(busy, 1, 310)
        accept(busy, 1, 160)
        tasks = [await waiting(small), await waiting(large)]
        large.asked_bytes = 1  # as where it has waited for long
        busy.answered(1, 160)
        await asyncio.wait_for(asyncio.gather(*tasks), 1)


async def test_of_many_new_streams_only_so_many_are_read_at_once_whose_messages_may_be_large() -> None:
    admission = door(n_bytes=64 << 20, streams=100)  # of which one caller may have a half
    with ExitStack() as streams:
        visits = [streams.enter_context(admission.enter("a")) for _ in range(20)]
        reading = []
        for visit in visits:
            if visit.has_room():
                visit.expect()
                reading.append(visit)
        assert len(reading) == 4
        assert streams.enter_context(admission.enter("b")).has_room()
        task = await waiting(visits[-1])
        assert not task.done()
        accept(reading[0], 1, 100)  # its message is a small one
        await task
