"""A reading as it travels from the child: one row of values by position, and what makes a number believable.

The child fills `Row` from the library and packs it; the agent unpacks it into a `MinerReading`. Decides the bounds within
which a value counts as said; refuses to repair anything. Invariant: a value out of bounds becomes `None` plus a line in
`errors`, never zero and never clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from swingbus_agent.domain.miner import MinerReading, PowerSource, merge_state

MAX_POWER_W = 20_000.0  # the largest hydro miners draw some 10 kW
MAX_HASHRATE_THS = 5_000.0
TEMPERATURE_RANGE_C = (-40.0, 200.0)
MAX_FAN_RPM = 60_000.0
MAX_UPTIME_S = 20 * 365 * 86_400.0
MAX_ERRORS = 16


@dataclass(slots=True)
class Vitals:
    """The slow part of a reading, kept by the child between its own readings."""

    ended_s: float | None = None
    expected_hashrate_ths: float | None = None
    board_temperatures_c: list[float | None] = field(default_factory=list)
    chip_temperatures_c: list[float | None] = field(default_factory=list)
    fan_speeds_rpm: list[float | None] = field(default_factory=list)
    pool_is_alive: bool | None = None
    accepted_shares: int | None = None
    rejected_shares: int | None = None
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Row:
    """One look at one miner, as the library and our own questions gave it, not yet checked."""

    started_s: float
    ended_s: float
    says_asleep: bool | None
    power_w: float | None
    hashrate_ths: float | None
    uptime_s: float | None
    profile: str | None
    power_limit_w: float | None
    inlet_temperature_c: float | None
    vitals: Vitals

    def pack(self) -> list[Any]:
        """Return the row by position; numbers JSON has no word for travel as text, to be refused at the other end."""
        vitals = self.vitals
        return [
            self.started_s,
            self.ended_s,
            self.says_asleep,
            _plain(self.power_w),
            _plain(self.hashrate_ths),
            _plain(self.uptime_s),
            self.profile,
            _plain(self.power_limit_w),
            _plain(self.inlet_temperature_c),
            vitals.ended_s,
            _plain(vitals.expected_hashrate_ths),
            [_plain(value) for value in vitals.board_temperatures_c],
            [_plain(value) for value in vitals.chip_temperatures_c],
            [_plain(value) for value in vitals.fan_speeds_rpm],
            vitals.pool_is_alive,
            vitals.accepted_shares,
            vitals.rejected_shares,
            vitals.errors[:MAX_ERRORS],
        ]


def _plain(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value if value is None else round(value, 3)
    return str(value)


def unpack(name: str, row: list[Any]) -> MinerReading:
    """Return the reading in a packed row, every number checked; raises `ValueError` if it is no such row."""
    (started_s, ended_s, asleep, power, rate, uptime, profile, limit, inlet) = row[:9]
    (vitals_s, expected, boards, chips, fans, pool, accepted, rejected, said) = row[9:]
    errors: list[str] = list(said)

    def checked(what: str, value: object, low: float, high: float) -> float | None:
        if value is None:
            return None
        if isinstance(value, int | float) and low <= value <= high:
            return float(value)
        errors.append(f"{what} out of range: {value}")
        return None

    hashrate_ths = checked("hashrate_ths", rate, 0.0, MAX_HASHRATE_THS)
    power_w = checked("power_w", power, 0.0, MAX_POWER_W)
    if asleep and hashrate_ths:
        errors.append(f"says it is asleep, hashes {hashrate_ths:g} TH/s")
    return MinerReading(
        name=name,
        started_s=started_s,
        ended_s=ended_s,
        state=merge_state(asleep, hashrate_ths),
        power_w=power_w,
        power_source=PowerSource.NONE if power_w is None else PowerSource.MINER,
        hashrate_ths=hashrate_ths,
        expected_hashrate_ths=checked("expected_hashrate_ths", expected, 0.0, MAX_HASHRATE_THS),
        uptime_s=checked("uptime_s", uptime, 0.0, MAX_UPTIME_S),
        profile=profile,
        power_limit_w=checked("power_limit_w", limit, 0.0, MAX_POWER_W),
        inlet_temperature_c=checked("inlet_temperature_c", inlet, *TEMPERATURE_RANGE_C),
        board_temperatures_c=tuple(checked("board_temperature_c", c, *TEMPERATURE_RANGE_C) for c in boards),
        chip_temperatures_c=tuple(checked("chip_temperature_c", c, *TEMPERATURE_RANGE_C) for c in chips),
        fan_speeds_rpm=tuple(checked("fan_speed_rpm", rpm, 0.0, MAX_FAN_RPM) for rpm in fans),
        pool_is_alive=pool,
        accepted_shares=accepted,
        rejected_shares=rejected,
        errors=tuple(errors),
        vitals_ended_s=vitals_s,
    )
