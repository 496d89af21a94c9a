"""Limits: watts that a feeder may carry, since when, until when, averaged over what, and who said so.

Decides: the limit in force at one moment. Refuses to know: where limits come from. Invariant: looking further ahead
never finds a higher limit, since a limit falls along its ramp and then stays until it ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from swingbus.faults import InvalidInput

# A ramp is taken in steps, each in force from its beginning: one cut of many machines a second, not one of a single machine at every
# meter sample, each with a record on disk.
RAMP_STEP_S = 1.0
RAMP_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One bound on a feeder's mean power.

    Attributes:
        name: unique on its feeder ("contract", "breaker", a curtailment's id).
        limit_w: mean watts over `window_s` (0: instantaneous) that must not be passed.
        source: who set it, for people ("contract 2026-03", "operator ada").
        start_s, end_s: on the controller's `now_s` axis; `None` is open. The engine converts wall-clock times once,
            when the limit is accepted, so a jumping wall clock cannot end a curtailment early.
        ramp_s, ramp_from_w: from `start_s` the limit falls from `ramp_from_w` and is `limit_w` after `ramp_s`, in steps of at least
            `RAMP_STEP_S` that lie on or below the straight line between the two.
    """

    name: str
    limit_w: float
    source: str
    window_s: float = 0.0
    start_s: float | None = None
    end_s: float | None = None
    ramp_s: float = 0.0
    ramp_from_w: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit_w) and self.limit_w >= 0.0):
            raise InvalidInput(
                f"limit {self.name!r}: {self.limit_w} W is not a limit. Give watts of 0 or more.", reason="BAD_LIMIT"
            )
        if self.start_s is not None and self.end_s is not None and self.end_s <= self.start_s:
            raise InvalidInput(f"limit {self.name!r} ends before it starts.", reason="BAD_LIMIT")
        if self.ramp_s < 0.0 or (self.ramp_s > 0.0 and (self.start_s is None or self.ramp_from_w is None)):
            raise InvalidInput(
                f"limit {self.name!r}: a ramp needs ramp_s of 0 or more, a start and the watts it starts from.",
                reason="BAD_LIMIT",
            )
        if self.ramp_from_w is not None and self.ramp_from_w < self.limit_w:
            raise InvalidInput(f"limit {self.name!r}: a ramp may only fall.", reason="BAD_LIMIT")

    def lowest_w(self, now_s: float, lead_s: float = 0.0) -> float | None:
        """Return the least watts this limit allows in [now_s, now_s + lead_s], or None where it is not in force."""
        if self.end_s is not None and now_s >= self.end_s:
            return None
        last_s = now_s + lead_s
        if self.end_s is not None and last_s > self.end_s:
            last_s = self.end_s
        if self.start_s is None:
            return self.limit_w
        if last_s < self.start_s:
            return None
        if self.ramp_s > 0.0 and self.ramp_from_w is not None and last_s < self.start_s + self.ramp_s:
            step_s = max(RAMP_STEP_S, self.ramp_s / RAMP_STEPS)
            done_ratio = min(1.0, (math.floor((last_s - self.start_s) / step_s) + 1.0) * step_s / self.ramp_s)
            return self.ramp_from_w - done_ratio * (self.ramp_from_w - self.limit_w)
        return self.limit_w


def lowest_limit_w(limits: Iterable[Limit], now_s: float, lead_s: float = 0.0) -> float:
    """Return the lowest limit in force within [now_s, now_s + lead_s]; infinity where none is."""
    lowest = math.inf
    for limit in limits:
        watts = limit.lowest_w(now_s, lead_s)
        if watts is not None and watts < lowest:
            lowest = watts
    return lowest


def breaker_limit_w(
    *, rated_current_a: float, min_voltage_v: float, power_factor_ratio: float, continuous_ratio: float = 0.8
) -> float:
    """Return what a three-phase breaker carries continuously: rho x sqrt(3) x V_min x I_n x pf (POWER.md, Limit).

    Args:
        rated_current_a: nameplate amperes per phase.
        min_voltage_v: the lowest line-to-line voltage: power supplies draw constant power, so amperes peak there.
        power_factor_ratio: 0 to 1.
        continuous_ratio: rho, 0.8 unless the breaker is rated 100 %.

    >>> round(breaker_limit_w(rated_current_a=1000, min_voltage_v=400, power_factor_ratio=0.95))
    526543
    """
    if (
        min(rated_current_a, min_voltage_v) <= 0.0
        or not 0.0 < power_factor_ratio <= 1.0
        or not 0 < continuous_ratio <= 1
    ):
        raise InvalidInput(
            "a breaker needs amperes and volts above 0, a power factor and a rho in (0, 1].", reason="BAD_BREAKER"
        )
    return continuous_ratio * math.sqrt(3.0) * min_voltage_v * rated_current_a * power_factor_ratio
