import pytest
from clocks import Clock
from facenet_server.admission.wait_estimator import Throughput


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throughput(clock: Clock) -> Throughput:
    return Throughput(clock)


def answer(throughput: Throughput, clock: Clock, seconds_each: float, count: int) -> None:
    """So many, one after the other, from so many in flight at first."""
    for left in range(count, 0, -1):
        throughput.note(left)
        clock.now_s += seconds_each
        throughput.note(left - 1, gone=1)


def test_before_the_first_answer_it_says_a_second(throughput: Throughput) -> None:
    assert throughput.seconds_for(500) == 1


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_first_answers_tell_as_well_as_later_ones(throughput: Throughput, clock: Clock, count: int) -> None:
    answer(throughput, clock, 0.01, count)
    assert throughput.seconds_for(count) == pytest.approx(0.01 * count, rel=0.01)


def test_after_an_idle_hour_the_first_batch_makes_nothing_slow_before_it_is_done(
    throughput: Throughput, clock: Clock
) -> None:
    answer(throughput, clock, 0.01, 2000)
    clock.now_s += 3600
    throughput.note(8)
    clock.now_s += 0.1
    assert throughput.known_seconds_for(100) == pytest.approx(1, rel=0.15)


def test_idle_time_changes_nothing(throughput: Throughput, clock: Clock) -> None:
    answer(throughput, clock, 0.01, 50)
    before = throughput.seconds_for(10)
    clock.now_s += 3600
    assert throughput.seconds_for(10) == before


def test_a_pause_of_a_busy_server_is_not_taken_for_its_throughput(throughput: Throughput, clock: Clock) -> None:
    answer(throughput, clock, 0.01, 5000)
    throughput.note(20)
    clock.now_s += 2.5
    assert throughput.seconds_for(20) < 0.3


def test_where_nothing_is_answered_for_long_it_will_take_long(throughput: Throughput, clock: Clock) -> None:
    answer(throughput, clock, 0.01, 50)
    throughput.note(20)
    clock.now_s += 60
    assert throughput.seconds_for(20) > 5


def test_batches_at_long_intervals_are_a_steady_throughput(throughput: Throughput, clock: Clock) -> None:
    for _ in range(20):
        throughput.note(32)
        clock.now_s += 2
        before_one_s = throughput.seconds_for(32)
        throughput.note(16, gone=16)
    assert before_one_s == pytest.approx(4, rel=0.2)
    assert throughput.seconds_for(32) == pytest.approx(4, rel=0.2)


def test_of_a_crowd_a_pace_that_was_learned_from_one_tells_little(throughput: Throughput, clock: Clock) -> None:
    for _ in range(500):
        answer(throughput, clock, 0.01, 1)
    assert throughput.seconds_for(4) == pytest.approx(0.04, rel=0.01)
    assert throughput.seconds_for(1000) == 1
