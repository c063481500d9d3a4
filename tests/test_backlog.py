from collections.abc import Callable

import pytest
from doors import Clock
from facenet_server.backlog import Backlog


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def learned(clock: Clock) -> Callable[[], Backlog]:
    """A backlog in which ten items a second were answered."""

    def learn() -> Backlog:
        backlog = Backlog(clock)
        work = backlog.begin("before", 20)
        for _ in range(20):
            clock.now_s += 0.1
            work.answered()
        work.over()
        return backlog

    return learn


def test_before_any_answer_nobody_can_tell() -> None:
    backlog = Backlog()
    backlog.begin("a", 1000)
    assert backlog.wait_s("a", 1) == 0


def test_a_caller_waits_for_its_own(learned: Callable[[], Backlog]) -> None:
    backlog = learned()
    backlog.begin("a", 30)
    assert backlog.wait_s("a", 1) == pytest.approx(3, rel=0.15)
    assert backlog.wait_s("a", 64) == pytest.approx(3, rel=0.15)  # its own new ones are no wait for others


def test_a_newcomer_waits_for_as_many_of_each_other_callers_as_it_brings(learned: Callable[[], Backlog]) -> None:
    backlog = learned()
    for caller in "abcd":
        backlog.begin(caller, 50)
    assert backlog.wait_s("new", 1) == pytest.approx(0.4, rel=0.15)
    assert backlog.wait_s("new", 10) == pytest.approx(4, rel=0.15)
    assert backlog.wait_s("new", 1000) == pytest.approx(20, rel=0.15)  # there are no more


def test_hundreds_of_callers_of_one_item_each_are_a_queue(learned: Callable[[], Backlog]) -> None:
    backlog = learned()
    for number in range(400):
        backlog.begin(str(number), 1)
    assert backlog.wait_s("new", 1) == pytest.approx(40, rel=0.15)


def test_answers_that_lie_unread_are_no_wait(clock: Clock, learned: Callable[[], Backlog]) -> None:
    backlog = learned()
    backlog.begin("a", 8).over()
    clock.now_s += 30
    backlog.begin("b", 1)
    assert backlog.wait_s("c", 1) == pytest.approx(0.1, rel=0.15)


def test_a_large_message_is_progress_item_by_item(clock: Clock, learned: Callable[[], Backlog]) -> None:
    backlog = learned()
    work = backlog.begin("a", 64)
    for _ in range(60):
        clock.now_s += 0.1
        work.answered()
    assert backlog.wait_s("b", 1) == pytest.approx(0.1, rel=0.15)


def test_items_without_an_answer_tell_nothing_of_the_pace(clock: Clock, learned: Callable[[], Backlog]) -> None:
    backlog = learned()
    for _ in range(100):
        backlog.begin("a", 64).over()  # broken files, say
    backlog.begin("a", 10)
    assert backlog.wait_s("a", 1) == pytest.approx(1, rel=0.15)


def test_a_message_that_is_over_counts_no_more_however_often_it_is_said(learned: Callable[[], Backlog]) -> None:
    backlog = learned()
    work = backlog.begin("a", 2)
    work.answered()
    work.over()
    work.over()
    work.answered()
    assert backlog.wait_s("b", 100) == 0
