from collections.abc import Callable

import pytest
from doors import Clock
from facenet_server.backlog import Backlog, Work

ABOUT = 0.15  # the pace is an average, and new work is not in it yet

Worker = Callable[[Work, int], None]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def work_off(clock: Clock) -> Worker:
    """Ten items a second, one seat after the other."""

    def work_off(work: Work, n_items: int) -> None:
        for _ in range(n_items):
            work.seated(1)
            clock.now_s += 0.1
            work.done()

    return work_off


@pytest.fixture
def learned(clock: Clock, work_off: Worker) -> Callable[..., Backlog]:
    """A backlog of which ten items a second were done."""

    def learn(n_at_once: int = 1) -> Backlog:
        backlog = Backlog(n_at_once, clock)
        work = backlog.begin("before", "its stream", 20)
        work_off(work, 20)
        work.over()
        return backlog

    return learn


def wait_s(backlog: Backlog, caller: str, n_items: int, stream: str = "a new one") -> float:
    return backlog.wait_s(caller, stream, n_items)


def test_before_anything_was_done_nobody_can_tell() -> None:
    backlog = Backlog()
    backlog.begin("a", "1", 1000)
    assert wait_s(backlog, "b", 1) == 0


def test_a_caller_waits_for_what_it_has_in_other_streams(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    backlog.begin("a", "1", 30)
    assert wait_s(backlog, "a", 1, stream="2") == pytest.approx(3, rel=ABOUT)
    assert wait_s(backlog, "a", 64, stream="2") == pytest.approx(3, rel=ABOUT)  # the new ones are no wait for others


def test_what_a_stream_has_itself_is_no_wait_for_others(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    backlog.begin("a", "1", 200)
    assert wait_s(backlog, "a", 1, stream="1") == 0


def test_a_newcomer_waits_for_as_many_of_each_other_caller_s_as_it_brings(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    for caller in "abcd":
        backlog.begin(caller, caller, 50)
    assert wait_s(backlog, "new", 1) == pytest.approx(0.4, rel=ABOUT)
    assert wait_s(backlog, "new", 10) == pytest.approx(4, rel=ABOUT)
    assert wait_s(backlog, "new", 1000) == pytest.approx(20, rel=ABOUT)  # there are no more


def test_beside_a_caller_of_much_those_of_little_are_no_more_than_they_have(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    backlog.begin("bulk", "bulk", 1000)
    for number in range(20):
        backlog.begin(str(number), str(number), 1)
    assert wait_s(backlog, "new", 10) == pytest.approx(3, rel=ABOUT)  # ten of the bulk's, and the twenty


def test_hundreds_of_callers_of_one_item_each_are_a_queue(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    for number in range(400):
        backlog.begin(str(number), str(number), 1)
    assert wait_s(backlog, "new", 1) == pytest.approx(40, rel=ABOUT)


def test_what_is_seated_already_goes_first_however_much_it_is(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    backlog.begin("a", "1", 200).seated(100)
    assert wait_s(backlog, "new", 1) == pytest.approx(10, rel=ABOUT)


def test_beside_seats_that_one_caller_has_others_wait_as_well(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    backlog.begin("bulk", "bulk", 200).seated(50)
    for number in range(40):
        backlog.begin(str(number), str(number), 1)
    assert wait_s(backlog, "new", 1) == pytest.approx(9, rel=ABOUT)


def test_items_that_wait_for_their_own_caller_are_in_nobody_s_way(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    work = backlog.begin("a", "1", 20)
    work.aside(20)
    assert wait_s(backlog, "b", 20) == 0
    work.aside(-20)
    assert wait_s(backlog, "b", 20) == pytest.approx(2, rel=ABOUT)


def test_items_that_are_worked_on_at_once_do_not_wait_for_each_other(learned: Callable[..., Backlog]) -> None:
    backlog = learned(n_at_once=16)
    backlog.begin("a", "1", 15).seated(15)
    assert wait_s(backlog, "b", 1) == 0
    backlog.begin("b", "1", 5).seated(5)
    assert wait_s(backlog, "c", 1) == pytest.approx(0.5, rel=ABOUT)


def test_answers_that_lie_unread_are_no_wait(clock: Clock, learned: Callable[..., Backlog], work_off: Worker) -> None:
    backlog = learned()
    work_off(backlog.begin("a", "1", 8), 8)
    clock.now_s += 30
    backlog.begin("b", "2", 1)
    assert wait_s(backlog, "c", 1) == pytest.approx(0.1, rel=ABOUT)


def test_a_large_message_is_progress_item_by_item(clock: Clock, learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    work = backlog.begin("a", "1", 64)
    work.seated(64)
    for _ in range(60):
        clock.now_s += 0.1
        work.done()
    assert wait_s(backlog, "b", 100) == pytest.approx(0.4, rel=ABOUT)


def test_time_in_which_nothing_has_a_seat_is_no_slowness(clock: Clock, learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    backlog.begin("held up by its caller", "1", 64)
    clock.now_s += 600
    assert wait_s(backlog, "b", 1) == pytest.approx(0.1, rel=ABOUT)


def test_whoever_leaves_a_seat_made_it_free_answered_or_not(clock: Clock, learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    for _ in range(60):  # minutes of nothing but work for a caller who leaves
        work = backlog.begin("a", "1", 10)
        work.seated(10)
        clock.now_s += 1
        work.over()
    backlog.begin("a", "1", 10)
    assert wait_s(backlog, "b", 10) == pytest.approx(1, rel=ABOUT)


def test_what_never_had_a_seat_tells_nothing_of_the_pace(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    for _ in range(100):
        backlog.begin("a", "1", 64).over()  # out of time before its turn, say
    backlog.begin("a", "1", 10)
    assert wait_s(backlog, "b", 10) == pytest.approx(1, rel=ABOUT)


def test_a_message_that_is_over_counts_no_more_however_often_it_is_said(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    work = backlog.begin("a", "1", 3)
    work.seated(2)
    work.done()
    for _ in range(2):
        work.over()
        work.done()
    assert wait_s(backlog, "b", 100) == 0
    assert not backlog._of_caller + backlog._of_stream + backlog._seated


@pytest.mark.parametrize("n_at_once", [2, 16])
def test_tight_times_do_not_keep_a_server_of_many_cores_from_learning_what_it_can_do(n_at_once: int) -> None:
    """Callers of one item with twice the time that it takes, at half of what the server can do."""
    service_s, clock = 0.1, Clock()
    backlog, seated, refused = Backlog(n_at_once, clock), list[tuple[float, Work]](), 0
    for number in range(1000):
        clock.now_s = number * 2 * service_s / n_at_once
        while seated and seated[0][0] <= clock.now_s:
            seated.pop(0)[1].done()
        if backlog.wait_s(str(number), number, 1) > 0.4 * 2 * service_s:
            refused += 1
            continue
        work = backlog.begin(str(number), number, 1)
        work.seated(1)
        seated.append((clock.now_s + service_s, work))
    assert refused == 0
