"""Messages that are held until there is room for their items: who passes them, and for how long."""

import asyncio
from contextlib import ExitStack

import pytest
from doors import accept, door, waiting
from facenet_server.admission import controller
from facenet_server.admission.controller import Admission, Visit


@pytest.fixture
def patience_s(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(controller, "_PATIENCE_S", 0.1)
    return 0.1


def held(stack: ExitStack, admission: Admission, caller: str, n_items: int) -> Visit:
    visit = stack.enter_context(admission.enter(caller))
    assert visit.hold(n_items, 1)
    return visit


@pytest.mark.parametrize(
    "n_items",
    [
        pytest.param(16, id="that never has room"),
        pytest.param(12, id="that has room again and again, which others take before it"),
    ],
)
async def test_a_message_of_many_items_that_smaller_ones_pass_is_let_in_after_a_while(
    patience_s: float, n_items: int
) -> None:
    admission = door(items=32)
    with ExitStack() as stack:
        small = {name: stack.enter_context(admission.enter(name)) for name in "abcd"}
        for name in "abc":
            accept(small[name], 6)
        accept(small["d"], 6)
        large = held(stack, admission, "large", n_items)
        task = await waiting(large, n_items)
        small["d"].answered(6, 1)
        while not task.done():  # there is always room for a small one
            accept(small["d"], 6)
            await asyncio.sleep(patience_s / 10)
            assert admission.counts.items_in_flight == 24
            small["d"].answered(6, 1)
        large.accept(n_items)
        assert admission.counts.items_in_flight == 18 + n_items
        assert not small["d"].has_room(6)


async def test_only_one_message_at_a_time_exceeds_the_items_of_all(patience_s: float) -> None:
    admission = door(items=32)
    with ExitStack() as stack:
        small = {name: stack.enter_context(admission.enter(name)) for name in "abc"}
        for visit in small.values():
            accept(visit, 6)
        first, second = held(stack, admission, "first", 16), held(stack, admission, "second", 16)
        tasks = [asyncio.create_task(_let_in(visit, 16)) for visit in (first, second)]
        await asyncio.wait(tasks, timeout=5 * patience_s)
        assert [task.done() for task in tasks] == [True, False]
        for name in "ab":
            small[name].answered(6, 1)
        await asyncio.wait_for(tasks[1], 1)
        assert admission.counts.items_in_flight == 6 + 2 * 16


async def test_a_newcomer_finds_room_though_messages_wait_that_are_overdue(patience_s: float) -> None:
    admission = door(items=32)
    with ExitStack() as stack:
        busy = [stack.enter_context(admission.enter(name)) for name in "abc"]
        for visit in busy:
            accept(visit, 6)
        large = [held(stack, admission, name, 16) for name in "abc"]
        tasks = [asyncio.create_task(_let_in(visit, 16)) for visit in large]
        await asyncio.wait(tasks, timeout=5 * patience_s)
        assert [task.done() for task in tasks] == [True, False, False]
        busy[0].answered(6, 1)
        await asyncio.wait(tasks[1:], timeout=patience_s)
        assert admission.enter("newcomer").has_room()
        for task in tasks:
            task.cancel()


async def test_a_message_that_is_overdue_needs_no_more_room_than_one_that_is_not(patience_s: float) -> None:
    admission = door(items=8)
    with ExitStack() as stack:
        busy = stack.enter_context(admission.enter("a"))
        accept(busy, 7)
        visit = held(stack, admission, "b", 1)
        accept(busy, 1)
        task = await waiting(visit)
        await asyncio.sleep(2 * patience_s)
        assert not task.done()
        busy.answered(1, 1)  # there is room for one, and for no newcomer's share of two beside it
        await asyncio.wait_for(task, 1)


async def test_a_message_whose_stream_has_others_here_is_let_in_only_where_there_is_room(patience_s: float) -> None:
    admission = door(items=8, items_per_caller=8)
    with ExitStack() as stack:
        accept(stack.enter_context(admission.enter("a")), 2)
        visit = held(stack, admission, "large", 1)
        visit.accept(1)
        assert visit.hold(7, 1)
        task = await waiting(visit, 7)
        await asyncio.wait({task}, timeout=3 * patience_s)
        assert not task.done()
        visit.answered(1, 1)
        await asyncio.wait_for(task, 1)


async def test_a_message_whose_stream_has_untaken_answers_does_not_keep_its_callers_other_streams_asleep() -> None:
    admission = door(items=16)  # of which one caller may have a half
    with ExitStack() as stack:
        slow, quick = (stack.enter_context(admission.enter("a")) for _ in range(2))
        accept(slow, 4)
        accept(quick, 2)
        assert slow.hold(6, 1)
        assert quick.hold(4, 1)
        behind, task = await waiting(slow, 6), await waiting(quick, 4)
        quick.answered(2, 1)
        await asyncio.wait_for(task, 1)
        assert not behind.done()
        behind.cancel()


async def test_a_message_that_waits_no_longer_lets_those_behind_it_go_on() -> None:
    admission = door(items=16)  # of which one caller may have a half
    with ExitStack() as stack:
        busy = stack.enter_context(admission.enter("a"))
        accept(busy, 4)
        accept(busy, 2)
        first, second = held(stack, admission, "a", 6), held(stack, admission, "a", 3)
        gone, task = await waiting(first, 6), await waiting(second, 3)
        busy.answered(2, 1)
        await asyncio.sleep(0)
        assert not task.done()  # it is behind one that does not fit
        gone.cancel()
        await asyncio.wait_for(task, 1)


async def test_a_message_without_a_byte_is_not_expected_any_more_once_it_has_its_turn() -> None:
    admission = door(items=1)
    with ExitStack() as stack:
        busy, empty = (stack.enter_context(admission.enter(name)) for name in "ab")
        accept(busy, 1)
        assert empty.hold(1, 0)
        task = await waiting(empty)
        busy.answered(1, 1)
        await task
        empty.accept(1)
        assert admission._expected.of_all == 0


async def _let_in(visit: Visit, n_items: int) -> None:
    await visit.turn(n_items)
    visit.accept(n_items)
