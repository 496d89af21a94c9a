"""Whether a feeder's meter can be looked at: live, frozen, dead, disagrees, none.

Decides a word for people and for the sums that are shown. Refuses to know: grants; what counts as evidence is `evidence`'s own,
stricter rule. Invariant: a meter is live only while its newest readings move and agree with themselves.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from swingbus_controller.domain.fleet.frames import MeterFrame
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.tree import MeterSpec

RECENT = 8


@dataclass(slots=True)
class MeterView:
    """The newest readings of one meter, on its reader's clock, and when they came."""

    meter: str
    feeder: str
    agent: str
    spec: MeterSpec
    recent: deque[MeterFrame] = field(default_factory=lambda: deque(maxlen=RECENT))
    boot_id: str = ""
    received_s: float | None = None  # controller's clock, of the newest reading with power
    offset_s: float = 0.0  # controller's clock less reader's clock, at the newest reading
    fault: str = ""
    ignored_count: int = 0  # readings that repeat a measurement

    def take(self, frame: MeterFrame, boot_id: str, now_s: float, offset_s: float) -> float:
        """Take a reading in; return the seconds that only it covers (0 for a repeat or a failed reading)."""
        if boot_id != self.boot_id:
            self.recent.clear()
            self.boot_id = boot_id
        if frame.power_w is None:
            self.fault = frame.fault or "no reading"
            return 0.0
        last = self.recent[-1] if self.recent else None
        if last is not None and _is_repeat(last, frame):
            self.ignored_count += 1
            return 0.0
        self.fault = ""
        self.received_s = now_s
        self.offset_s = offset_s
        self.recent.append(frame)
        begins_s = frame.window_start_boottime_s
        if last is not None:
            begins_s = max(begins_s, last.window_end_boottime_s)
        return max(0.0, frame.window_end_boottime_s - begins_s)

    def newest(self) -> MeterFrame | None:
        """Return the newest reading with power, however old."""
        return self.recent[-1] if self.recent else None

    def state(self, now_s: float, settings: ProtocolSettings) -> str:
        """Return live, frozen, dead or disagrees."""
        if self.received_s is None or now_s - self.received_s > settings.meter_dead_s:
            return "dead"
        if is_frozen(self.recent):
            return "frozen"
        if not agrees(self.recent, settings, self.spec):
            return "disagrees"
        return "live"

    def age_s(self, now_s: float) -> float | None:
        """Return the age of the newest reading's window end, None without a reading."""
        newest = self.newest()
        return None if newest is None else max(0.0, now_s - self.offset_s - newest.window_end_boottime_s)


def _is_repeat(last: MeterFrame, frame: MeterFrame) -> bool:
    if frame.measurement_count is not None and frame.measurement_count == last.measurement_count:
        return True
    return frame.window_end_boottime_s <= last.window_end_boottime_s


def is_frozen(recent: Sequence[MeterFrame]) -> bool:
    """Tell whether the last three readings are one and the same: equal watts and a register that stands still.

    A register alone may stand still for one count and watts alone may repeat on a coarse meter, so both must, unless there
    is only one of them.
    """
    if len(recent) < 3:
        return False
    first, second, third = list(recent)[-3:]
    if not first.power_w == second.power_w == third.power_w:
        return False
    if third.power_w == 0.0:
        return False  # an open feeder is allowed to be still
    return first.energy_j is None or first.energy_j == third.energy_j


def agrees(recent: Sequence[MeterFrame], settings: ProtocolSettings, spec: MeterSpec) -> bool:
    """Tell whether watts agree with volts and amperes, and over the kept readings with the energy register."""
    if not recent:
        return True
    newest = recent[-1]
    if not _agrees_with_product(newest, settings, spec):
        return False
    oldest = recent[0]
    if oldest.energy_j is None or newest.energy_j is None or len(recent) < 3:
        return True
    gained_j = newest.energy_j - oldest.energy_j
    span_s = newest.window_end_boottime_s - oldest.window_end_boottime_s
    means = [frame.power_w for frame in list(recent)[1:] if frame.power_w is not None]
    expected_j = sum(means) / len(means) * span_s
    # Windows with gaps between them say less than contiguous ones: the spread of the readings is allowed for.
    spread_j = (max(means) - min(means)) * span_s
    allowed_j = settings.energy_tolerance_ratio * abs(expected_j) + 2 * spec.energy_count_j + spread_j
    return abs(gained_j - expected_j) <= allowed_j


def _agrees_with_product(frame: MeterFrame, settings: ProtocolSettings, spec: MeterSpec) -> bool:
    if frame.power_w is None or frame.voltage_v is None or frame.current_a is None or frame.power_factor is None:
        return True
    product_va = frame.voltage_v * frame.current_a * frame.power_factor
    allowed_w = settings.product_tolerance_ratio * abs(frame.power_w) + spec.quantum_w
    # Meters tell phase or line voltage, and one or three phases; which one is commissioning's business, not this word's.
    return any(abs(frame.power_w - factor * product_va) <= allowed_w for factor in (3.0, math.sqrt(3.0), 1.0))
