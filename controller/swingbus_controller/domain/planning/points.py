"""Operating points: what one device can be asked to do, what it is counted at and what it gives.

This room decides nothing; it names modes and points for planner, flips and explanations. It knows no bank and no price.
Invariant: a point's watts are finite and at least zero, and a point without work (STANDBY, OFF) gives no output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from swingbus.faults import InvalidInput


class Mode(StrEnum):
    """What a device does. Apart from its kind: an ASIC mines or rests, a GPU can do all."""

    MINING = "mining"
    INFERENCE = "inference"
    STANDBY = "standby"
    OFF = "off"


WORKING_MODES = frozenset({Mode.MINING, Mode.INFERENCE})


class DeviceKind(StrEnum):
    """The two kinds of device a bank can hold."""

    ASIC = "asic"
    GPU = "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """One thing a device can be asked to do.

    Args:
        name: unique within the bank, e.g. `mine@2794W`, `inference@250W`, `standby`.
        mode: the mode a device at this point is in.
        claim_w: watts one device is counted at (what is enforced, start peak and its share of cooling included), at the
            feeder of the bank. This, never the draw, is what limits are compared with.
        draw_w: watts one device is expected to draw on average; money is reckoned with this.
        output: for an ASIC that mines TH/s; for a GPU the share (0 to 1) of full inference or full GPU mining.
        workload: name of the workload in the agent's own list, if the point needs one.
    """

    name: str
    mode: Mode
    claim_w: float
    draw_w: float
    output: float = 0.0
    workload: str | None = None

    def __post_init__(self) -> None:
        for field, value in (("claim_w", self.claim_w), ("draw_w", self.draw_w), ("output", self.output)):
            if not math.isfinite(value) or value < 0:
                raise InvalidInput(
                    f"operating point {self.name!r}: {field} is {value}, must be a finite number >= 0",
                    metadata={"point": self.name, "field": field, "value": str(value)},
                )
        if self.mode not in WORKING_MODES and self.output:
            raise InvalidInput(
                f"operating point {self.name!r}: {self.mode} gives no output, but output is {self.output}",
                metadata={"point": self.name, "field": "output", "value": str(self.output)},
            )
