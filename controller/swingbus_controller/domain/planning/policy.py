"""Policy: what the operator has decided about dwell, money and pace, as versioned data.

This room holds values, no rules; the planner and admission read them. It knows no fleet. Invariant: all values are finite,
within their ranges and have a stated unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from swingbus.faults import InvalidInput
from swingbus_controller.domain.planning.economics import FlipCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipTimes:
    """How long a flip may stay in each phase (s) before it is undone."""

    planned_s: float = 600.0
    draining_s: float = 120.0
    released_s: float = 60.0
    settling_s: float = 300.0
    starting_s: float = 600.0
    verifying_s: float = 300.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _check(name, getattr(self, name), low=0.001)

    def scaled(self, factor: float) -> FlipTimes:
        """Return the same times multiplied by one factor (tests and demos scale all by the same)."""
        _check("factor", factor, low=1e-6)
        return FlipTimes(**{name: getattr(self, name) * factor for name in self.__slots__})


def _check(name: str, value: float, *, low: float, high: float = math.inf) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        span = f"at least {low}" if math.isinf(high) else f"{low} to {high}"
        raise InvalidInput(
            f"policy: {name} is {value}, must be a finite number, {span}", metadata={"field": name, "value": str(value)}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the planner may do and what it must reckon with.

    Args:
        version: name of this policy, repeated in every plan.
        pool_fee_ratio: share the pool keeps of mining revenue.
        overhead_ratio: watts at the meter per watt at the device (cooling, losses), for money only; >= 1.
        gpu_mining_allowed: GPUs without demand may mine. Off unless switched on.
        asic_dwell_s, gpu_dwell_s: least time in a mode before an economic flip out of it.
        cap_dwell_s: least time at a GPU power cap before an economic change of the cap; GPUs that serve at the point at which they came
            in are raised without it: they may have come in low for want of watts. An ASIC's profile counts as a mode here, since
            retuning takes minutes.
        expected_hold_s: how long a flip is expected to last, in the market's time; a flip must earn its cost back within it.
        power_price_variance: (USD/MWh)^2 per hour, how restless the power price is; sets the hysteresis of mining.
        inference_margin_variance: (USD/h)^2 per hour of one GPU's inference margin; sets the hysteresis of GPU flips.
        demand_headroom_ratio: inference capacity to keep ready above spot demand.
        spot_first: serve spot inference before mining even where mining pays more per kW. Off: money decides.
        max_flips_in_flight: flips that may be open at a time, shrinks for safety not counted.
        max_devices_per_flip: largest count one ASIC flip moves; more becomes several flips.
        plan_fill_ratio: share of a feeder's available watts the planner may fill.
    """

    version: str = "default"
    pool_fee_ratio: float = 0.02
    overhead_ratio: float = 1.0
    gpu_mining_allowed: bool = False
    asic_dwell_s: float = 900.0
    gpu_dwell_s: float = 900.0
    cap_dwell_s: float = 60.0
    expected_hold_s: float = 14_400.0
    power_price_variance: float = 100.0
    inference_margin_variance: float = 0.01
    demand_headroom_ratio: float = 0.0
    spot_first: bool = False
    max_flips_in_flight: int = 16
    max_devices_per_flip: int = 1000
    plan_fill_ratio: float = 1.0
    costs: FlipCosts = field(default_factory=FlipCosts)
    times: FlipTimes = field(default_factory=FlipTimes)

    def __post_init__(self) -> None:
        _check("pool_fee_ratio", self.pool_fee_ratio, low=0.0, high=0.999)
        _check("overhead_ratio", self.overhead_ratio, low=1.0, high=10.0)
        for name in ("asic_dwell_s", "gpu_dwell_s", "cap_dwell_s", "power_price_variance", "inference_margin_variance"):
            _check(name, getattr(self, name), low=0.0)
        _check("expected_hold_s", self.expected_hold_s, low=1.0)
        _check("demand_headroom_ratio", self.demand_headroom_ratio, low=0.0, high=10.0)
        _check("max_flips_in_flight", self.max_flips_in_flight, low=1)
        _check("max_devices_per_flip", self.max_devices_per_flip, low=1)
        _check("plan_fill_ratio", self.plan_fill_ratio, low=0.01, high=1.0)
