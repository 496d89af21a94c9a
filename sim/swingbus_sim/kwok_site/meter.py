"""Power meters above the nodes: means from true energy, over exactly the time since the reading before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swingbus_sim.kwok_site.physics import Server

LAG_S = 1.0  # as declared: readings here are younger, which a controller must not rely on


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterReading:
    """Mean power over a window of CLOCK_BOOTTIME, and the energy register at its end."""

    start_s: float
    end_s: float
    power_w: float
    energy_j: float
    lag_s: float = LAG_S


class Meter:
    """One meter above some servers. `is_frozen` repeats the last reading, as a hung one does."""

    def __init__(self, name: str, feeder: str, servers: Sequence[Server], now_s: float) -> None:
        self.name = name
        self.feeder = feeder
        self.is_frozen = False
        self._servers = servers
        self._at_s = now_s
        self._energy_j = self._sum_j(now_s)
        self._last: MeterReading | None = None

    def read(self, now_s: float) -> MeterReading | None:
        """Return the mean since the last reading; None where no time has passed."""
        if now_s <= self._at_s:
            return None
        if self.is_frozen and self._last is not None:
            span_s = now_s - self._at_s
            self._at_s = now_s
            last = self._last
            return MeterReading(start_s=now_s - span_s, end_s=now_s, power_w=last.power_w, energy_j=last.energy_j)
        energy_j = self._sum_j(now_s)
        self._last = MeterReading(
            start_s=self._at_s,
            end_s=now_s,
            power_w=(energy_j - self._energy_j) / (now_s - self._at_s),
            energy_j=energy_j,
        )
        self._at_s, self._energy_j = now_s, energy_j
        return self._last

    def _sum_j(self, now_s: float) -> float:
        return sum(server.energy_j(now_s) for server in self._servers)
