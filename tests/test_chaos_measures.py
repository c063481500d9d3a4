"""That the rig tells what went wrong: errors of calls, answers that are no numbers, late rows, latency that stays."""

import asyncio
import itertools
import math
import time

import numpy as np
import pytest

from chaos.determinism import _Answer, _off
from chaos.drivers import by_the_clock
from chaos.ledger import Ledger
from chaos.stub import DEADLINE_MARK, LATE, _say_if_late


def test_what_a_call_by_the_clock_raised_is_raised_once_all_have_ended() -> None:
    numbers, ended = itertools.count(), list[int]()

    async def call() -> None:
        if (number := next(numbers)) == 0:
            raise ValueError("the first")
        await asyncio.sleep(0.01)
        ended.append(number)

    with pytest.raises(ValueError, match="the first"):
        asyncio.run(by_the_clock(call, rate_per_s=200, duration_s=0.1))
    assert ended == list(range(1, next(numbers)))


def test_a_call_by_the_clock_that_is_cancelled_is_told() -> None:
    async def call() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(by_the_clock(call, rate_per_s=200, duration_s=0.05))


def answer(box: float = 1.0, embedding: float = 0.5, length: int = 4) -> _Answer:
    return _Answer(np.full((1, 4), box), np.full((1, length), embedding, np.float32))


def test_the_answers_that_are_furthest_off_count() -> None:
    alone = {0: answer(), 1: answer(), 2: answer(), 3: answer()}
    off = _off(alone, {0: answer(), 1: answer(box=1.25), 2: answer(embedding=0.75)})
    assert off == (0.25, 0.25, 1)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_answer_that_is_no_number_is_off(number: int) -> None:
    alone = {n: answer() for n in range(3)}
    off = _off(alone, alone | {number: answer(box=math.nan, embedding=math.nan)})
    assert math.isnan(off.embedding)
    assert math.isnan(off.box_px)


def test_an_embedding_that_is_empty_is_another_answer() -> None:
    assert _off({0: answer(), 1: answer()}, {0: answer(), 1: answer(length=0)}) == (0.0, 0.0, 1)


def test_where_no_answer_came_nothing_is_alike() -> None:
    off = _off({0: answer()}, {})
    assert math.isnan(off.embedding)
    assert off.others == 1


@pytest.mark.parametrize(
    ("items", "until_s"),
    [
        ([(1, 0.1, "answered"), (2, 0.1, "answered")], 0),
        ([(1, 0.9, "answered"), (2, 0.1, "answered")], 1),
        ([(1, 0.1, "REFUSED"), (2, 0.1, "answered")], 1),
        ([(1, 0.1, "answered"), (2, 0.9, "answered")], math.inf),
        ([(1, 0.1, "answered"), (2, 0.1, "REFUSED")], math.inf),
        ([], math.inf),
    ],
    ids=["never slow", "slow, then fast", "refused, then fast", "slow at the end", "refused at the end", "nothing"],
)
def test_latency_is_as_before_once_something_is_answered_in_time(
    items: list[tuple[float, float, str]], until_s: float
) -> None:
    ledger = Ledger()
    for end, seconds, outcome in items:
        ledger.seconds.setdefault(outcome, []).append(seconds)
        ledger.ends.setdefault(outcome, []).append(100 + end)
    assert ledger.slow_until(100, 0.5) == until_s


@pytest.mark.parametrize(("since_s", "is_late"), [(-1, False), (0.01, False), (0.1, True)])
def test_a_row_that_begins_after_its_time_is_told(
    since_s: float, is_late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    until = int((time.monotonic() - since_s) * 1e6).to_bytes(8, "little")
    row = np.frombuffer(DEADLINE_MARK + until + bytes(8 * 8 * 3 - 16), np.uint8).reshape(8, 8, 3)
    _say_if_late(row)
    assert (LATE in caplog.text) == is_late
