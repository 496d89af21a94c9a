"""What surrounds the devices: cooling that follows them late, and loads that nobody controls."""

from __future__ import annotations

import math
from random import Random

from swingbus_sim import scenario as spec


class CoolingPlant:
    """A container's cooling: first-order towards base + ratio x the devices' watts, clipped at its nameplate."""

    def __init__(self, cooling: spec.Cooling, *, ambient_c: float, devices_w: float) -> None:
        self.spec = cooling
        self.power_w = self._wanted_w(devices_w)
        self.inlet_c = ambient_c
        self._ambient_c = ambient_c

    def step(self, dt_s: float, devices_w: float, *, is_powered: bool) -> None:
        """Advance by `dt_s` with `devices_w` of heat; the air warms by what the fans have not caught up with."""
        wanted_w = self._wanted_w(devices_w)
        if not is_powered:
            self.power_w = 0.0
        else:
            # Fans restart quickly from zero; otherwise they follow the heat with the scenario's lag.
            lag_s = 5.0 if self.power_w < self.spec.base_w else self.spec.lag_s
            self.power_w += (wanted_w - self.power_w) * (1.0 - math.exp(-dt_s / lag_s))
        shortfall = max(0.0, 1.0 - self.power_w / wanted_w) if wanted_w > 0.0 else 0.0
        self.inlet_c += (self._ambient_c + 12.0 * shortfall - self.inlet_c) * min(1.0, dt_s / 20.0)

    def potential_w(self, devices_potential_w: float) -> float:
        """Return the draw once the fans have caught up with `devices_potential_w`."""
        return max(self.power_w, self._wanted_w(devices_potential_w))

    def _wanted_w(self, devices_w: float) -> float:
        return min(self.spec.nameplate_w, self.spec.base_w + self.spec.ratio * devices_w)


class UncontrolledLoad:
    """Somebody else's load. A surge that the scenario plants is kept apart, so that the judge can name it."""

    def __init__(self, load: spec.Load, *, random: Random) -> None:
        self.spec = load
        self.surge_w = 0.0
        self.surge_since_s = 0.0
        self.power_w = load.base_w
        self._random = random
        self._phase = random.uniform(0.0, 2.0 * math.pi)
        self._noise = 0.0

    def step(self, now_s: float, *, is_powered: bool) -> None:
        """Advance to `now_s`."""
        s = self.spec
        self._noise = self._noise * 0.9 + self._random.gauss(0.0, 0.3)
        wave_w = s.swing_w * math.sin(self._phase + 2.0 * math.pi * now_s / s.period_s)
        ordinary_w = max(0.0, s.base_w + wave_w + max(-1.0, min(1.0, self._noise)) * s.noise_w)
        self.power_w = (min(ordinary_w, s.max_w) + self.surge_w) if is_powered else 0.0
