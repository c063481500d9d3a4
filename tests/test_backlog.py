from collections.abc import Callable

import pytest
from doors import Clock
from facenet_server.admission.throughput import Pace
from facenet_server.admission.wait_estimator import Backlog, Work

ABOUT = 0.15  # the pace is an average, and new work is not in it yet

Worker = Callable[..., None]


class Steady(Pace):
    """A tenth of a second an item, whatever comes."""

    def known_seconds_for(self, n_items: int) -> float:
        return n_items / 10


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def work_off(clock: Clock) -> Worker:
    """Ten items a second, in so many seats at once."""

    def work_off(work: Work, n_items: int, n_at_once: int = 1) -> None:
        for start in range(0, n_items, n_at_once):
            some = min(n_at_once, n_items - start)
            work.seated(some)
            clock.now_s += 0.1 * some
            for _ in range(some):
                work.done()

    return work_off


@pytest.fixture
def learned(clock: Clock, work_off: Worker) -> Callable[..., Backlog]:
    """A backlog of which ten items a second were done."""

    def learn(n_at_once: int = 1, most_of_stream: int | None = None) -> Backlog:
        backlog = Backlog(n_at_once, clock, most_of_stream=most_of_stream)
        work = backlog.begin("before", "its stream", 2 * max(10, n_at_once))
        work_off(work, 2 * max(10, n_at_once), n_at_once)
        work.over()
        return backlog

    return learn


def one_takes(backlog: Backlog, clock: Clock, caller: str, seconds: float) -> None:
    """A caller's item that is seated at once, takes so long, and is over."""
    work = backlog.begin(caller, "1", 1)
    work.seated(1)
    clock.now_s += seconds
    work.over()


def wait_s(backlog: Backlog, caller: str, n_items: int, stream: str = "a new one") -> float:
    return sum(backlog.waits_s(caller, stream, n_items))


def test_before_anything_was_done_nobody_can_tell() -> None:
    backlog = Backlog()
    backlog.begin("a", "1", 1000)
    assert wait_s(backlog, "b", 1) == 0


def test_a_caller_waits_for_what_it_has_in_other_streams(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    backlog.begin("a", "1", 30)
    assert wait_s(backlog, "a", 1, stream="2") == pytest.approx(3, rel=ABOUT)
    assert wait_s(backlog, "a", 64, stream="2") == pytest.approx(3, rel=ABOUT)  # the new ones are no wait for others


def test_of_a_caller_s_other_streams_no_more_goes_first_than_may_wait_for_seats(
    learned: Callable[..., Backlog],
) -> None:
    backlog = learned(most_of_stream=16)
    backlog.begin("a", "bulk", 256)
    backlog.begin("a", "another", 4)
    assert wait_s(backlog, "a", 1, stream="new") == pytest.approx(2, rel=ABOUT)
    backlog.begin("b", "bulk", 256)
    assert wait_s(backlog, "a", 1, stream="new") == pytest.approx(2 + 2.1, rel=ABOUT)  # of each other as much


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
    with work.aside(20):
        assert wait_s(backlog, "b", 20) == 0
    assert wait_s(backlog, "b", 20) == pytest.approx(2, rel=ABOUT)


def test_items_that_are_worked_on_at_once_do_not_wait_for_each_other(learned: Callable[..., Backlog]) -> None:
    backlog = learned(n_at_once=16)
    backlog.begin("a", "1", 15).seated(15)
    assert wait_s(backlog, "b", 1) == 0
    backlog.begin("b", "1", 5).seated(5)
    assert wait_s(backlog, "c", 1) == pytest.approx(0.5, rel=ABOUT)


@pytest.mark.parametrize("n_at_once", [2, 16, 64])
def test_what_was_done_one_by_one_does_not_make_many_threads_slow(clock: Clock, n_at_once: int) -> None:
    backlog = Backlog(n_at_once, clock)
    for number in range(600):  # a minute of one caller after the other
        one_takes(backlog, clock, str(number), 0.1)
    backlog.begin("a", "1", 11 * n_at_once)
    assert wait_s(backlog, "b", 11 * n_at_once) == pytest.approx(1, rel=ABOUT)


def test_of_work_that_takes_all_threads_when_alone_what_one_takes_is_the_pace(clock: Clock) -> None:
    backlog = Backlog(16, clock, one_takes_all=True)
    one_takes(backlog, clock, "a", 0.1)
    backlog.begin("a", "1", 25)
    assert wait_s(backlog, "b", 25) == pytest.approx(1, rel=ABOUT)


@pytest.mark.parametrize("slow_s", [2.0, 60.0])
def test_after_an_idle_time_what_was_slow_before_is_soon_forgotten(clock: Clock, slow_s: float) -> None:
    backlog = Backlog(1, clock)
    for _ in range(int(60 / slow_s)):
        one_takes(backlog, clock, "a", slow_s)
    clock.now_s += 3600
    one_takes(backlog, clock, "b", 0.05)
    backlog.begin("c", "1", 16)
    assert wait_s(backlog, "d", 16) == pytest.approx(0.8, rel=ABOUT)


def test_who_is_seated_already_may_take_more_of_a_newcomer_s_time_than_who_may_come_first(
    learned: Callable[..., Backlog],
) -> None:
    seated, waiting = learned(), learned()
    seated.begin("bulk", "1", 200).seated(10)
    for number in range(10):
        waiting.begin(str(number), number, 1)
    for backlog, least_s in ((seated, 1.33), (waiting, 2.5)):
        assert wait_s(backlog, "new", 1) == pytest.approx(1, rel=ABOUT)
        assert backlog.back_in_s("new", "its own", 1, left_s=(1 + ABOUT) * least_s) <= 0
        assert backlog.back_in_s("new", "its own", 1, left_s=(1 - ABOUT) * least_s) > 0


@pytest.mark.parametrize(("n_seated", "left_s"), [(0, 3.0), (20, 2.4), (10, 3.0), (10, 2.7)])
def test_who_comes_back_when_told_to_finds_room_though_its_own_time_went_by(
    learned: Callable[..., Backlog], n_seated: int, left_s: float
) -> None:
    backlog = learned()
    before = [backlog.begin(str(number), number, 1) for number in range(20)]  # two seconds of work
    for work in before[:n_seated]:
        work.seated(1)
    back_in_s = backlog.back_in_s("new", "1", 1, left_s)
    assert 0 < back_in_s < left_s
    backlog._pace = Steady()
    for work in before[: round(back_in_s * 10) + 1]:
        work.over()
    assert backlog.back_in_s("new", "1", 1, left_s - back_in_s) <= 0


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
    assert not backlog._of_caller + backlog._seated
    assert not backlog._streams_of


def test_of_a_message_s_items_no_more_have_seats_than_it_was_taken_to_have(learned: Callable[..., Backlog]) -> None:
    backlog = learned()
    work = backlog.begin("a", "1", 2)
    for _ in range(2):
        work.seated(2)
    assert backlog._n_seated == 2
    for _ in range(4):
        work.done()
    work.over()
    assert not backlog._of_caller + backlog._seated
    assert not backlog._n_seated


@pytest.mark.parametrize("n_at_once", [2, 16])
def test_tight_times_do_not_keep_a_server_of_many_cores_from_learning_what_it_can_do(n_at_once: int) -> None:
    """Callers of one item with twice the time that it takes, at half of what the server can do."""
    service_s, clock = 0.1, Clock()
    backlog, seated, refused = Backlog(n_at_once, clock), list[tuple[float, Work]](), 0
    for number in range(1000):
        clock.now_s = number * 2 * service_s / n_at_once
        while seated and seated[0][0] <= clock.now_s:
            seated.pop(0)[1].done()
        if backlog.back_in_s(str(number), number, 1, 2 * service_s) > 0:
            refused += 1
            continue
        work = backlog.begin(str(number), number, 1)
        work.seated(1)
        seated.append((clock.now_s + service_s, work))
    assert refused == 0
