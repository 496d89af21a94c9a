"""Units: the only place where watts, joules, hashes and seconds change scale, and how people write them.

Decides spelling and factors. Refuses to know what a quantity is of. Invariant: what `format_*` writes, `parse_*` reads back to the same
value within the digits shown. Missing is None before it gets here: nothing in this room accepts or returns NaN.
"""

from __future__ import annotations

import math
import re

from swingbus.faults import InvalidInput

JOULES_PER_KWH = 3_600_000.0
JOULES_PER_MWH = 3_600_000_000.0

_NUMBER = r"([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)"
# "mW" and "mw" are left out on purpose: milli or mega would be a guess worth a factor of a thousand million.
_POWER = re.compile(_NUMBER + r"\s*(W|w|kW|KW|kw|MW|GW)")
_POWER_FACTORS = {"w": 1.0, "kw": 1e3, "mw": 1e6, "gw": 1e9}
_SPAN_PART = re.compile(_NUMBER + r"\s*(ms|s|min|m|h|d)")
_SPAN_FACTORS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def watts_from_milliwatts(value_mw: float) -> float:
    """Convert a driver's milliwatts (NVML)."""
    return value_mw / 1000.0


def milliwatts_from_watts(power_w: float) -> int:
    """Convert watts for a driver that takes whole milliwatts; rounds down, so that a limit is never passed by rounding."""
    return math.floor(power_w * 1000.0 + 1e-6)


def joules_from_millijoules(value_mj: float) -> float:
    """Convert a driver's millijoules (NVML's energy counter)."""
    return value_mj / 1000.0


def watts_from_kilowatts(value_kw: float) -> float:
    """Convert a meter's kilowatts."""
    return value_kw * 1000.0


def joules_from_kilowatt_hours(energy_kwh: float) -> float:
    """Convert a meter's kilowatt-hours."""
    return energy_kwh * JOULES_PER_KWH


def kilowatt_hours_from_joules(energy_j: float) -> float:
    """Convert joules for reports and money."""
    return energy_j / JOULES_PER_KWH


def megawatt_hours_from_joules(energy_j: float) -> float:
    """Convert joules for prices per MWh."""
    return energy_j / JOULES_PER_MWH


def terahashes_from_gigahashes(hashrate_ghs: float) -> float:
    """Convert a miner's GH/s."""
    return hashrate_ghs / 1e3


def terahashes_from_megahashes(hashrate_mhs: float) -> float:
    """Convert a miner's MH/s."""
    return hashrate_mhs / 1e6


def terahashes_from_hashes(hashrate_hs: float) -> float:
    """Convert a miner's H/s."""
    return hashrate_hs / 1e12


def efficiency_j_per_th(power_w: float, hashrate_ths: float) -> float | None:
    """Return joules per terahash, None where nothing is hashed.

    >>> efficiency_j_per_th(2794.0, 122.0)
    22.90...
    """
    return power_w / hashrate_ths if hashrate_ths > 0.0 else None


def celsius_from_kelvin(temperature_k: float) -> float:
    """Convert kelvin."""
    return temperature_k - 273.15


def seconds_from_nanoseconds(span_ns: int) -> float:
    """Convert the wire's CLOCK_BOOTTIME nanoseconds."""
    return span_ns / 1e9


def nanoseconds_from_seconds(span_s: float) -> int:
    """Convert seconds to the wire's whole nanoseconds."""
    return round(span_s * 1e9)


def parse_power_w(text: str, what: str = "power") -> float:
    """Read power as people write it: "400kW", "1.2 MW", "350W". A unit is required. Raises InvalidInput.

    >>> parse_power_w("1.2MW")
    1200000.0
    """
    match = _POWER.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{what} {text!r} is not a power: write a number and W, kW or MW, for instance 400kW",
            reason="BAD_POWER",
            metadata={"field": what, "value": text[:100]},
        )
    return float(match[1].replace("_", "")) * _POWER_FACTORS[match[2].lower()]


def format_power(power_w: float) -> str:
    """Write watts for people, with the unit that keeps it short.

    >>> format_power(400_000.0), format_power(1_250_000.0), format_power(350.4)
    ('400 kW', '1.25 MW', '350 W')
    """
    size = abs(power_w)
    if size < 999.5:
        return f"{power_w:.0f} W"
    if size < 999_950.0:
        return f"{_three_digits(power_w / 1e3)} kW"
    return f"{_three_digits(power_w / 1e6)} MW"


def _three_digits(value: float) -> str:
    """Write with at least three digits and no idle zeros: 1.25, 12.5, 400, 2794."""
    size = abs(value)
    decimals = 2 if size < 10 else 1 if size < 1000 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_span_s(text: str, what: str = "duration") -> float:
    """Read a time span as people write it: "90s", "15m", "1h", "1h30m", "2d". A unit is required. Raises InvalidInput.

    >>> parse_span_s("1h30m")
    5400.0
    """
    stripped = text.strip().replace(" ", "")
    total_s, position = 0.0, 0
    while match := _SPAN_PART.match(stripped, position):
        total_s += float(match[1].replace("_", "")) * _SPAN_FACTORS[match[2]]
        position = match.end()
    if position == 0 or position != len(stripped):
        raise InvalidInput(
            f"{what} {text!r} is not a time span: write numbers with s, m, h or d, for instance 90s or 1h30m",
            reason="BAD_DURATION",
            metadata={"field": what, "value": text[:100]},
        )
    return total_s


def format_span(span_s: float) -> str:
    """Write seconds for people in at most two units.

    >>> format_span(5400), format_span(90), format_span(0.25), format_span(172_800)
    ('1h30m', '1m30s', '0.25s', '2d')
    """
    sign = "-" if span_s < 0 else ""
    span_s = abs(span_s)
    if span_s < 10.0 and span_s != int(span_s):
        return f"{sign}{span_s:.2f}".rstrip("0").rstrip(".") + "s"
    whole = round(span_s)
    sizes = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    for index, (unit, size) in enumerate(sizes):
        if whole >= size:
            text = f"{sign}{whole // size}{unit}"
            if index + 1 < len(sizes):
                next_unit, next_size = sizes[index + 1]
                rest = (whole % size) // next_size
                text += f"{rest}{next_unit}" if rest else ""
            return text
    return "0s"


def format_hashrate(hashrate_ths: float) -> str:
    """Write a hashrate for people.

    >>> format_hashrate(122.0), format_hashrate(12_500.0)
    ('122 TH/s', '12.5 PH/s')
    """
    if abs(hashrate_ths) < 1000.0:
        return f"{_three_digits(hashrate_ths)} TH/s"
    return f"{_three_digits(hashrate_ths / 1e3)} PH/s"
