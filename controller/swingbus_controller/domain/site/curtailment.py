"""Curtailments: a lowered limit for a while, from the order to the proof.

Decides: the state of a curtailment at a moment, and the limit that it puts on its feeder. Refuses to know: what is shed (guard and
planner follow the limit). Invariant: CURTAILED is said only when the feeder's own meter shows enough windows, all begun after the full
limit was in force, whose upper bound fits it; a reading that does not fit takes it back to SHEDDING.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from swingbus_controller.domain.power.limits import Limit


class CurtailmentState(StrEnum):
    """Where a curtailment is."""

    SCHEDULED = "SCHEDULED"
    SHEDDING = "SHEDDING"
    CURTAILED = "CURTAILED"
    ENDED = "ENDED"
    CANCELLED = "CANCELLED"


OVER = frozenset({CurtailmentState.ENDED, CurtailmentState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofWindow:
    """One reading of the feeder's own meter, on the clock of the agent that reads it."""

    start_boottime_s: float
    end_boottime_s: float
    power_w: float
    upper_power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curtailment:
    """One order. Times are Unix seconds, but for `start_s` and `end_s`: the controller's CLOCK_BOOTTIME, which cannot jump.

    Attributes:
        ramp_from_w: the limit from which the ramp falls.
        windows: the proof, newest run.
    """

    id: str
    feeder: str
    limit_w: float
    created_unix_s: float
    start_unix_s: float
    end_unix_s: float
    boot_id: str
    start_s: float
    end_s: float
    ramp_s: float
    ramp_from_w: float
    window_s: float
    author: str
    reason: str
    baseline_w: float | None = None
    payment_usd_per_mwh: str = ""
    penalty_usd_per_mwh: str = ""
    state: CurtailmentState = CurtailmentState.SCHEDULED
    met_unix_s: float | None = None
    windows: tuple[ProofWindow, ...] = ()

    @property
    def full_from_s(self) -> float:
        """When the whole reduction is due."""
        return self.start_s + self.ramp_s

    def limit(self) -> Limit:
        """Return the limit to set on its feeder."""
        return Limit(
            name=self.id,
            limit_w=self.limit_w,
            source=f"curtailment {self.id} by {self.author}",
            window_s=self.window_s,
            start_s=self.start_s,
            end_s=self.end_s,
            ramp_s=self.ramp_s,
            ramp_from_w=self.ramp_from_w if self.ramp_s > 0.0 else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenWindow:
    """A plausible window of the feeder's meter with the moment it was received (controller's CLOCK_BOOTTIME)."""

    received_s: float
    start_boottime_s: float
    end_boottime_s: float
    power_w: float
    upper_power_w: float


def rebased(curtailment: Curtailment, *, boot_id: str, now_s: float, now_unix_s: float) -> Curtailment:
    """Return the order on this boot's axis: after a reboot only the wall clock connects the two."""
    if curtailment.boot_id == boot_id:
        return curtailment
    shift_s = now_s - now_unix_s
    return replace(
        curtailment,
        boot_id=boot_id,
        start_s=curtailment.start_unix_s + shift_s,
        end_s=curtailment.end_unix_s + shift_s,
    )


def unproven(curtailment: Curtailment) -> Curtailment:
    """Return the order as a controller's term begins with it: what was proven before has to be shown by readings of now.

    Without this an older journal, or one of a controller below CONTROL, would go on to say CURTAILED while nobody looks.
    """
    if curtailment.state is not CurtailmentState.CURTAILED:
        return curtailment
    return replace(curtailment, state=CurtailmentState.SHEDDING)


def advance(
    curtailment: Curtailment,
    *,
    now_s: float,
    now_unix_s: float,
    windows: Iterable[SeenWindow],
    delay_s: float,
    is_within_authority: bool,
    min_windows: int = 3,
    min_span_s: float = 10.0,
) -> Curtailment:
    """Return the curtailment as it stands now.

    Args:
        windows: the feeder's meter, oldest first.
        delay_s: lag and averaging of that meter: a window received at t shows power from t - its length - delay on.
        is_within_authority: whether I1 is true at the feeder: what is proven, not only what is read.
    """
    if curtailment.state in OVER:
        return curtailment
    if now_s >= curtailment.end_s:
        return replace(curtailment, state=CurtailmentState.ENDED)
    if now_s < curtailment.start_s:
        return curtailment
    run: list[SeenWindow] = []
    for window in windows:
        length_s = window.end_boottime_s - window.start_boottime_s
        if window.received_s - length_s - delay_s < curtailment.full_from_s:
            continue
        if window.upper_power_w > curtailment.limit_w:
            run.clear()
            continue
        run.append(window)
    spans = bool(run) and run[-1].end_boottime_s - run[0].start_boottime_s >= min_span_s
    if len(run) >= min_windows and spans and is_within_authority:
        if curtailment.state is CurtailmentState.CURTAILED:
            return curtailment
        proof = tuple(
            ProofWindow(
                start_boottime_s=w.start_boottime_s,
                end_boottime_s=w.end_boottime_s,
                power_w=w.power_w,
                upper_power_w=w.upper_power_w,
            )
            for w in run[-16:]
        )
        met = curtailment.met_unix_s if curtailment.met_unix_s is not None else now_unix_s
        return replace(curtailment, state=CurtailmentState.CURTAILED, met_unix_s=met, windows=proof)
    return replace(curtailment, state=CurtailmentState.SHEDDING)
