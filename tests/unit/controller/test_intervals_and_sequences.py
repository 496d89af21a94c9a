"""Ranges of stored numbers and quarter-hours of meters: sums that do not care about order."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus.faults import InvalidInput
from swingbus_controller.domain.fleet.intervals import (
    BankInterval,
    MeterPoint,
    MeterTotals,
    interval_start_s,
    neighbours,
    register_energy_j,
)
from swingbus_controller.domain.fleet.sequences import SequenceSet, parse_ranges


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(min_value=1, max_value=60)))
def test_sequence_set_is_the_set_of_its_numbers(numbers: list[int]) -> None:
    """Whatever the order, ranges cover exactly the numbers, sorted and apart."""
    stored = SequenceSet()
    for number in numbers:
        stored.add_range(number, number)
    pairs = list(stored.ranges())
    assert {n for first, last in pairs for n in range(first, last + 1)} == set(numbers)
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(pairs))
    assert all((n in stored) == (n in set(numbers)) for n in range(1, 62))
    count = 0
    while count + 1 in set(numbers):
        count += 1
    assert stored.cumulative() == count
    assert SequenceSet(stored.pairs()).pairs() == stored.pairs()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9))), st.integers(1, 60), st.integers(0, 30))
def test_sequence_set_answers_for_whole_ranges(spans: list[tuple[int, int]], first: int, length: int) -> None:
    """Ranges enter whole; holes are what is absent; touching is what adds no further range."""
    stored = SequenceSet()
    for begin, more in spans:
        stored.add_range(begin, begin + more)
    numbers = {n for begin, more in spans for n in range(begin, begin + more + 1)}
    assert {n for a, b in stored.ranges() for n in range(a, b + 1)} == numbers
    last = first + length
    asked = set(range(first, last + 1))
    holes = list(stored.holes(first, last))
    assert {n for a, b in holes for n in range(a, b + 1)} == asked - numbers
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(holes))
    assert stored.covers(first, last) == (asked <= numbers)
    count = len(stored)
    touches = stored.touches(first, last)
    stored.add_range(first, last)
    assert touches == (len(stored) <= count)


def test_newest_ranges_are_told_first_where_there_are_too_many() -> None:
    """An acknowledgement names at most so many ranges, the newest."""
    stored = SequenceSet([1, 4, 6, 6, 8, 9, 20, 30])
    assert stored.pairs_above(4, 2) == [8, 9, 20, 30]
    assert stored.pairs_above(4, 9) == [6, 6, 8, 9, 20, 30]


@pytest.mark.parametrize("pairs", [[1], [0, 5], [5, 4], [1, 2**40], [-3, -1]])
def test_ranges_that_are_none_are_refused(pairs: list[int]) -> None:
    """Odd counts, backward ranges and numbers outside 1 to 2^40 - 1."""
    with pytest.raises(InvalidInput):
        parse_ranges(pairs)


def point(end_s: float, power_w: float | None = 1000.0, energy_j: float | None = None) -> MeterPoint:
    """Return a reading of one second."""
    return MeterPoint(meter="m", end_unix_s=end_s, weight_s=1.0, power_w=power_w, energy_j=energy_j)


def totals(points: list[MeterPoint]) -> list[MeterTotals]:
    """Return the quarter-hours of readings, in order."""
    by_start: dict[int, MeterTotals] = {}
    for each in points:
        start_s = interval_start_s(each.end_unix_s)
        by_start[start_s] = by_start.get(start_s, MeterTotals(start_unix_s=start_s)).with_point(each)
    return [by_start[start_s] for start_s in sorted(by_start)]


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_of_arrival_changes_nothing(rng: random.Random) -> None:
    """A backlog that comes newest first, or mixed, gives the same quarter-hours."""
    points = [point(float(s), power_w=float(s), energy_j=2.0 * s) for s in range(800, 1900, 20)]
    shuffled = list(points)
    rng.shuffle(shuffled)
    for one, other in zip(totals(points), totals(shuffled), strict=True):
        assert one.weighted_ws == pytest.approx(other.weighted_ws)
        assert (one.first_energy_j, one.last_energy_j, one.max_power_w) == (
            other.first_energy_j,
            other.last_energy_j,
            other.max_power_w,
        )


def test_energy_is_the_registers_and_additive() -> None:
    """Three quarter-hours at 1 kW: the middle one has 900 kJ, and neighbours share their boundary."""
    hours = totals([point(float(s), energy_j=1000.0 * s) for s in range(1, 2700, 7)])
    before, after = neighbours(hours, 1)
    assert register_energy_j(before, hours[1], after) == pytest.approx(900_000.0)
    assert hours[1].mean_power_w() == pytest.approx(1000.0)
    # The first and the last have an end that nobody saw.
    assert register_energy_j(*_around(hours, 0)) is None
    assert register_energy_j(*_around(hours, 2)) is None


def _around(hours: list[MeterTotals], index: int) -> tuple[MeterTotals | None, MeterTotals, MeterTotals | None]:
    before, after = neighbours(hours, index)
    return before, hours[index], after


def test_register_reset_makes_no_energy() -> None:
    """A counter that starts again gives no number rather than a negative or a huge one."""
    readings = [point(float(s), energy_j=1000.0 * s if s < 1300 else 1.0 * s) for s in range(1, 2700, 7)]
    assert register_energy_j(*_around(totals(readings), 1)) is None


def test_gap_at_a_boundary_makes_no_energy() -> None:
    """Nobody knows how much passed before and how much after the boundary."""
    readings = [point(float(s), energy_j=1000.0 * s) for s in range(1, 2700, 7) if not 800 < s < 1000]
    hours = totals(readings)
    assert register_energy_j(*_around(hours, 1)) is None
    assert hours[0].covered_seconds() < 900


def test_failed_reading_adds_no_watts() -> None:
    """A reading without power covers nothing and changes no mean."""
    hour = totals([point(1.0, power_w=500.0), point(2.0, power_w=None)])[0]
    assert (hour.mean_power_w(), hour.covered_s) == (500.0, 1.0)
    assert totals([point(2.0, power_w=None)])[0].mean_power_w() is None


def test_single_sample_has_no_energy() -> None:
    """One reading says nothing about time."""
    interval = BankInterval(
        agent="a", bank="b", start_unix_s=0, sum_power_w=9.0, sample_count=1, first_unix_s=3.0, last_unix_s=3.0
    )
    assert interval.energy_j() == 0.0
