"""One meter: turns the true watts of its feeder into windows that come late and a little wrong.

Pure. Decides what a reader sees at an instant; refuses to know Modbus. Invariant: sequence, window end and energy never fall, and
two reads between two windows see the same measurement.
"""

from __future__ import annotations

import zlib
from collections import deque
from random import Random

from swingbus_sim.meters.registers import PHASES, MeterValues, encode
from swingbus_sim.physics.faults import MeterFault
from swingbus_sim.scenario import MeterSpec

_KEPT_S = 120.0


class Meter:
    """A meter of the scenario; `observe` every step, `registers` on every read."""

    def __init__(
        self,
        spec: MeterSpec,
        *,
        fault: MeterFault,
        random: Random,
        nominal_v: float,
        frequency_hz: float,
        power_factor_ratio: float,
    ) -> None:
        self.spec = spec
        self.fault = fault
        self._random = random
        self._nominal_v = nominal_v
        self._frequency_hz = frequency_hz
        self._power_factor_ratio = power_factor_ratio
        self._serial = zlib.crc32(spec.name.encode())
        self._energy_j = random.uniform(1e9, 9e9)
        self._sequence = random.randrange(1000, 100_000)
        self._clock_offset_s = random.uniform(1e5, 1e6)
        self._sum_ws = self._sum_vs = self._elapsed_s = 0.0
        self._windows: deque[tuple[float, MeterValues]] = deque()
        self._shown: MeterValues | None = None
        self._held: MeterValues | None = None

    def set_fault(self, fault: MeterFault) -> None:
        """Take the fault in force now."""
        self.fault = fault

    def observe(self, now_s: float, dt_s: float, power_w: float, voltage_ratio: float) -> None:
        """Take in the true mean `power_w` over the step that ends at `now_s`."""
        seen_w = power_w * (1.0 + self.spec.gain_error_ratio) * self.fault.gain_ratio
        self._energy_j += seen_w * dt_s
        self._sum_ws += seen_w * dt_s
        self._sum_vs += voltage_ratio * self._nominal_v * dt_s
        self._elapsed_s += dt_s
        if self._elapsed_s < self.spec.window_s - dt_s / 2:
            return
        mean_w = self._sum_ws / self._elapsed_s
        mean_v = self._sum_vs / self._elapsed_s
        is_live = mean_v > 1.0
        if is_live:
            mean_v *= 1.0 + self._random.gauss(0.0, 0.0008)
        factor = self._power_factor_ratio * (1.0 + self._random.gauss(0.0, 0.0005)) if is_live else 0.0
        self._sequence += 1
        self._windows.append(
            (
                now_s,
                MeterValues(
                    power_w=mean_w,
                    voltage_v=mean_v,
                    current_a=mean_w / (PHASES * mean_v * factor) if is_live else 0.0,
                    power_factor_ratio=factor,
                    frequency_hz=self._frequency_hz + self._random.gauss(0.0, 0.004) if is_live else 0.0,
                    energy_j=int(self._energy_j),
                    sequence=self._sequence,
                    window_end_ms=int((now_s + self._clock_offset_s) * 1000),
                    window_s=self.spec.window_s,
                    serial=self._serial,
                    nominal_v=self._nominal_v,
                ),
            )
        )
        self._sum_ws = self._sum_vs = self._elapsed_s = 0.0
        while self._windows[0][0] < now_s - _KEPT_S:
            self._windows.popleft()

    def values(self, now_s: float) -> MeterValues | None:
        """Return what a reader sees now; None before the first window is through the lag."""
        if self.fault.is_frozen:
            return self._shown
        lag_s = self.fault.lag_s if self.fault.lag_s is not None else self.spec.lag_s
        for end_s, values in reversed(self._windows):
            if end_s <= now_s - lag_s and (self._shown is None or values.sequence >= self._shown.sequence):
                self._shown = values
                break
        if self._shown is None or not self.fault.is_power_frozen:
            self._held = self._shown
            return self._shown
        held = self._held or self._shown
        fresh = self._shown
        return MeterValues(
            power_w=held.power_w,
            voltage_v=held.voltage_v,
            current_a=held.current_a,
            power_factor_ratio=held.power_factor_ratio,
            frequency_hz=held.frequency_hz,
            energy_j=fresh.energy_j,
            sequence=fresh.sequence,
            window_end_ms=fresh.window_end_ms,
            window_s=fresh.window_s,
            serial=fresh.serial,
            nominal_v=fresh.nominal_v,
        )

    def registers(self, now_s: float) -> list[int] | None:
        """Return the register map as read now; None before the first measurement."""
        values = self.values(now_s)
        if values is None:
            return None
        is_low_first = (self.spec.word_order == "little") != self.fault.is_swapped
        return encode(values, is_low_word_first=is_low_first)
