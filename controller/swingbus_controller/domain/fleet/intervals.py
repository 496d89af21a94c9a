"""Quarter-hours of a meter and of a bank: sums that do not care in which order readings arrive.

Decides how readings add up to energy. Refuses to know: where sums are kept. Invariant: adding is commutative and associative
(backlogs arrive newest first), a counter's reset never makes energy, and an interval whose meter did not answer near both of
its ends has no energy rather than a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

INTERVAL_S = 900
# A register reading further than this from a boundary says nothing about the boundary.
BOUNDARY_GAP_S = 120.0


def interval_start_s(unix_s: float) -> int:
    """Return the start of the quarter-hour that a moment lies in."""
    return int(unix_s // INTERVAL_S) * INTERVAL_S


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPoint:
    """One reading of a meter as the intervals take it; `weight_s` is the time that only this reading covers."""

    meter: str
    end_unix_s: float
    weight_s: float
    power_w: float | None
    energy_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BankPoint:
    """The sum of a bank's device readings at one moment."""

    agent: str
    bank: str
    at_unix_s: float
    power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterTotals:
    """What is known of one meter in one quarter-hour."""

    start_unix_s: int
    covered_s: float = 0.0
    weighted_ws: float = 0.0  # power x weight
    max_power_w: float | None = None
    first_unix_s: float | None = None
    first_energy_j: float | None = None
    last_unix_s: float | None = None
    last_energy_j: float | None = None

    def with_point(self, point: MeterPoint) -> MeterTotals:
        """Return the totals with one more reading."""
        power_w, energy_j = point.power_w, point.energy_j
        max_w = self.max_power_w
        if power_w is not None:
            max_w = power_w if max_w is None else max(max_w, power_w)
        is_first = energy_j is not None and (self.first_unix_s is None or point.end_unix_s < self.first_unix_s)
        is_last = energy_j is not None and (self.last_unix_s is None or point.end_unix_s > self.last_unix_s)
        return MeterTotals(
            start_unix_s=self.start_unix_s,
            covered_s=self.covered_s + (point.weight_s if power_w is not None else 0.0),
            weighted_ws=self.weighted_ws + (power_w * point.weight_s if power_w is not None else 0.0),
            max_power_w=max_w,
            first_unix_s=point.end_unix_s if is_first else self.first_unix_s,
            first_energy_j=energy_j if is_first else self.first_energy_j,
            last_unix_s=point.end_unix_s if is_last else self.last_unix_s,
            last_energy_j=energy_j if is_last else self.last_energy_j,
        )

    def mean_power_w(self) -> float | None:
        """Return the mean of the readings, None without any."""
        return self.weighted_ws / self.covered_s if self.covered_s > 0.0 else None

    def covered_seconds(self) -> float:
        """Return the seconds that readings cover, at most the whole interval (windows may overlap)."""
        return min(float(INTERVAL_S), self.covered_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BankInterval:
    """What is known of one bank's device readings in one quarter-hour."""

    agent: str
    bank: str
    start_unix_s: int
    sum_power_w: float
    sample_count: int
    first_unix_s: float
    last_unix_s: float

    def energy_j(self) -> float:
        """Return mean power times the time between first and last reading, stretched by one sample's share.

        n evenly spaced samples stand for n spacings, of which (n - 1) lie between the first and the last.

        >>> BankInterval(agent="a", bank="b", start_unix_s=0, sum_power_w=1000.0 * 901, sample_count=901,
        ...     first_unix_s=0.0, last_unix_s=900.0).energy_j()
        900000.0
        """
        if self.sample_count < 2:
            return 0.0
        span_s = (self.last_unix_s - self.first_unix_s) * self.sample_count / (self.sample_count - 1)
        return self.sum_power_w / self.sample_count * min(span_s, float(INTERVAL_S))


def register_energy_j(before: MeterTotals | None, this: MeterTotals, after: MeterTotals | None) -> float | None:
    """Return the energy of one quarter-hour by the meter's own register, in joules.

    The register at each boundary is read between the last reading before and the first one after it (linear); a boundary
    without readings on both sides within `BOUNDARY_GAP_S`, or a register that fell, gives None.

    >>> before = MeterTotals(start_unix_s=0, last_unix_s=899.0, last_energy_j=899.0)
    >>> this = MeterTotals(start_unix_s=900, first_unix_s=901.0, first_energy_j=901.0, last_unix_s=1799.0, last_energy_j=1799.0)
    >>> after = MeterTotals(start_unix_s=1800, first_unix_s=1801.0, first_energy_j=1801.0)
    >>> register_energy_j(before, this, after)
    900.0
    """
    opened_j = _register_at(float(this.start_unix_s), before, this)
    closed_j = _register_at(float(this.start_unix_s + INTERVAL_S), this, after)
    if opened_j is None or closed_j is None or closed_j < opened_j:
        return None
    return closed_j - opened_j


def _register_at(at_unix_s: float, earlier: MeterTotals | None, later: MeterTotals | None) -> float | None:
    if earlier is None or later is None:
        return None
    before_s, before_j = earlier.last_unix_s, earlier.last_energy_j
    after_s, after_j = later.first_unix_s, later.first_energy_j
    if before_s is None or before_j is None or after_s is None or after_j is None:
        return None
    gap_s = after_s - before_s
    if gap_s > BOUNDARY_GAP_S or after_j < before_j:
        return None
    if gap_s <= 0.0:
        return before_j
    return before_j + (after_j - before_j) * (at_unix_s - before_s) / gap_s


def neighbours(totals: Sequence[MeterTotals], index: int) -> tuple[MeterTotals | None, MeterTotals | None]:
    """Return the quarter-hours directly before and after one in a sorted list, None where they are not there."""
    this = totals[index]
    before = totals[index - 1] if index > 0 else None
    after = totals[index + 1] if index + 1 < len(totals) else None
    if before is not None and before.start_unix_s != this.start_unix_s - INTERVAL_S:
        before = None
    if after is not None and after.start_unix_s != this.start_unix_s + INTERVAL_S:
        after = None
    return before, after
