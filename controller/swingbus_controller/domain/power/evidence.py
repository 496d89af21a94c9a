"""Meter windows of one feeder: which of them are plausible, and whether the meter behind them is alive.

Decides: may this window be believed, may this run of windows be evidence of anything. Refuses to know: grants.
Invariant: a window once refused never becomes evidence; windows are kept in the order of the reader's clock, and one
that arrives out of order is dropped. When a window was, on our clock, is only ever told as a stretch that it surely lies in,
and only for `uncontrolled`: evidence of grants never compares two clocks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.reports import MeterWindow
from swingbus_controller.domain.power.tree import MeterSpec

MAX_WINDOWS = 192


def has_true_product(window: MeterWindow, settings: ProtocolSettings, meter: MeterSpec) -> bool:
    """Tell whether P agrees with V x I x pf (a swapped word pair does not); true where the meter cannot say."""
    if window.product_w is None:
        return True
    return (
        abs(window.mean_w - window.product_w) <= settings.product_tolerance_ratio * abs(window.mean_w) + meter.quantum_w
    )


def is_plausible(window: MeterWindow, settings: ProtocolSettings, meter: MeterSpec) -> bool:
    """Tell whether a single window can be a reading at all: time runs forward, watts are not negative, P fits VI."""
    return window.end_s > window.start_s and window.mean_w >= 0.0 and has_true_product(window, settings, meter)


def has_true_energy(window: MeterWindow, settings: ProtocolSettings, meter: MeterSpec) -> bool:
    """Tell whether the energy counter moved and agrees with power within 2 % and one count."""
    if window.energy_start_j is None or window.energy_end_j is None:
        return False
    gained_j = window.energy_end_j - window.energy_start_j
    expected_j = window.mean_w * (window.end_s - window.start_s)
    if gained_j <= 0.0:
        # Less than one count is expected: the counter may stand still for one window without being dead.
        return gained_j == 0.0 and expected_j < meter.energy_count_j
    return abs(gained_j - expected_j) <= settings.energy_tolerance_ratio * expected_j + meter.energy_count_j


def is_frozen(windows: Sequence[MeterWindow]) -> bool:
    """Tell whether the meter repeats itself: three identical means in a row, or no energy over the whole run."""
    for first, second, third in zip(windows, windows[1:], windows[2:], strict=False):
        if first.mean_w == second.mean_w == third.mean_w:
            return True
    if not windows:
        return False
    start_j, end_j = windows[0].energy_start_j, windows[-1].energy_end_j
    return start_j is None or end_j is None or end_j <= start_j


class MeterHistory:
    """The newest windows of one meter (at most 192), and when the last plausible one was received."""

    def __init__(self, meter: MeterSpec, keep_s: float = math.inf) -> None:
        """Args:
        keep_s: windows that ended so long before the newest are forgotten: at a thousand meters they are most of the memory.
        """
        self._keep_s = keep_s
        self.meter = meter
        self.windows: deque[MeterWindow] = deque(maxlen=MAX_WINDOWS)
        self.received: deque[float] = deque(maxlen=MAX_WINDOWS)  # controller's clock, one per window
        self.received_s: float | None = None
        self._offset_s = math.inf  # our clock less the reader's, at most: the quickest delivery there was
        self._repeats = 0

    def add(self, window: MeterWindow, now_s: float, settings: ProtocolSettings) -> bool:
        """Take a window in; return False where it is implausible, a repeat, or out of order."""
        if window.reader != self.meter.reader or not is_plausible(window, settings, self.meter):
            return False
        if self.windows:
            last = self.windows[-1]
            if window.boot_id == last.boot_id:
                if window.start_s < last.end_s:
                    return False
            else:
                # Another boot has another clock: windows of the two are never compared.
                self.windows.clear()
                self.received.clear()
                self._offset_s = math.inf
        stands_still = (
            window.energy_start_j is not None
            and window.energy_end_j == window.energy_start_j
            and window.mean_w * (window.end_s - window.start_s) >= self.meter.energy_count_j
        )
        is_repeat = bool(self.windows) and window.mean_w == self.windows[-1].mean_w
        self._repeats = self._repeats + 1 if is_repeat else 0
        passed_s = now_s - self.received[-1] if self.received else 0.0
        # It creeps up as fast as two clocks may drift apart, or an old quick delivery would be believed for ever.
        self._offset_s = min(now_s - window.end_s, self._offset_s + settings.stretch_ratio * passed_s)
        self.windows.append(window)
        self.received.append(now_s)
        while self.windows[0].end_s < window.end_s - self._keep_s:
            self.windows.popleft()
            self.received.popleft()
        if not stands_still and self._repeats < 2:
            self.received_s = now_s
        return True

    def is_live(self, now_s: float, settings: ProtocolSettings) -> bool:
        """Tell whether a moving, plausible window came within `meter_dead_s`."""
        return self.received_s is not None and now_s - self.received_s <= settings.meter_dead_s

    def stretch_s(self, window: MeterWindow, slack_s: float) -> tuple[float, float]:
        """Return a stretch of our own clock within which the power behind one of our windows was drawn.

        Args:
            slack_s: how long the quickest delivery took at most.
        """
        begun_s = window.start_s - self.meter.lag_s - self.meter.averaging_s
        return begun_s + self._offset_s - slack_s, window.end_s + self._offset_s

    def upper_w(self) -> float | None:
        """Return the newest window's upper bound, None without any."""
        return self.meter.upper_w(self.windows[-1].mean_w) if self.windows else None

    def lower_w(self) -> float | None:
        """Return the newest window's lower bound, None without any."""
        return self.meter.lower_w(self.windows[-1].mean_w) if self.windows else None
