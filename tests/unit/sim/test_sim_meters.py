"""Meters: windows, lag, gain, freeze, words."""

from __future__ import annotations

import struct
from random import Random

import pytest

from swingbus_sim.meters.meter import Meter
from swingbus_sim.meters.registers import REGISTER_COUNT, MeterValues, encode
from swingbus_sim.physics.faults import MeterFault
from swingbus_sim.scenario import MeterSpec


def _meter(*, gain_error_ratio: float = 0.0, lag_s: float = 0.3, word_order: str = "big") -> Meter:
    return Meter(
        MeterSpec(
            name="m",
            node="grid",
            address="127.0.0.1",
            port=5020,
            window_s=0.5,
            lag_s=lag_s,
            gain_error_ratio=gain_error_ratio,
            declared_error_ratio=0.005,
            word_order=word_order,
        ),
        fault=MeterFault(),
        random=Random(1),
        nominal_v=240.0,
        frequency_hz=60.0,
        power_factor_ratio=0.98,
    )


def _feed(meter: Meter, watts: float, *, start_s: float, seconds: float, voltage_ratio: float = 1.0) -> float:
    steps = round(seconds * 10)
    for step in range(1, steps + 1):
        meter.observe(start_s + step / 10, 0.1, watts, voltage_ratio)
    return start_s + seconds


def _values(meter: Meter, now_s: float) -> MeterValues:
    values = meter.values(now_s)
    assert values is not None
    return values


def test_reading_is_a_window_that_ended_before_the_lag() -> None:
    """A step in the truth shows only when its window is through the lag, and sequences tell windows apart."""
    meter = _meter()
    assert meter.values(0.0) is None
    now_s = _feed(meter, 1000.0, start_s=0.0, seconds=2.0)
    first = _values(meter, now_s)
    now_s = _feed(meter, 2000.0, start_s=now_s, seconds=0.5)

    assert _values(meter, now_s + 0.2).power_w == pytest.approx(1000.0)
    late = _values(meter, now_s + 0.3)
    assert late.power_w == pytest.approx(2000.0)
    assert late.sequence > first.sequence and late.window_end_ms > first.window_end_ms
    assert late.energy_j - first.energy_j == pytest.approx(0.5 * 1000.0 + 0.5 * 2000.0, abs=2)


def test_power_agrees_with_volts_amperes_and_factor() -> None:
    """P = 3 V I pf holds for every window, so that a reader can check it."""
    meter = _meter(gain_error_ratio=0.01)
    now_s = _feed(meter, 1000.0, start_s=0.0, seconds=2.0)
    v = _values(meter, now_s)

    assert v.power_w == pytest.approx(1010.0)
    assert 3 * v.voltage_v * v.current_a * v.power_factor_ratio == pytest.approx(v.power_w)


def test_freeze_holds_everything_and_power_freeze_only_the_power() -> None:
    """A dead meter repeats itself; a stuck power register goes on counting energy."""
    meter = _meter()
    now_s = _feed(meter, 1000.0, start_s=0.0, seconds=2.0)
    before = _values(meter, now_s)
    meter.set_fault(MeterFault(is_frozen=True))
    now_s = _feed(meter, 3000.0, start_s=now_s, seconds=2.0)
    assert _values(meter, now_s) == before

    meter.set_fault(MeterFault(is_power_frozen=True))
    half = _values(meter, now_s)
    assert half.power_w == before.power_w and half.energy_j > before.energy_j

    meter.set_fault(MeterFault())
    assert _values(meter, now_s).power_w == pytest.approx(3000.0)


def test_meter_lives_through_an_outage_and_shows_no_voltage() -> None:
    """Without voltage the meter says 0 W and 0 V, not nothing."""
    meter = _meter()
    now_s = _feed(meter, 0.0, start_s=0.0, seconds=2.0, voltage_ratio=0.0)
    v = _values(meter, now_s)

    assert (v.power_w, v.voltage_v, v.current_a, v.frequency_hz) == (0.0, 0.0, 0.0, 0.0)


def test_word_swap_reverses_words_and_nothing_else() -> None:
    """A little word order meter reads right when its words are reversed; the fault turns any meter round."""
    meter = _meter(word_order="little")
    now_s = _feed(meter, 1234.5, start_s=0.0, seconds=2.0)
    registers = meter.registers(now_s)
    assert registers is not None and len(registers) == REGISTER_COUNT
    assert struct.unpack(">f", struct.pack(">2H", registers[3], registers[2]))[0] == pytest.approx(1234.5)

    meter.set_fault(MeterFault(is_swapped=True))
    swapped = meter.registers(now_s)
    assert swapped is not None
    assert swapped == encode(_values(meter, now_s), is_low_word_first=False)
    assert struct.unpack(">f", struct.pack(">2H", swapped[2], swapped[3]))[0] == pytest.approx(1234.5)
