"""From raw telemetry to what the ledger takes: meter windows, blips, device rows.

Decides: where one reading's window begins and ends and what its energy was, and whether readings show a disturbance. Refuses to know:
grants. Invariant: a window is made only from two measurements that follow each other; nothing is interpolated, and a reading that says
less than its energy counter counts as what the counter says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swingbus_controller.domain.frames import BankInventory, MeterFrame
from swingbus_controller.domain.reports import MeterWindow

# A gap between two measurements longer than this many windows is not bridged.
MAX_GAP_WINDOWS = 3.5
VOLTAGE_LOW_PU, VOLTAGE_HIGH_PU = 0.9, 1.1
RESTARTS_FOR_DISTURBANCE = 3


@dataclass(frozen=True, slots=True)
class _Last:
    boot_id: str
    measurement_count: int | None
    end_s: float
    energy_j: float | None


class WindowMaker:
    """Turns one meter's readings into windows that touch but never overlap."""

    def __init__(self, feeder: str, reader: str) -> None:
        self._feeder = feeder
        self._reader = reader
        self._last: _Last | None = None

    def take(self, frame: MeterFrame, boot_id: str) -> MeterWindow | None:
        """Return the window that this reading closes; None for a repeat, the first after a gap, or no reading."""
        last = self._last
        if frame.power_w is None or math.isnan(frame.power_w):
            return None
        if last is not None and boot_id == last.boot_id:
            is_repeat = frame.measurement_count is not None and frame.measurement_count == last.measurement_count
            if is_repeat or frame.window_end_boottime_s <= last.end_s:
                return None
        self._last = _Last(boot_id, frame.measurement_count, frame.window_end_boottime_s, frame.energy_j)
        length_s = frame.window_end_boottime_s - frame.window_start_boottime_s
        if (
            last is None
            or boot_id != last.boot_id
            or frame.window_end_boottime_s - last.end_s > MAX_GAP_WINDOWS * length_s
        ):
            return None
        mean_w = frame.power_w
        if (
            frame.energy_j is not None
            and last.energy_j is not None
            and frame.window_end_boottime_s - last.end_s > 1.5 * length_s
        ):
            # A measurement was missed: what the counter gained in between may be more than the reading says.
            mean_w = max(mean_w, (frame.energy_j - last.energy_j) / (frame.window_end_boottime_s - last.end_s))
        return MeterWindow(
            feeder=self._feeder,
            reader=self._reader,
            boot_id=boot_id,
            start_s=last.end_s,
            end_s=frame.window_end_boottime_s,
            mean_w=mean_w,
            energy_start_j=last.energy_j,
            energy_end_j=frame.energy_j,
            product_w=_product_w(frame),
            marker=(frame.marker_epoch, frame.marker) if frame.marker_epoch else None,
        )


def _product_w(frame: MeterFrame) -> float | None:
    """Return V x I x pf of three phases, V from line to neutral; None where the meter does not tell all three."""
    if frame.voltage_v is None or frame.current_a is None or frame.power_factor is None:
        return None
    return 3.0 * frame.voltage_v * frame.current_a * frame.power_factor


class BlipWatch:
    """Tells a disturbance: voltage outside 0.9 to 1.1 pu of what the meter saw first, or several devices restarted together."""

    def __init__(self) -> None:
        self._nominal_v: dict[str, float] = {}
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
            return None
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


def column(inventory: BankInventory, field: str) -> int | None:
    """Return the index of a value field in this bank's matrix, None where it has no such field."""
    try:
        return inventory.value_fields.index(field)
    except ValueError:
        return None
