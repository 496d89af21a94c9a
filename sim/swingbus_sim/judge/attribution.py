"""Names the cause of every watt above a limit, and the bound each cause is allowed.

Decides, per node and averaging window, how much of an excess the fault ledger explains. The order is fixed: a lowered limit, then
disobedient devices, then uncontrolled loads; what is left was *authorised* by the controller and must be zero. An explanation wears
off: a limit explains for its ramp + T_r, a fault for `PATIENCE` x its reaction time, because by then the controller has had its chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CAUSES = ("authorised", "limit_lowered", "disobedient", "uncontrolled")
PATIENCE = 3.0
_FLOOR_W = 0.5  # rounding of the truth lines, summed over a tree
_INCIDENT_GAP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One 100 ms record of one node: what it carried, what it might, and what explains more."""

    power_w: float
    limit_w: float
    limit_lowered_w: float = 0.0
    disobedient_w: float = 0.0
    uncontrolled_w: float = 0.0


def attribute(sample: Sample) -> dict[str, float]:
    """Split the excess of a sample (or of means over a window) by cause, in watts; empty where there is none.

    >>> attribute(Sample(power_w=110.0, limit_w=100.0, disobedient_w=4.0))
    {'disobedient': 4.0, 'authorised': 6.0}
    """
    excess_w = sample.power_w - sample.limit_w
    if excess_w <= _FLOOR_W:
        return {}
    result: dict[str, float] = {}
    for cause, explained_w in (
        ("limit_lowered", sample.limit_lowered_w),
        ("disobedient", sample.disobedient_w),
        ("uncontrolled", sample.uncontrolled_w),
    ):
        part_w = min(excess_w, explained_w)
        if part_w > 0.0:
            result[cause] = part_w
            excess_w -= part_w
    if excess_w > _FLOOR_W:
        result["authorised"] = excess_w
    return result


class WindowCounter:
    """Counts W·s over the limit in tumbling means of `window_s`."""

    def __init__(self, window_s: float, step_s: float) -> None:
        self.window_s = window_s
        self._step_s = step_s
        self._steps_needed = max(1, round(window_s / step_s))
        self._sums = [0.0] * 5
        self._steps = 0
        self.over_ws = dict.fromkeys(CAUSES, 0.0)

    def add(self, sample: Sample) -> dict[str, float] | None:
        """Take a step; return the window's attribution in watts when it closes, else None."""
        sums = self._sums
        sums[0] += sample.power_w
        sums[1] += sample.limit_w
        sums[2] += sample.limit_lowered_w
        sums[3] += sample.disobedient_w
        sums[4] += sample.uncontrolled_w
        self._steps += 1
        if self._steps < self._steps_needed:
            return None
        power_w, limit_w, lowered_w, disobedient_w, uncontrolled_w = (s / self._steps for s in sums)
        parts = attribute(
            Sample(
                power_w=power_w,
                limit_w=limit_w,
                limit_lowered_w=lowered_w,
                disobedient_w=disobedient_w,
                uncontrolled_w=uncontrolled_w,
            )
        )
        length_s = self._steps * self._step_s
        for cause, watts in parts.items():
            self.over_ws[cause] += watts * length_s
        self._sums = [0.0] * 5
        self._steps = 0
        return parts


@dataclass(slots=True, kw_only=True)
class Incident:
    """One stretch of excess of one cause at one node, and what it is allowed: its peak for the reaction time."""

    node: str
    cause: str
    start_s: float
    last_s: float
    allowed_s: float
    peak_w: float = 0.0
    over_ws: float = 0.0
    by: list[str] = field(default_factory=list)

    @property
    def bound_ws(self) -> float:
        """Return the peak excess x the time that the scenario allows; nothing is allowed for `authorised`."""
        return self.peak_w * self.allowed_s

    def as_json(self) -> dict[str, object]:
        """Return the incident for verdict.json."""
        return {
            "node": self.node,
            "cause": self.cause,
            "start_s": round(self.start_s, 1),
            "end_s": round(self.last_s, 1),
            "peak_w": round(self.peak_w, 1),
            "over_ws": round(self.over_ws, 1),
            "allowed_s": self.allowed_s,
            "bound_ws": round(self.bound_ws, 1),
            "by": self.by,
        }


class IncidentBook:
    """Joins 1 s means of excess into incidents."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._open: dict[str, Incident] = {}
        self.closed: list[Incident] = []

    def add(
        self,
        at_s: float,
        length_s: float,
        parts: dict[str, float],
        allowed_s: dict[str, float],
        by: dict[str, list[str]],
    ) -> None:
        """Take one window that ends at `at_s`; `allowed_s` and `by` say, per cause, how long and who."""
        for cause, watts in parts.items():
            incident = self._open.get(cause)
            if incident is None or at_s - incident.last_s > _INCIDENT_GAP_S:
                if incident is not None:
                    self.closed.append(incident)
                incident = Incident(node=self._node, cause=cause, start_s=at_s - length_s, last_s=at_s, allowed_s=0.0)
                self._open[cause] = incident
            incident.last_s = at_s
            incident.allowed_s = max(incident.allowed_s, allowed_s.get(cause, 0.0))
            incident.peak_w = max(incident.peak_w, watts)
            incident.over_ws += watts * length_s
            for name in by.get(cause, []):
                if name not in incident.by and len(incident.by) < 12:
                    incident.by.append(name)

    def all(self) -> list[Incident]:
        """Return every incident, by start."""
        return sorted([*self.closed, *self._open.values()], key=lambda i: i.start_s)
