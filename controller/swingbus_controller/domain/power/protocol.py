"""Every time, count and ratio of the power protocol, in one frozen object.

Decides: nothing. Refuses to know: sites, clocks, files. Invariant: a value that would weaken a proof (fewer than three
evidence windows, a stretch below zero) is refused here, so the rest of the room need not check again.

All protocol times of the controller run on one axis `now_s`: CLOCK_BOOTTIME of the controller's host. Times read on an
agent's host are compared only with times of the same boot of the same host.
"""

from __future__ import annotations

from dataclasses import dataclass

from swingbus.faults import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolSettings:
    """Starting values of the protocol; a site file may replace any of them and says so in its report.

    Attributes:
        ttl_s: how long a grant lasts from the moment the agent *sent* the renewal it answers.
        stretch_ratio: how much longer the controller believes a grant to live (clock drift of two hosts).
        report_period_s: how often an agent reports; `dark_periods` missed ones make its banks DARK.
        disturbance_s: no evidence and no growth for this long after a blip.
        settle_windows: distinct meter windows that settling needs (never below 3).
        meter_dead_s: a meter silent for longer than this is not live.
        adopt_grace_s: how long after a start an excess on paper alone sheds nothing while meters are live.
        shed_deadline_s: a shrink unproven for longer is no longer counted as coming; others give instead.
        reaction_s: T_r; a limit that starts within it counts as in force.
        energy_tolerance_ratio, product_tolerance_ratio: energy against power, P against V x I x pf.
        ramp_rate_w_per_s, ramp_window_s: I5; `None` rate means no ramp is set.
        inrush_count, inrush_window_s: at most so many device starts in any such window; `None` means no bound.
        meter_error_ratio, margin_device_count, margin_device_ratio: R = error x L + K x largest device.
        uncontrolled_window_s: the history that U is the maximum of.
    """

    ttl_s: float = 120.0
    stretch_ratio: float = 0.001
    report_period_s: float = 1.0
    dark_periods: int = 3
    disturbance_s: float = 60.0
    settle_windows: int = 3
    meter_dead_s: float = 15.0
    adopt_grace_s: float = 60.0
    shed_deadline_s: float = 30.0
    reaction_s: float = 12.0
    energy_tolerance_ratio: float = 0.02
    product_tolerance_ratio: float = 0.03
    ramp_rate_w_per_s: float | None = None
    ramp_window_s: float = 60.0
    inrush_count: int | None = None
    inrush_window_s: float = 5.0
    meter_error_ratio: float = 0.005
    margin_device_count: int = 3
    margin_device_ratio: float = 0.01
    uncontrolled_window_s: float = 900.0

    def __post_init__(self) -> None:
        if self.settle_windows < 3:
            raise InvalidInput(
                f"settle_windows is {self.settle_windows}: evidence needs at least 3 windows. Raise it to 3 or more.",
                reason="TOO_FEW_SETTLE_WINDOWS",
            )
        spans = ("ttl_s", "report_period_s", "meter_dead_s", "shed_deadline_s", "ramp_window_s", "inrush_window_s")
        for name in (*spans, "uncontrolled_window_s"):
            if not getattr(self, name) > 0.0:
                raise InvalidInput(f"{name} must be above 0 s.", reason="BAD_PROTOCOL_TIME")
        for name in ("stretch_ratio", "disturbance_s", "adopt_grace_s", "reaction_s", "meter_error_ratio"):
            if not getattr(self, name) >= 0.0:
                raise InvalidInput(f"{name} must be 0 or above.", reason="BAD_PROTOCOL_VALUE")
        if self.dark_periods < 1:
            raise InvalidInput("dark_periods must be 1 or more.", reason="BAD_PROTOCOL_VALUE")
