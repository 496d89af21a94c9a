"""From raw telemetry to what the ledger takes: meter windows, blips, device rows.

Decides: where one reading's window begins and ends and what its energy was, and whether readings show a disturbance. Refuses to know:
grants. Invariant: a window is made only from two measurements that follow each other; nothing is interpolated, and a reading that says
less than its energy counter counts as what the counter says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swingbus_controller.domain.fleet.frames import MeterFrame
from swingbus_controller.domain.power.reports import MeterWindow

# A gap between two measurements longer than this many windows is not bridged.
MAX_GAP_WINDOWS = 6.5
CLOCK_DRIFT_RATIO = 2e-4  # two crystals of 100 ppm each
COUNTER_AGREES_RATIO = 0.1
VOLTAGE_LOW_PU, VOLTAGE_HIGH_PU = 0.9, 1.1
RESTARTS_FOR_DISTURBANCE = 3
# So many readings in a row that agree with each other are no blip but what is usual here: the first reading may have been one.
READINGS_OF_A_NEW_NOMINAL = 30


@dataclass(frozen=True, slots=True)
class _Last:
    boot_id: str
    count: int | None
    end_s: float
    energy_j: float | None


class WindowMaker:
    """Turns one meter's readings into windows that touch but never overlap.

    An agent dates each reading as early as it can have begun, so single dates jump by a sampling period. A meter that counts its
    measurements ends each of them a whole window after the one before: with W the window and B unknown, measurement n ends at B + n W,
    and every reading's date says B >= date - n W. The greatest of these is the best date that is still never too late; it may fall
    again as slowly as two clocks drift apart.
    """

    def __init__(self, feeder: str, reader: str) -> None:
        self._feeder = feeder
        self._reader = reader
        self._last: _Last | None = None
        self._base_s = -math.inf

    def take(self, frame: MeterFrame, boot_id: str) -> MeterWindow | None:
        """Return the window that this reading closes; None for a repeat, the first after a gap, or no reading."""
        if frame.power_w is None or math.isnan(frame.power_w):
            return None
        last = self._last
        if last is not None and (boot_id != last.boot_id or (frame.measurement_count or 0) < (last.count or 0)):
            # Another boot, or a meter that began to count anew: nothing before compares.
            self._base_s = -math.inf
            last = None
        if last is not None and frame.measurement_count is not None and frame.measurement_count == last.count:
            return None
        length_s = frame.window_end_boottime_s - frame.window_start_boottime_s
        span_s, end_s = self._date(frame, last, length_s)
        if last is not None and end_s <= last.end_s:
            return None
        self._last = _Last(boot_id, frame.measurement_count, end_s, frame.energy_j)
        if last is None or span_s > MAX_GAP_WINDOWS * length_s:
            return None
        mean_w = _mean_w(frame.power_w, last.energy_j, frame.energy_j, span_s, length_s)
        product_w = _product_w(frame)
        return MeterWindow(
            feeder=self._feeder,
            reader=self._reader,
            boot_id=boot_id,
            start_s=max(last.end_s, end_s - span_s),
            end_s=end_s,
            mean_w=mean_w,
            energy_start_j=last.energy_j,
            energy_end_j=frame.energy_j,
            # The product belongs to the reading; what it says of the reading it says of the window.
            product_w=product_w if product_w is None or frame.power_w <= 0.0 else product_w * mean_w / frame.power_w,
            marker=(frame.marker_epoch, frame.marker) if frame.marker_epoch else None,
        )

    def _date(self, frame: MeterFrame, last: _Last | None, length_s: float) -> tuple[float, float]:
        """Return how long it is since the measurement before, and when this one ended at the earliest."""
        end_s = frame.window_end_boottime_s
        count = frame.measurement_count
        if count is None:
            return (length_s if last is None else end_s - last.end_s), end_s
        passed = 1 if last is None or last.count is None else count - last.count
        self._base_s = max(end_s - count * length_s, self._base_s - CLOCK_DRIFT_RATIO * passed * length_s)
        return passed * length_s, self._base_s + count * length_s


def _mean_w(
    power_w: float, energy_start_j: float | None, energy_end_j: float | None, span_s: float, length_s: float
) -> float:
    """Return the mean over a span that may hold more than one measurement.

    The counter knows the whole span, the reading only its last part. Where the two are far apart the reading is kept, and the
    disagreement makes the window worthless as evidence.
    """
    if span_s <= 1.5 * length_s or energy_start_j is None or energy_end_j is None:
        return power_w
    counted_w = (energy_end_j - energy_start_j) / span_s
    return counted_w if abs(counted_w - power_w) <= COUNTER_AGREES_RATIO * power_w else power_w


def _product_w(frame: MeterFrame) -> float | None:
    """Return V x I x pf of three phases, V from line to neutral; None where the meter does not tell all three."""
    if frame.voltage_v is None or frame.current_a is None or frame.power_factor is None:
        return None
    return 3.0 * frame.voltage_v * frame.current_a * frame.power_factor


class BlipWatch:
    """Tells a disturbance: voltage outside 0.9 to 1.1 pu of what the meter saw first, or several devices restarted together."""

    def __init__(self) -> None:
        self._nominal_v: dict[str, float] = {}
        self._unusual: dict[str, tuple[float, int]] = {}
        self._uptimes: dict[str, dict[str, float]] = {}

    def voltage(self, meter: str, voltage_v: float | None) -> str | None:
        """Return why this reading is a blip, None where it is none."""
        if voltage_v is None:
            return None
        nominal_v = self._nominal_v.get(meter)
        if nominal_v is None:
            if voltage_v > 0.0:
                self._nominal_v[meter] = voltage_v
            return None
        per_unit = voltage_v / nominal_v
        if VOLTAGE_LOW_PU <= per_unit <= VOLTAGE_HIGH_PU:
            # Follow slow drift, never a blip.
            self._nominal_v[meter] = nominal_v + 0.001 * (voltage_v - nominal_v)
            self._unusual.pop(meter, None)
            return None
        first_v, count = self._unusual.get(meter, (voltage_v, 0))
        if voltage_v <= 0.0 or not VOLTAGE_LOW_PU <= voltage_v / max(first_v, 1e-9) <= VOLTAGE_HIGH_PU:
            first_v, count = voltage_v, 0
        self._unusual[meter] = (first_v, count + 1)
        if count + 1 >= READINGS_OF_A_NEW_NOMINAL and voltage_v > 0.0:
            self._nominal_v[meter] = voltage_v
            del self._unusual[meter]
        return f"{meter} read {per_unit:.2f} of its usual voltage"

    def uptimes(self, bank: str, devices: Sequence[str], uptimes_s: Sequence[float], *, is_ordered: bool) -> str | None:
        """Return why these uptimes are a blip: at least three devices restarted since the sample before, and nobody asked for it."""
        known = self._uptimes.setdefault(bank, {})
        restarted = 0
        for device, uptime_s in zip(devices, uptimes_s, strict=True):
            if math.isnan(uptime_s):
                continue
            if uptime_s < known.get(device, -1.0) - 1.0:
                restarted += 1
            known[device] = uptime_s
        if restarted >= RESTARTS_FOR_DISTURBANCE and not is_ordered:
            return f"{restarted} devices of {bank} restarted together"
        return None


def column(fields: Sequence[str], field: str) -> int | None:
    """Return the index of a field in a bank's matrix, None where it has no such field."""
    try:
        return fields.index(field)
    except ValueError:
        return None
