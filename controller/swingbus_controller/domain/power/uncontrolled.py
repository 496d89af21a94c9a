"""Uncontrolled load U and the margin R: what must stay free for loads nobody asked us about.

Decides: U = min(U_max, max over 15 min of [meter - sum of banks' lower bounds] + dU), and R = meter error x L +
K x largest device. Refuses to know: grants. Invariant: without a live meter or a full
history U is U_max: silence costs watts, it never frees them.

Losses between a bank's meter and the feeder's are not subtracted: they are at most what the site file says, and may be nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from swingbus_controller.domain.power.evidence import MeterHistory, has_true_energy
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.reports import MeterWindow

BUCKET_COUNT = 90
# A reading is dated up to a period early by its reader, and is up to a period on its way at the quickest.
SLACK_PERIODS = 2.0
# More windows than that wait for nobody: the meters that they wait for are dead by then.
MAX_WAITING = 192


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A window of the feeder's meter: somewhere between two moments of our clock, of this length, and the most that was drawn."""

    start_s: float
    end_s: float
    length_s: float
    upper_w: float

    def widened(self, by_s: float) -> _Stretch:
        return replace(self, start_s=self.start_s - by_s, end_s=self.end_s + by_s)


class LoadWatch:
    """U of one feeder: each window of its meter beside the same stretch of time at its banks' meters.

    Moments of two hosts are known only within a stretch, so a window waits until every bank's meter has told all that may belong to
    its time. Where the banks moved by more than dU within it, pairs of readings prove nothing (the move itself would seem to be
    somebody else's load, and growth would be cut again for it): there only what the most that they drew leaves over is counted.
    """

    def __init__(self, *, max_w: float, step_w: float) -> None:
        self._step_w = step_w
        self._load = UncontrolledLoad(max_w=max_w, step_w=step_w)
        self._waiting: deque[_Stretch] = deque(maxlen=MAX_WAITING)

    def take(
        self,
        window: MeterWindow,
        history: MeterHistory,
        banks: Sequence[MeterHistory],
        now_s: float,
        settings: ProtocolSettings,
    ) -> float:
        """Take in a window that `history`, the feeder's meter, has just accepted; return U now.

        Args:
            banks: the meters of all metered groups below; a bank without one counts at nothing.
        """
        if history.is_live(now_s, settings) and has_true_energy(window, settings, history.meter):
            start_s, end_s = _stretch_s(history, window, settings)
            length_s = window.end_s - window.start_s
            self._waiting.append(_Stretch(start_s, end_s, length_s, history.meter.upper_w(window.mean_w)))
        while self._waiting and self._take_stretch(self._waiting[0], banks, now_s, settings):
            self._waiting.popleft()
        return self._load.watts(now_s, settings)

    def _take_stretch(
        self, stretch: _Stretch, banks: Sequence[MeterHistory], now_s: float, settings: ProtocolSettings
    ) -> bool:
        """Compare one stretch; False while a living meter has not told all of it. One that cannot be told adds nothing: a gap."""
        least_w = most_w = 0.0
        for history in banks:
            if not history.is_live(now_s, settings):
                continue
            newest = history.windows[-1]
            # A window tells its mean only: a move within it is told in full by its neighbours.
            around = stretch.widened(newest.end_s - newest.start_s)
            if _stretch_s(history, newest, settings)[0] <= around.end_s:
                return False
            drawn_w = _drawn_w(history, around, settings)
            if drawn_w is None:
                return True
            least_w += drawn_w[0]
            most_w += drawn_w[1]
        has_moved = most_w - least_w > self._step_w
        banks_w = most_w if has_moved else least_w
        self._load.add(meter_upper_w=stretch.upper_w, banks_lower_w=banks_w, now_s=now_s, settings=settings)
        return True


def _stretch_s(history: MeterHistory, window: MeterWindow, settings: ProtocolSettings) -> tuple[float, float]:
    return history.stretch_s(window, SLACK_PERIODS * settings.report_period_s)


def _drawn_w(history: MeterHistory, stretch: _Stretch, settings: ProtocolSettings) -> tuple[float, float] | None:
    """Return the least and the most of a group's lower bound, averaged over the feeder's window wherever in its stretch that was.

    None where a reading is missing or contradicts its own counter.
    """
    told: list[tuple[float, float]] = []  # length and lower bound, newest first
    told_from_s = math.inf
    for window in reversed(history.windows):
        if told_from_s <= stretch.start_s:
            break
        start_s, end_s = _stretch_s(history, window, settings)
        if end_s < min(told_from_s, stretch.end_s):
            return None
        told_from_s = start_s
        if start_s <= stretch.end_s:
            if not has_true_energy(window, settings, history.meter):
                return None
            told.append((window.end_s - window.start_s, history.meter.lower_w(window.mean_w)))
    if told_from_s > stretch.start_s:
        return None
    means_w = list(_sliding_means_w(told, stretch.length_s))
    return min(means_w, default=0.0), max(means_w, default=0.0)


def _sliding_means_w(told: Sequence[tuple[float, float]], length_s: float) -> Iterator[float]:
    for first in range(len(told)):
        span_s = energy_j = 0.0
        for part_s, watts in told[first:]:
            span_s += part_s
            energy_j += part_s * watts
            if span_s >= length_s - part_s / 2.0:
                yield energy_j / span_s
                break


class UncontrolledLoad:
    """The running maximum of what one feeder carries beyond its banks.

    The caller aligns the two readings: `banks_lower_w` are the lower bounds over the *same* stretch of time as the
    feeder's window; banks without a live meter count 0 there.
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
