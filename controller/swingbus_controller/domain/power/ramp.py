"""I5: planned moves spend from a bucket, starts are counted in batches.

Decides: may this much move now, and if not, when. Refuses to know: what moves. Invariant: the planned watts moved in
*any* window of `ramp_window_s` never exceed rate x window (a plain refilling bucket would allow twice that), and the
starts in any `inrush_window_s` never exceed the batch. After a start of the controller the bucket is empty.
"""

from __future__ import annotations

import math
from collections import deque

from swingbus_controller.domain.power.protocol import ProtocolSettings


class RampBucket:
    """A sliding window over the planned moves of a site."""

    def __init__(self, settings: ProtocolSettings, started_s: float | None = None) -> None:
        self._settings = settings
        self._moves: deque[tuple[float, float]] = deque()
        self._starts: deque[tuple[float, int]] = deque()
        if started_s is not None:
            # What the controller before us moved is not known: assume that it had spent everything.
            self._moves.append((started_s, self.capacity_w))
            self._starts.append((started_s, settings.inrush_count or 0))

    @property
    def capacity_w(self) -> float:
        """Watts that may move within one window; infinity without a ramp."""
        rate = self._settings.ramp_rate_w_per_s
        return math.inf if rate is None else rate * self._settings.ramp_window_s

    def wait_s(self, move_w: float, starts_count: int, now_s: float) -> float:
        """Return 0 where the move may begin now, else the seconds to wait; infinity where it never fits one window."""
        waits = (
            _wait_s(self._moves, abs(move_w), self.capacity_w, self._settings.ramp_window_s, now_s),
            _wait_s(
                self._starts,
                starts_count,
                math.inf if self._settings.inrush_count is None else self._settings.inrush_count,
                self._settings.inrush_window_s,
                now_s,
            ),
        )
        return max(waits)

    def spend(self, move_w: float, starts_count: int, now_s: float) -> None:
        """Record a planned move that begins now."""
        if self._settings.ramp_rate_w_per_s is not None and move_w != 0.0:
            self._moves.append((now_s, abs(move_w)))
            _forget(self._moves, now_s - 2.0 * self._settings.ramp_window_s)
        if self._settings.inrush_count is not None and starts_count > 0:
            self._starts.append((now_s, starts_count))
            _forget(self._starts, now_s - 2.0 * self._settings.inrush_window_s)


def _forget(entries: deque[tuple[float, float]] | deque[tuple[float, int]], before_s: float) -> None:
    while entries and entries[0][0] < before_s:
        entries.popleft()


def _wait_s(
    entries: deque[tuple[float, float]] | deque[tuple[float, int]],
    amount: float,
    capacity: float,
    window_s: float,
    now_s: float,
) -> float:
    if amount <= 0.0 or capacity == math.inf:
        return 0.0
    if amount > capacity * (1.0 + 1e-9):
        return math.inf
    recent = [(at_s, spent) for at_s, spent in entries if at_s > now_s - window_s]
    over = sum(spent for _, spent in recent) + amount - capacity
    wait_s = 0.0
    for at_s, spent in recent:
        if over <= capacity * 1e-9:
            break
        over -= spent
        wait_s = at_s + window_s - now_s
    return wait_s
