"""Uncontrolled load U and the margin R: what must stay free for loads nobody asked us about.

Decides: U = min(U_max, max over 15 min of [meter - sum of banks' lower bounds] + dU), and R = meter error x L +
K x largest device. Refuses to know: grants. Invariant: without a live meter or a full
history U is U_max: silence costs watts, it never frees them.
"""

from __future__ import annotations

import math
from collections import deque

from swingbus_controller.domain.evidence import MeterHistory
from swingbus_controller.domain.protocol import ProtocolSettings

BUCKET_COUNT = 90


def aligned_lower_w(history: MeterHistory, *, overlap_count: int, now_s: float, settings: ProtocolSettings) -> float:
    """Return what a group surely drew while another meter's window ran: the least of the newest windows.

    Clocks of two hosts are never compared, so every one of the newest `overlap_count` windows (lag difference and
    delivery, in windows, plus one) counts as possibly the same stretch of time. 0 without a live meter.
    """
    if len(history.windows) < overlap_count or not history.is_live(now_s, settings):
        return 0.0
    newest = list(history.windows)[-overlap_count:]
    return min(history.meter.lower_w(window.mean_w) for window in newest)


class UncontrolledLoad:
    """The running maximum of what one feeder carries beyond its banks.

    The caller aligns the two readings: `banks_lower_w` are the lower bounds over the *same* stretch of time as the
    feeder's window (`aligned_lower_w`); banks without a live meter count 0 there.
    """

    def __init__(self, *, max_w: float, step_w: float) -> None:
        self._max_w = max_w
        self._step_w = step_w
        self._buckets: deque[tuple[float, float]] = deque()
        self._first_s: float | None = None
        self._last_s: float | None = None

    def add(self, *, meter_upper_w: float, banks_lower_w: float, now_s: float, settings: ProtocolSettings) -> None:
        """Take in one aligned pair; a gap longer than `meter_dead_s` starts the history anew."""
        if self._last_s is not None and now_s - self._last_s > settings.meter_dead_s:
            self._buckets.clear()
            self._first_s = None
        if self._first_s is None:
            self._first_s = now_s
        self._last_s = now_s
        seen_w = max(0.0, meter_upper_w - banks_lower_w)
        width_s = settings.uncontrolled_window_s / BUCKET_COUNT
        if self._buckets and now_s - self._buckets[-1][0] < width_s:
            began_s, peak_w = self._buckets[-1]
            self._buckets[-1] = (began_s, max(peak_w, seen_w))
        else:
            self._buckets.append((now_s, seen_w))
        # One bucket more than the window is kept, so that rounding only ever lengthens the history.
        while self._buckets and self._buckets[0][0] < now_s - settings.uncontrolled_window_s - width_s:
            self._buckets.popleft()

    def watts(self, now_s: float, settings: ProtocolSettings) -> float:
        """Return U in watts at this feeder."""
        if self._first_s is None or self._last_s is None or now_s - self._last_s > settings.meter_dead_s:
            return self._max_w
        peak_w = max(peak for _, peak in self._buckets)
        if self._last_s - self._first_s < settings.uncontrolled_window_s:
            return self._max_w
        return min(self._max_w, peak_w + self._step_w)


def margin_w(
    *, limit_w: float, largest_device_w: float, software_sleepers_count: int, settings: ProtocolSettings
) -> float:
    """Return R = meter error x L + K x largest device, K = max(3, 1 % of the devices that sleep by software only).

    >>> round(margin_w(limit_w=18e6, largest_device_w=3500, software_sleepers_count=5000, settings=ProtocolSettings()))
    265000
    """
    if limit_w == math.inf:
        return 0.0
    sleepers = math.ceil(settings.margin_device_ratio * software_sleepers_count)
    return settings.meter_error_ratio * limit_w + max(settings.margin_device_count, sleepers) * largest_device_w
