"""A simulated bulk run keeps the laws that a real one has, and docs/scale.md says what it prints."""

from dataclasses import asdict, replace
from math import inf
from pathlib import Path

import pytest

from benchmarks.fleet_simulation import (
    Fleet,
    Job,
    Measured,
    Outcome,
    as_markdown,
    closed_form,
    lost_with_a_node_core_s,
    simulate,
)

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- python -m benchmarks.fleet_simulation -->\n", "\n<!-- end of what it prints -->"
STEADY = Measured(photo_time_spread=0.0)
SMALL = Job(photos=640_000, shard_photos=1_000)
FLEET = Fleet(nodes=4, cores_per_node=16)
FRAIL = replace(FLEET, node_mtbf_s=900.0, node_away_s=120.0)  # some die while their workers start
SEEDS = range(8)


def categories(outcome: Outcome) -> float:
    return outcome.useful_core_s + outcome.lost_core_s + outcome.idle_core_s + outcome.start_core_s


def test_without_failures_and_spread_a_run_is_its_closed_form() -> None:
    ours, closed = simulate(STEADY, SMALL, FLEET), closed_form(STEADY, SMALL, FLEET)
    assert asdict(ours) == pytest.approx(asdict(closed), rel=1e-9)


def test_int8_takes_less_time_than_fp32_as_its_rate_says() -> None:
    fp32, int8 = (simulate(STEADY, replace(SMALL, precision=each), FLEET) for each in ("fp32", "int8"))
    ratio = STEADY.photos_per_core_s_int8 / STEADY.photos_per_core_s_fp32
    assert fp32.useful_core_s / int8.useful_core_s == pytest.approx(ratio)


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    assert simulate(Measured(), SMALL, FRAIL, 1) == simulate(Measured(), SMALL, FRAIL, 1)
    assert simulate(Measured(), SMALL, FRAIL, 1) != simulate(Measured(), SMALL, FRAIL, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_photo_is_done_once_whatever_fails(seed: int) -> None:
    job = Job(photos=640_999, shard_photos=1_000)
    outcome = simulate(Measured(), job, FRAIL, seed)
    assert outcome.deaths > 0
    assert (outcome.photos_done, outcome.part_files) == (640_999, 641)
    assert outcome.bytes_written == pytest.approx(640_999 * Measured().bytes_per_photo_written)


@pytest.mark.parametrize("seed", SEEDS)
def test_core_hours_are_conserved(seed: int) -> None:
    outcome = simulate(Measured(), SMALL, FRAIL, seed)
    assert outcome.lost_core_s > 0
    assert categories(outcome) == pytest.approx(outcome.paid_core_s, rel=1e-9)


def test_core_hours_are_conserved_where_the_storage_is_narrow() -> None:
    outcome = simulate(Measured(), SMALL, replace(FRAIL, storage_bytes_per_s=4e6))
    assert categories(outcome) == pytest.approx(outcome.paid_core_s, rel=1e-9)


def test_storage_that_is_too_narrow_bounds_the_rate() -> None:
    wide = simulate(Measured(), SMALL, FLEET)
    narrow = simulate(Measured(), SMALL, replace(FLEET, storage_bytes_per_s=wide.network_bytes_per_s / 4))
    assert narrow.network_bytes_per_s == pytest.approx(wide.network_bytes_per_s / 4, rel=0.05)
    assert narrow.network_bytes_per_s <= wide.network_bytes_per_s / 4


def test_storage_that_is_wide_enough_changes_nothing() -> None:
    assert simulate(Measured(), SMALL, replace(FLEET, storage_bytes_per_s=1e9)) == simulate(Measured(), SMALL, FLEET)


def test_a_node_that_dies_loses_half_a_shard_of_each_worker_in_the_mean() -> None:
    fleet = Fleet(nodes=50, cores_per_node=4, node_mtbf_s=3600.0)
    measured, job = Measured(photo_time_spread=5.0), Job(photos=10_000_000, shard_photos=1_000)
    outcome = simulate(measured, job, fleet)
    assert outcome.deaths > 30
    expected = lost_with_a_node_core_s(measured, job, fleet)
    assert outcome.lost_core_s / outcome.deaths == pytest.approx(expected, rel=0.2)


def test_lost_shards_are_read_again() -> None:
    steady, frail = simulate(Measured(), SMALL, FLEET), simulate(Measured(), SMALL, FRAIL)
    assert steady.bytes_read == pytest.approx(SMALL.photos * Measured().bytes_per_photo_read)
    assert frail.bytes_read > steady.bytes_read


def test_more_workers_than_shards_leaves_the_others_idle() -> None:
    outcome = simulate(STEADY, Job(photos=16_000, shard_photos=1_000), FLEET)
    assert outcome.part_files == 16
    assert outcome.idle_core_s == pytest.approx(3 * outcome.useful_core_s)


def test_the_time_of_the_list_is_in_the_wall_time_and_in_no_core_hour() -> None:
    quick, slow = (simulate(replace(STEADY, listing_entries_per_s=each), SMALL, FLEET) for each in (inf, 1_000.0))
    assert slow.wall_s - quick.wall_s == pytest.approx(640)
    assert slow.paid_core_s == quick.paid_core_s


def test_the_page_says_what_the_simulation_prints() -> None:
    printed = PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0]
    assert printed.strip() == as_markdown().strip(), "python -m benchmarks.fleet_simulation prints what belongs there"
