"""A power meter as the agent needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterReading:
    """What the registers said in one request; None where that meter has no such register.

    Voltage is line to neutral, voltage and current are means of the phases: P = 3 x V x I x power factor.
    """

    power_w: float
    energy_j: float | None = None
    voltage_v: float | None = None
    current_a: float | None = None
    power_factor: float | None = None
    measurement_count: int | None = None


class PowerMeter(Protocol):
    """Reads one meter over one connection; only one task may call it."""

    async def read(self) -> MeterReading:
        """Return the registers as they are now.

        Raises:
            Unreachable: nobody answers at the address.
            TimedOut: no answer within the meter's deadline.
            InvalidInput: the answer is not what the register map says.
        """
        ...

    async def aclose(self) -> None: ...
