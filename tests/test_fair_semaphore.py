"""The queueing of admission, on a loop that only turns when told."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from facenet_server.admission.fair_semaphore import FairSemaphore
from hypothesis import given
from hypothesis import strategies as st


class Holder:
    """A flow's request, and its units until it is told to give them back."""

    def __init__(self, semaphore: FairSemaphore, flow: str, *cost: int) -> None:
        self.is_granted = False
        self._release = asyncio.Event()
        self.task = asyncio.create_task(self._hold(semaphore, flow, cost))

    async def _hold(self, semaphore: FairSemaphore, flow: str, cost: Sequence[int]) -> None:
        async with semaphore.acquired(flow, *cost):
            self.is_granted = True
            await self._release.wait()

    async def release(self) -> None:
        self._release.set()
        await self.task


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_units_are_granted_until_there_are_none_and_nobody_passes_the_head() -> None:
    semaphore = FairSemaphore(4)
    two, three, one = Holder(semaphore, "a", 2), Holder(semaphore, "b", 3), Holder(semaphore, "c", 1)
    await turn()
    assert (two.is_granted, three.is_granted, one.is_granted) == (True, False, False)
    await two.release()
    await turn()
    assert (three.is_granted, one.is_granted) == (True, True)
    await three.release()
    await one.release()


async def test_a_request_over_the_limit_runs_alone() -> None:
    semaphore = FairSemaphore(4, 100)
    small, large = Holder(semaphore, "a", 1, 10), Holder(semaphore, "b", 1, 200)
    await turn()
    assert (small.is_granted, large.is_granted) == (True, False)
    await small.release()
    await turn()
    other = Holder(semaphore, "a", 1, 1)
    await turn()
    assert (large.is_granted, other.is_granted) == (True, False)
    await large.release()
    await turn()
    assert other.is_granted
    await other.release()


async def test_callers_who_wait_take_turns() -> None:
    semaphore, order = FairSemaphore(1), []

    async def work(flow: str) -> None:
        async with semaphore.acquired(flow, 1):
            order.append(flow)

    async with semaphore.acquired("first", 1):
        tasks = [asyncio.create_task(work(flow)) for flow in ("hog", "hog", "hog", "small")]
        await turn()
    await asyncio.gather(*tasks)
    assert order == ["hog", "small", "hog", "hog"]


async def test_a_request_is_charged_the_larger_share_of_its_limits() -> None:
    semaphore, order = FairSemaphore(10, 100), []

    async def work(flow: str, *cost: int) -> None:
        async with semaphore.acquired(flow, *cost):
            order.append(flow)
            await asyncio.sleep(0)

    async with semaphore.acquired("first", 10, 100):
        costs = {"pixels": (1, 100), "seats": (10, 1), "small": (1, 10)}
        tasks = [asyncio.create_task(work(flow, *cost)) for flow, cost in costs.items() for _ in range(3)]
        await turn()
    await asyncio.gather(*tasks)
    assert order[:3] == ["pixels", "seats", "small"]
    assert order[3:5] == ["small", "small"]  # ten of them cost as much as one of the others


@pytest.mark.parametrize("passes", [False, True])
async def test_a_cancelled_request_gives_way(passes: bool) -> None:
    semaphore = FairSemaphore(2, passes=passes)
    first, second, third = Holder(semaphore, "a", 1), Holder(semaphore, "b", 2), Holder(semaphore, "c", 1)
    await turn()
    assert (second.is_granted, third.is_granted) == (False, passes)
    second.task.cancel()
    await turn()
    assert third.is_granted
    for each in (first, third):
        await each.release()
    last = Holder(semaphore, "b", 2)
    await turn()
    assert last.is_granted
    await last.release()


async def test_a_request_that_is_cancelled_as_it_is_granted_gives_its_units_back() -> None:
    semaphore = FairSemaphore(1)
    first, second = Holder(semaphore, "a", 1), Holder(semaphore, "b", 1)
    await turn()
    first._release.set()
    await asyncio.sleep(0)  # the second is granted, but has not run yet
    second.task.cancel()
    await turn()
    third = Holder(semaphore, "c", 1)
    await turn()
    assert third.is_granted
    await third.release()


async def test_a_flow_at_its_cap_and_a_head_that_does_not_fit_are_passed_where_callers_bring_units_back() -> None:
    semaphore = FairSemaphore(256, passes=True)
    silent = [Holder(semaphore, f"silent {number}", 16) for number in range(15)]
    await turn()
    large, good = Holder(semaphore, "large", 32), Holder(semaphore, "good", 1)
    await turn()
    assert (large.is_granted, good.is_granted) == (False, True)
    more = Holder(semaphore, "silent 0", 1)
    await turn()
    assert not more.is_granted  # 16 of 256 / 18
    for each in (*silent, good):
        await each.release()
    await turn()
    assert large.is_granted
    for each in (large, more):
        await each.release()


async def test_a_flow_at_its_cap_is_passed_and_one_that_holds_nothing_may_take_more() -> None:
    semaphore = FairSemaphore(10, caps=(5,))
    first, second = Holder(semaphore, "a", 4), Holder(semaphore, "a", 2)
    await turn()
    other, large = Holder(semaphore, "b", 1), Holder(semaphore, "c", 5)
    await turn()
    assert (first.is_granted, second.is_granted, other.is_granted, large.is_granted) == (True, False, True, True)
    await large.release()
    larger, small = Holder(semaphore, "e", 6), Holder(semaphore, "d", 1)
    await turn()
    assert (larger.is_granted, small.is_granted) == (False, False)  # the head is not passed: it waits for progress
    await first.release()
    await turn()
    assert (second.is_granted, larger.is_granted, small.is_granted) == (True, True, True)
    for each in (second, other, larger, small):
        await each.release()


async def test_idle_flows_are_not_remembered_without_end() -> None:
    semaphore = FairSemaphore(1)

    async def work(flow: int) -> None:
        async with semaphore.acquired(str(flow), 1):
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work(flow)) for flow in range(2500)]  # somebody always waits
    await turn()
    while semaphore._waiting:
        assert len(semaphore._starts) <= len(semaphore._flows) + 1025
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert not semaphore._starts
    assert not semaphore._flows


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9), st.integers(0, 40), st.booleans()), max_size=40))
def test_whatever_comes_the_limits_hold_and_all_are_served(
    requests: list[tuple[str, int, int, bool]],
) -> None:
    async def run(passes: bool) -> None:
        semaphore, held, served = FairSemaphore(6, 30, passes=passes), Counter[int](), 0

        async def work(flow: str, seats: int, pixels: int) -> None:
            nonlocal served
            async with semaphore.acquired(flow, seats, pixels):
                held.update({0: seats, 1: pixels})
                try:
                    for kind, limit, units in ((0, 6, seats), (1, 30, pixels)):
                        assert not units or held[kind] <= max(limit, units)
                    await asyncio.sleep(0)
                    served += 1
                finally:
                    held.subtract({0: seats, 1: pixels})

        tasks = [asyncio.create_task(work(*request[:3])) for request in requests]
        await asyncio.sleep(0)
        leaving = [task for task, request in zip(tasks, requests, strict=True) if request[3]]
        for task in leaving:
            task.cancel()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert [error for error in ended if not (error is None or isinstance(error, asyncio.CancelledError))] == []
        assert served >= len(requests) - len(leaving)
        assert not any(semaphore._used)
        assert not semaphore._flows

    for passes in (False, True):
        asyncio.run(run(passes))


async def test_a_large_request_is_passed_by_one_limit_s_worth_of_others_and_no_more() -> None:
    semaphore = FairSemaphore(12, passes=True)
    small = [Holder(semaphore, str(number), 1) for number in range(10)]
    large = Holder(semaphore, "large", 8)
    await turn()
    assert not large.is_granted
    for number in range(40):  # as one ends, another caller's comes
        await small.pop(0).release()
        small.append(Holder(semaphore, f"later {number}", 1))
        await turn()
        if large.is_granted:
            break
    assert 12 <= number < 30
    await large.release()
    for each in small:
        await each.release()
    assert semaphore.used == (0,)


async def test_who_waits_at_its_cap_goes_on_when_another_flow_leaves() -> None:
    semaphore = FairSemaphore(12, passes=True)
    a, b, more = Holder(semaphore, "a", 4), Holder(semaphore, "b", 1), Holder(semaphore, "a", 2)
    await turn()
    assert not more.is_granted  # each of two may hold four
    await b.release()
    await turn()
    assert more.is_granted
    await a.release()
    await more.release()


async def test_what_is_held_already_fits_however_small_its_flow_s_share_has_become() -> None:
    semaphore = FairSemaphore(120, passes=True)
    await semaphore.acquire("a", 40)
    await semaphore.acquire("a", 8)
    for number in range(9):
        await semaphore.acquire(str(number), 1)
    assert semaphore.share("a") == 10
    assert semaphore.exchange("a", [8], [3])
    assert semaphore.exchange("a", [0], [0])
    assert not semaphore.exchange("a", [3], [4])
    assert semaphore.used == (49,)
