import pytest
from doors import Clock
from facenet_server.pace import Pace


def answer(pace: Pace, clock: Clock, seconds_each: float, count: int) -> None:
    for left in range(count, 0, -1):
        pace.note(left)
        clock.now_s += seconds_each
        pace.note(left - 1, answered=1)


def test_nothing_is_known_before_the_first_answer() -> None:
    assert Pace(Clock()).per_second() == 0


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_first_answers_tell_the_rate_as_well_as_later_ones(count: int) -> None:
    clock = Clock()
    pace = Pace(clock)
    answer(pace, clock, 0.01, count)
    assert pace.per_second() == pytest.approx(100, rel=0.01)


def test_idle_time_changes_nothing() -> None:
    clock = Clock()
    pace = Pace(clock)
    answer(pace, clock, 0.01, 50)
    before = pace.per_second()
    clock.now_s += 3600
    assert pace.per_second() == before


def test_while_nothing_is_answered_the_rate_falls() -> None:
    clock = Clock()
    pace = Pace(clock)
    answer(pace, clock, 0.01, 50)
    pace.note(1)
    before = pace.per_second()
    clock.now_s += 3
    assert pace.per_second() < before / 15


def test_it_is_that_of_the_last_second() -> None:
    clock = Clock()
    pace = Pace(clock)
    answer(pace, clock, 0.1, 50)
    answer(pace, clock, 0.01, 500)
    assert pace.per_second() == pytest.approx(100, rel=0.02)
