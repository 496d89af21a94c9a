"""The simulated meter's Modbus register map: the document that an adapter follows, and its encoder.

Holding registers (function 3), unit id 1 (any id is answered), addresses from 0. Read registers 0 to 27 in ONE request: one request
sees one window. Values wider than 16 bits are sent high word first (`big`) or low word first (`little`, also what the fault
`meter_word_swap` does to a meter); bytes inside a word are always big-endian, as Modbus says.

| address | type    | unit | meaning |
| ------- | ------- | ---- | ------- |
| 0       | uint16  | -    | map version, 1 |
| 1       | uint16  | -    | phases, 3 |
| 2-3     | float32 | W    | active power, mean over the window, three phases together |
| 4-5     | float32 | V    | voltage, line to neutral, mean of the phases over the window |
| 6-7     | float32 | A    | current per phase; P = 3 x V x I x power factor |
| 8-9     | float32 | -    | power factor, 0 to 1 |
| 10-11   | float32 | Hz   | frequency; 0 without voltage |
| 12-15   | uint64  | J    | energy imported since manufacture (1 count = 1 W s), never falls |
| 16-17   | uint32  | -    | measurement sequence: one more per finished window; equal numbers are the same measurement |
| 18-21   | uint64  | ms   | end of the window on the meter's own clock, which starts at its power-up; compare it with itself only |
| 22-23   | float32 | s    | length of the averaging window |
| 24-25   | uint32  | -    | serial number |
| 26-27   | float32 | V    | nominal voltage, line to neutral |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAP_VERSION = 1
PHASES = 3
REGISTER_COUNT = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterValues:
    """What one window of a meter says, in the map's units."""

    power_w: float
    voltage_v: float
    current_a: float
    power_factor_ratio: float
    frequency_hz: float
    energy_j: int
    sequence: int
    window_end_ms: int
    window_s: float
    serial: int
    nominal_v: float


def encode(values: MeterValues, *, is_low_word_first: bool) -> list[int]:
    """Return the map's registers, each 0 to 65535."""
    registers = [MAP_VERSION, PHASES]
    for raw in (
        struct.pack(">f", values.power_w),
        struct.pack(">f", values.voltage_v),
        struct.pack(">f", values.current_a),
        struct.pack(">f", values.power_factor_ratio),
        struct.pack(">f", values.frequency_hz),
        struct.pack(">Q", values.energy_j),
        struct.pack(">I", values.sequence & 0xFFFFFFFF),
        struct.pack(">Q", values.window_end_ms),
        struct.pack(">f", values.window_s),
        struct.pack(">I", values.serial),
        struct.pack(">f", values.nominal_v),
    ):
        words = list(struct.unpack(f">{len(raw) // 2}H", raw))
        registers.extend(reversed(words) if is_low_word_first else words)
    return registers
