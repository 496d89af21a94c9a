"""Units and how people write them."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus import quantities as q
from swingbus.faults import InvalidInput


def test_examples_in_the_docstrings_hold() -> None:
    """They are the specification that people read."""
    result = doctest.testmod(q, optionflags=doctest.ELLIPSIS)
    assert result.attempted >= 6 and result.failed == 0


@pytest.mark.parametrize(
    ("text", "power_w"),
    [
        ("400kW", 400e3),
        ("1.2MW", 1.2e6),
        ("350W", 350.0),
        ("350 w", 350.0),
        (" 90 kw ", 90e3),
        ("1_200KW", 1.2e6),
        ("0W", 0.0),
        (".5MW", 5e5),
        ("1GW", 1e9),
    ],
)
def test_power_is_read_as_people_write_it(text: str, power_w: float) -> None:
    """With and without blanks."""
    assert q.parse_power_w(text) == pytest.approx(power_w)


@pytest.mark.parametrize(
    "text", ["", "400", "kW", "-1kW", "4OOkW", "1.2.3MW", "400 kWh", "nan W", "1e3W", "400mW", "400mw", "inf kW"]
)
def test_power_that_could_mean_something_else_is_refused(text: str) -> None:
    """No unit, no sign, no milli that could be mega."""
    with pytest.raises(InvalidInput, match="for instance 400kW"):
        q.parse_power_w(text, "limit")


@pytest.mark.parametrize(
    ("text", "span_s"),
    [
        ("1h", 3600.0),
        ("90s", 90.0),
        ("1h30m", 5400.0),
        ("15min", 900.0),
        ("250ms", 0.25),
        ("2d", 172_800.0),
        ("1.5h", 5400.0),
        ("1h 5s", 3605.0),
    ],
)
def test_span_is_read_as_people_write_it(text: str, span_s: float) -> None:
    """Units may be chained."""
    assert q.parse_span_s(text) == pytest.approx(span_s)


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1h30", "1y", "1H", "nan s"])
def test_span_without_a_unit_is_refused(text: str) -> None:
    """Sixty of what?"""
    with pytest.raises(InvalidInput, match="for instance 90s"):
        q.parse_span_s(text)


@given(st.floats(min_value=0.0, max_value=5e8))
@settings(max_examples=100)
def test_written_power_reads_back_within_its_digits(power_w: float) -> None:
    """Three digits at least, half a watt at best."""
    assert q.parse_power_w(q.format_power(power_w)) == pytest.approx(power_w, rel=0.006, abs=0.5)


@given(st.integers(min_value=0, max_value=10**8))
@settings(max_examples=100)
def test_written_span_reads_back_within_its_second_unit(span_s: int) -> None:
    """Two units are shown."""
    got = q.parse_span_s(q.format_span(span_s))
    assert got <= span_s and span_s - got < max(1, span_s / 24)


def test_negative_values_keep_their_sign() -> None:
    """A headroom may be negative."""
    assert q.format_power(-12_500.0) == "-12.5 kW"
    assert q.format_span(-90) == "-1m30s"


def test_conversions_agree_with_each_other() -> None:
    """One factor each, both ways."""
    assert q.watts_from_milliwatts(2_794_000) == 2794.0
    assert q.milliwatts_from_watts(250.0005) == 250_000  # never above the limit asked for
    assert q.joules_from_millijoules(1500) == 1.5
    assert q.kilowatt_hours_from_joules(q.joules_from_kilowatt_hours(3.5)) == pytest.approx(3.5)
    assert (
        q.terahashes_from_gigahashes(122_000)
        == q.terahashes_from_megahashes(122e6)
        == q.terahashes_from_hashes(122e12)
        == 122.0
    )
    assert q.seconds_from_nanoseconds(q.nanoseconds_from_seconds(1.25)) == 1.25
    assert q.efficiency_j_per_th(2794.0, 0.0) is None
