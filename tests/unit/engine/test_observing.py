"""Readings become windows that are dated never too late, and blips are told from drift."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.fleet.frames import MeterFrame
from swingbus_controller.domain.fleet.observing import BlipWatch, WindowMaker


def _frame(
    count: int | None, end_s: float, power_w: float, energy_j: float | None, *, window_s: float = 0.5
) -> MeterFrame:
    return MeterFrame(
        meter="m",
        feeder="f",
        measurement_count=count,
        window_start_boottime_s=end_s - window_s,
        window_end_boottime_s=end_s,
        marker=1,
        marker_epoch=1,
        power_w=power_w,
        energy_j=energy_j,
        voltage_v=240.0,
        current_a=power_w / 720.0,
        power_factor=1.0,
        fault="",
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), first_s=st.floats(0.0, 1e6))
def test_windows_of_a_counting_meter_never_begin_later_than_the_truth(seed: int, first_s: float) -> None:
    """However late and uneven readings come, a window's start is at or before the true one, and windows never overlap."""
    chance = random.Random(seed)
    maker = WindowMaker("f", "reader")
    last_end_s = -1.0
    made = 0
    count = 0
    for _ in range(120):
        step = chance.choice((0, 1, 1, 1, 2))
        count += step
        true_end_s = first_s + count * 0.5
        # The agent's date is a lower bound: the truth less up to a sampling period.
        window = maker.take(_frame(count, true_end_s - chance.uniform(0.0, 0.7), 1000.0, count * 500.0), "boot")
        if window is None:
            continue
        made += 1
        assert window.end_s <= true_end_s + 1e-6
        assert window.start_s <= true_end_s - step * 0.5 + 1e-6
        assert window.start_s >= last_end_s - 1e-9
        last_end_s = window.end_s
    assert made > 60


def test_same_measurement_read_twice_makes_no_second_window() -> None:
    """A frozen meter's count stands still, so nothing of it becomes evidence."""
    maker = WindowMaker("f", "reader")
    maker.take(_frame(1, 10.0, 1000.0, 500.0), "boot")

    assert maker.take(_frame(2, 10.5, 1000.0, 1000.0), "boot") is not None
    assert maker.take(_frame(2, 11.0, 1000.0, 1000.0), "boot") is None


def test_missed_measurement_is_carried_by_the_energy_counter() -> None:
    """Over two measurements the counter knows the mean, the reading only its last half."""
    maker = WindowMaker("f", "reader")
    maker.take(_frame(1, 10.0, 1000.0, 0.0), "boot")

    window = maker.take(_frame(3, 11.0, 1000.0, 1040.0), "boot")

    assert window is not None
    assert window.mean_w == 1040.0


def test_counter_that_contradicts_the_reading_leaves_the_reading() -> None:
    """A counter that stands still must not turn a real draw into zero."""
    maker = WindowMaker("f", "reader")
    maker.take(_frame(1, 10.0, 1000.0, 0.0), "boot")

    window = maker.take(_frame(3, 11.0, 1000.0, 0.0), "boot")

    assert window is not None
    assert window.mean_w == 1000.0


def test_long_gap_is_not_bridged() -> None:
    """After half a minute without readings the first one only starts anew."""
    maker = WindowMaker("f", "reader")
    maker.take(_frame(1, 10.0, 1000.0, 0.0), "boot")

    assert maker.take(_frame(61, 40.0, 1000.0, 30_000.0), "boot") is None
    assert maker.take(_frame(62, 40.5, 1000.0, 30_500.0), "boot") is not None


def test_another_boot_of_the_reader_starts_anew() -> None:
    """Times of two boots are never compared."""
    maker = WindowMaker("f", "reader")
    maker.take(_frame(1, 10.0, 1000.0, 0.0), "boot")

    assert maker.take(_frame(2, 0.5, 1000.0, 500.0), "other") is None


def test_voltage_outside_a_tenth_is_a_blip_and_slow_drift_is_not() -> None:
    """0.9 to 1.1 of the usual is nothing; a missing reading says nothing."""
    watch = BlipWatch()
    for step in range(20):
        assert watch.voltage("m", 240.0 - step * 0.2) is None

    assert watch.voltage("m", None) is None
    assert watch.voltage("m", 200.0) is not None
    assert watch.voltage("m", 0.0) is not None
    assert watch.voltage("m", 236.0) is None


def test_three_restarts_together_are_a_blip_two_are_not() -> None:
    """One machine's watchdog is its own affair; three at once are the feed's."""
    watch = BlipWatch()
    names = ["a", "b", "c", "d"]
    assert watch.uptimes("bank", names, [100.0] * 4, is_ordered=False) is None

    assert watch.uptimes("bank", names, [1.0, 1.0, 101.0, 101.0], is_ordered=False) is None
    assert watch.uptimes("bank", names, [2.0, 2.0, 1.0, 1.0], is_ordered=False) is None
    assert watch.uptimes("bank", names, [0.5, 0.5, 0.2, float("nan")], is_ordered=False) is None
    assert watch.uptimes("bank", names, [50.0, 50.0, 50.0, 50.0], is_ordered=False) is None
    assert watch.uptimes("bank", names, [1.0, 1.0, 1.0, 50.0], is_ordered=False) is not None
    assert watch.uptimes("bank", names, [0.0, 0.0, 0.0, 0.0], is_ordered=True) is None
