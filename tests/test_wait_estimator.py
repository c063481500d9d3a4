from collections.abc import Callable

import pytest
from clocks import Clock
from facenet_server.admission.wait_estimator import Throughput, Ticket, WaitEstimator

ABOUT = 0.15  # the pace is an average, and new work is not in it yet

Worker = Callable[..., None]


class Steady(Throughput):
    """A tenth of a second an item, whatever comes."""

    def known_seconds_for(self, n_items: int) -> float:
        return n_items / 10


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def work_off(clock: Clock) -> Worker:
    """Ten items a second, in so many seats at once."""

    def work_off(ticket: Ticket, n_items: int, n_at_once: int = 1) -> None:
        for start in range(0, n_items, n_at_once):
            some = min(n_at_once, n_items - start)
            ticket.seated(some)
            clock.now_s += 0.1 * some
            for _ in range(some):
                ticket.done()

    return work_off


@pytest.fixture
def learned(clock: Clock, work_off: Worker) -> Callable[..., WaitEstimator]:
    """An estimator of which ten items a second were done."""

    def learn(n_at_once: int = 1, most_of_stream: int | None = None) -> WaitEstimator:
        estimator = WaitEstimator(n_at_once, clock, most_of_stream=most_of_stream)
        ticket = estimator.begin("before", "its stream", 2 * max(10, n_at_once))
        work_off(ticket, 2 * max(10, n_at_once), n_at_once)
        ticket.finished()
        return estimator

    return learn


def one_takes(estimator: WaitEstimator, clock: Clock, caller: str, seconds: float) -> None:
    """A caller's item that is seated at once, takes so long, and is over."""
    ticket = estimator.begin(caller, "1", 1)
    ticket.seated(1)
    clock.now_s += seconds
    ticket.finished()


def wait_s(estimator: WaitEstimator, caller: str, n_items: int, stream: str = "a new one") -> float:
    return sum(estimator.waits_s(caller, stream, n_items))


def test_before_anything_was_done_nobody_can_tell() -> None:
    estimator = WaitEstimator()
    estimator.begin("a", "1", 1000)
    assert wait_s(estimator, "b", 1) == 0


def test_a_caller_waits_for_what_it_has_in_other_streams(learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    estimator.begin("a", "1", 30)
    assert wait_s(estimator, "a", 1, stream="2") == pytest.approx(3, rel=ABOUT)
    assert wait_s(estimator, "a", 64, stream="2") == pytest.approx(3, rel=ABOUT)  # the new ones are no wait for others


def test_of_a_caller_s_other_streams_no_more_goes_first_than_may_wait_for_seats(
    learned: Callable[..., WaitEstimator],
) -> None:
    estimator = learned(most_of_stream=16)
    estimator.begin("a", "bulk", 256)
    estimator.begin("a", "another", 4)
    assert wait_s(estimator, "a", 1, stream="new") == pytest.approx(2, rel=ABOUT)
    estimator.begin("b", "bulk", 256)
    assert wait_s(estimator, "a", 1, stream="new") == pytest.approx(2 + 2.1, rel=ABOUT)  # of each other as much


def test_what_a_stream_has_itself_is_no_wait_for_others(learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    estimator.begin("a", "1", 200)
    assert wait_s(estimator, "a", 1, stream="1") == 0


def test_a_newcomer_waits_for_as_many_of_each_other_caller_s_as_it_brings(
    learned: Callable[..., WaitEstimator],
) -> None:
    estimator = learned()
    for caller in "abcd":
        estimator.begin(caller, caller, 50)
    assert wait_s(estimator, "new", 1) == pytest.approx(0.4, rel=ABOUT)
    assert wait_s(estimator, "new", 10) == pytest.approx(4, rel=ABOUT)
    assert wait_s(estimator, "new", 1000) == pytest.approx(20, rel=ABOUT)  # there are no more


def test_beside_a_caller_of_much_those_of_little_are_no_more_than_they_have(
    learned: Callable[..., WaitEstimator],
) -> None:
    estimator = learned()
    estimator.begin("bulk", "bulk", 1000)
    for number in range(20):
        estimator.begin(str(number), str(number), 1)
    assert wait_s(estimator, "new", 10) == pytest.approx(3, rel=ABOUT)  # ten of the bulk's, and the twenty


def test_hundreds_of_callers_of_one_item_each_are_a_queue(learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    for number in range(400):
        estimator.begin(str(number), str(number), 1)
    assert wait_s(estimator, "new", 1) == pytest.approx(40, rel=ABOUT)


def test_what_is_seated_already_goes_first_however_much_it_is(learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    estimator.begin("a", "1", 200).seated(100)
    assert wait_s(estimator, "new", 1) == pytest.approx(10, rel=ABOUT)


def test_beside_seats_that_one_caller_has_others_wait_as_well(learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    estimator.begin("bulk", "bulk", 200).seated(50)
    for number in range(40):
        estimator.begin(str(number), str(number), 1)
    assert wait_s(estimator, "new", 1) == pytest.approx(9, rel=ABOUT)


def test_items_that_are_worked_on_at_once_do_not_wait_for_each_other(learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned(n_at_once=16)
    estimator.begin("a", "1", 15).seated(15)
    assert wait_s(estimator, "b", 1) == 0
    estimator.begin("b", "1", 5).seated(5)
    assert wait_s(estimator, "c", 1) == pytest.approx(0.5, rel=ABOUT)


@pytest.mark.parametrize("n_at_once", [2, 16, 64])
def test_what_was_done_one_by_one_does_not_make_many_threads_slow(clock: Clock, n_at_once: int) -> None:
    estimator = WaitEstimator(n_at_once, clock)
    for number in range(600):  # a minute of one caller after the other
        one_takes(estimator, clock, str(number), 0.1)
    estimator.begin("a", "1", 11 * n_at_once)
    assert wait_s(estimator, "b", 11 * n_at_once) == pytest.approx(1, rel=ABOUT)


def test_of_work_that_takes_all_threads_when_alone_what_one_takes_is_the_throughput(clock: Clock) -> None:
    estimator = WaitEstimator(16, clock, one_takes_all=True)
    one_takes(estimator, clock, "a", 0.1)
    estimator.begin("a", "1", 25)
    assert wait_s(estimator, "b", 25) == pytest.approx(1, rel=ABOUT)


@pytest.mark.parametrize("slow_s", [2.0, 60.0])
def test_after_an_idle_time_what_was_slow_before_is_soon_forgotten(clock: Clock, slow_s: float) -> None:
    estimator = WaitEstimator(1, clock)
    for _ in range(int(60 / slow_s)):
        one_takes(estimator, clock, "a", slow_s)
    clock.now_s += 3600
    one_takes(estimator, clock, "b", 0.05)
    estimator.begin("c", "1", 16)
    assert wait_s(estimator, "d", 16) == pytest.approx(0.8, rel=ABOUT)


def test_who_is_seated_already_may_take_more_of_a_newcomer_s_time_than_who_may_come_first(
    learned: Callable[..., WaitEstimator],
) -> None:
    seated, waiting = learned(), learned()
    seated.begin("bulk", "1", 200).seated(10)
    for number in range(10):
        waiting.begin(str(number), number, 1)
    for estimator, least_s in ((seated, 1.33), (waiting, 2.5)):
        assert wait_s(estimator, "new", 1) == pytest.approx(1, rel=ABOUT)
        assert estimator.refused_for_s("new", "its own", 1, remaining_s=(1 + ABOUT) * least_s) <= 0
        assert estimator.refused_for_s("new", "its own", 1, remaining_s=(1 - ABOUT) * least_s) > 0


@pytest.mark.parametrize(("n_seated", "remaining_s"), [(0, 3.0), (20, 2.4), (10, 3.0), (10, 2.7)])
def test_who_comes_back_when_told_to_finds_room_though_its_own_time_went_by(
    learned: Callable[..., WaitEstimator], n_seated: int, remaining_s: float
) -> None:
    estimator = learned()
    before = [estimator.begin(str(number), number, 1) for number in range(20)]  # two seconds of work
    for ticket in before[:n_seated]:
        ticket.seated(1)
    backoff_s = estimator.refused_for_s("new", "1", 1, remaining_s)
    assert 0 < backoff_s < remaining_s
    estimator._throughput = Steady()
    for ticket in before[: round(backoff_s * 10) + 1]:
        ticket.finished()
    assert estimator.refused_for_s("new", "1", 1, remaining_s - backoff_s) <= 0


def test_answers_that_lie_unread_are_no_wait(
    clock: Clock, learned: Callable[..., WaitEstimator], work_off: Worker
) -> None:
    estimator = learned()
    work_off(estimator.begin("a", "1", 8), 8)
    clock.now_s += 30
    estimator.begin("b", "2", 1)
    assert wait_s(estimator, "c", 1) == pytest.approx(0.1, rel=ABOUT)


def test_a_large_message_is_progress_item_by_item(clock: Clock, learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    ticket = estimator.begin("a", "1", 64)
    ticket.seated(64)
    for _ in range(60):
        clock.now_s += 0.1
        ticket.done()
    assert wait_s(estimator, "b", 100) == pytest.approx(0.4, rel=ABOUT)


def test_time_in_which_nothing_has_a_seat_is_no_slowness(clock: Clock, learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    estimator.begin("held up by its caller", "1", 64)
    clock.now_s += 600
    assert wait_s(estimator, "b", 1) == pytest.approx(0.1, rel=ABOUT)


def test_whoever_leaves_a_seat_made_it_free_answered_or_not(
    clock: Clock, learned: Callable[..., WaitEstimator]
) -> None:
    estimator = learned()
    for _ in range(60):  # minutes of nothing but work for a caller who leaves
        ticket = estimator.begin("a", "1", 10)
        ticket.seated(10)
        clock.now_s += 1
        ticket.finished()
    estimator.begin("a", "1", 10)
    assert wait_s(estimator, "b", 10) == pytest.approx(1, rel=ABOUT)


def test_what_never_had_a_seat_tells_nothing_of_the_throughput(learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    for _ in range(100):
        estimator.begin("a", "1", 64).finished()  # out of time before its turn, say
    estimator.begin("a", "1", 10)
    assert wait_s(estimator, "b", 10) == pytest.approx(1, rel=ABOUT)


def test_a_message_that_is_over_counts_no_more_however_often_it_is_said(learned: Callable[..., WaitEstimator]) -> None:
    estimator = learned()
    ticket = estimator.begin("a", "1", 3)
    ticket.seated(2)
    ticket.done()
    for _ in range(2):
        ticket.finished()
        ticket.done()
    assert wait_s(estimator, "b", 100) == 0
    assert not estimator._of_caller + estimator._seated
    assert not estimator._streams_of


def test_of_a_message_s_items_no_more_have_seats_than_it_was_taken_to_have(
    learned: Callable[..., WaitEstimator],
) -> None:
    estimator = learned()
    ticket = estimator.begin("a", "1", 2)
    for _ in range(2):
        ticket.seated(2)
    assert estimator._n_seated == 2
    for _ in range(4):
        ticket.done()
    ticket.finished()
    assert not estimator._of_caller + estimator._seated
    assert not estimator._n_seated


@pytest.mark.parametrize("n_at_once", [2, 16])
def test_tight_times_do_not_keep_a_server_of_many_cores_from_learning_what_it_can_do(n_at_once: int) -> None:
    """Callers of one item with twice the time that it takes, at half of what the server can do."""
    service_s, clock = 0.1, Clock()
    estimator, seated, refused = WaitEstimator(n_at_once, clock), list[tuple[float, Ticket]](), 0
    for number in range(1000):
        clock.now_s = number * 2 * service_s / n_at_once
        while seated and seated[0][0] <= clock.now_s:
            seated.pop(0)[1].done()
        if estimator.refused_for_s(str(number), number, 1, 2 * service_s) > 0:
            refused += 1
            continue
        ticket = estimator.begin(str(number), number, 1)
        ticket.seated(1)
        seated.append((clock.now_s + service_s, ticket))
    assert refused == 0
