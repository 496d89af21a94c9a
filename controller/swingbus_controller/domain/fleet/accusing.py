"""Whom evidence accuses: a metered group whose machines draw more than they report.

Decides: that the gap between a group's meter and the sum of its devices' reports stepped up while nothing was asked of the group and its
reports stood still. Refuses to know: grants, and which machine it is (only a meter of its own could tell). A gap by itself accuses
nobody: fans, losses, host and the errors of meter and firmware make one; they drift over minutes, a lie steps. Invariant: no accusation
from samples in which the reports moved, so that a reboot, a pool that is lost or a late report is not taken for a lie.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

BEFORE_S = 12.0
AFTER_S = 12.0
PAUSE_S = 4.0
STILL_RATIO = 0.012
MIN_SAMPLES = 8
_CLEAR_RATIO = 0.4


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    metered_w: float
    reported_w: float

    @property
    def gap_w(self) -> float:
        return self.metered_w - self.reported_w


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A gap that stepped up, in watts at the group's meter."""

    before_w: float
    after_w: float

    @property
    def rise_w(self) -> float:
        """Return how far it rose."""
        return self.after_w - self.before_w


class GapWatch:
    """The newest samples of one group."""

    def __init__(self, threshold_w: float) -> None:
        self._threshold_w = threshold_w
        self._samples: deque[_Sample] = deque()

    def disturb(self) -> None:
        """Forget everything: something was asked of the group, or the feed was disturbed."""
        self._samples.clear()

    def take(self, at_s: float, metered_w: float, reported_w: float) -> Step | None:
        """Take a pair in; return the step that it completes, None for none. A step found is not found twice.

        Args:
            at_s: when both were received; a pair closer than half a second to the one before is left out.
        """
        if self._samples and at_s - self._samples[-1].at_s < 0.5:
            return None
        newest = _Sample(at_s, metered_w, reported_w)
        self._samples.append(newest)
        while self._samples[0].at_s < at_s - BEFORE_S - PAUSE_S - AFTER_S - 1.0:
            self._samples.popleft()
        # Every later sample has to be above every earlier one by so much: mostly the two outermost tell that there is no step.
        if newest.gap_w - self._samples[0].gap_w < _CLEAR_RATIO * self._threshold_w:
            return None
        after = [s for s in self._samples if s.at_s > at_s - AFTER_S]
        before = [s for s in self._samples if s.at_s <= at_s - AFTER_S - PAUSE_S]
        if len(after) < MIN_SAMPLES or len(before) < MIN_SAMPLES or before[-1].at_s - before[0].at_s < BEFORE_S / 2:
            return None
        reports = [s.reported_w for s in (*before, *after)]
        if min(reports) <= 0.0 or max(reports) - min(reports) > STILL_RATIO * max(reports):
            return None
        step = Step(before_w=_mean(before), after_w=_mean(after))
        # Every single later sample must show it: one late report in a mean is not a lie.
        low_w = min(s.gap_w for s in after)
        high_w = max(s.gap_w for s in before)
        if step.rise_w < self._threshold_w or low_w - high_w < _CLEAR_RATIO * self._threshold_w:
            return None
        self._samples.clear()
        return step


def _mean(samples: list[_Sample]) -> float:
    return sum(s.gap_w for s in samples) / len(samples)
