"""A Modbus TCP meter through pymodbus: one connection, one owner task, own deadline.

Decides how registers become readings. Invariants: one reading is one request where the map allows it, so that it shows one
window; a short or odd answer is a fault, never a number; after a fault the connection is closed and made anew.
"""

from __future__ import annotations

import asyncio
import math
import struct
from dataclasses import dataclass
from typing import Any

from swingbus.faults import InvalidInput, TimedOut, Unreachable
from swingbus_agent.ports.meter import MeterReading


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Where one quantity lies: struct format (f, I, Q, i, q, h, H), and what one count is worth."""

    field: str
    address: int
    format: str
    scale: float = 1.0

    @property
    def words(self) -> int:
        """Return how many 16-bit registers it takes."""
        return struct.calcsize(">" + self.format) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterMap:
    """One meter model. `version` is (address, value) that must be there, else it is another map."""

    name: str
    first: int
    count: int
    registers: tuple[Register, ...]
    version: tuple[int, int] | None = None


SWINGBUS_MAP = RegisterMap(
    name="swingbus",
    first=0,
    count=28,
    version=(0, 1),
    registers=(
        Register(field="power_w", address=2, format="f"),
        Register(field="voltage_v", address=4, format="f"),
        Register(field="current_a", address=6, format="f"),
        Register(field="power_factor", address=8, format="f"),
        Register(field="energy_j", address=12, format="Q"),
        Register(field="measurement_count", address=16, format="I"),
    ),
)
MAPS = {SWINGBUS_MAP.name: SWINGBUS_MAP}


def parse_registers(map_: RegisterMap, words: list[int], word_order: str) -> MeterReading:
    """Return the reading in `words`, the registers from `map_.first` on.

    Args:
        map_: the meter's map.
        words: 16-bit registers.
        word_order: big (high word first) or little.

    Raises:
        InvalidInput: too few registers, another map version or a value that is not finite: perhaps the wrong word order.
    """
    if len(words) < map_.count:
        raise InvalidInput(
            f"the meter answered {len(words)} registers instead of {map_.count}; check `map` and `unit`",
            reason="METER_SHORT",
        )
    if map_.version is not None and words[map_.version[0] - map_.first] != map_.version[1]:
        raise InvalidInput(
            f"register {map_.version[0]} is {words[map_.version[0] - map_.first]}, the map {map_.name!r} has {map_.version[1]} "
            "there; check `map` and `unit`",
            reason="METER_OTHER_MAP",
        )
    found: dict[str, float] = {}
    for register in map_.registers:
        at = register.address - map_.first
        part = words[at : at + register.words]
        if word_order == "little":
            part = part[::-1]
        raw = struct.pack(f">{len(part)}H", *part)
        value = struct.unpack(">" + register.format, raw)[0] * (register.scale if register.scale != 1.0 else 1)
        if not math.isfinite(value):
            raise InvalidInput(
                f"register {register.address} ({register.field}) is no number; check `word_order`",
                reason="METER_NOT_A_NUMBER",
            )
        found[register.field] = value
    if not 0.0 <= found.get("power_factor", 0.0) <= 1.0001:
        raise InvalidInput(
            f"the power factor is {found['power_factor']:g}, which cannot be; check `word_order`",
            reason="METER_IMPLAUSIBLE",
        )
    count = found.pop("measurement_count", None)
    return MeterReading(
        power_w=found["power_w"],
        energy_j=found.get("energy_j"),
        voltage_v=found.get("voltage_v"),
        current_a=found.get("current_a"),
        power_factor=found.get("power_factor"),
        measurement_count=None if count is None else int(count),
    )


class ModbusMeter:
    """One meter behind a Modbus TCP port."""

    def __init__(
        self, *, host: str, port: int, unit: int, map_: RegisterMap, word_order: str, timeout_s: float
    ) -> None:
        self._host = host
        self._port = port
        self._unit = unit
        self._map = map_
        self._word_order = word_order
        self._timeout_s = timeout_s
        self._client: Any = None

    async def read(self) -> MeterReading:
        where = f"meter at {self._host}:{self._port}"
        try:
            async with asyncio.timeout(self._timeout_s):
                words = await self._read_words(where)
        except TimeoutError as error:
            self._drop()
            raise TimedOut(f"{where} did not answer within {self._timeout_s:g} s", reason="METER_SILENT") from error
        except (Unreachable, InvalidInput):
            self._drop()
            raise
        return parse_registers(self._map, words, self._word_order)

    async def _read_words(self, where: str) -> list[int]:
        # Imported where it is needed: an agent without meters does not pay for it.
        from pymodbus.client import AsyncModbusTcpClient
        from pymodbus.exceptions import ModbusException

        if self._client is None:
            # Its own reconnecting and retrying are off: the owner task does both, with a deadline and a backoff.
            self._client = AsyncModbusTcpClient(
                self._host, port=self._port, timeout=self._timeout_s, retries=0, reconnect_delay=0
            )
        try:
            if not self._client.connected and not await self._client.connect():
                raise Unreachable(
                    f"{where}: no connection; check `host`, `port` and the cable", reason="METER_UNREACHABLE"
                )
            answer = await self._client.read_holding_registers(
                self._map.first, count=self._map.count, device_id=self._unit
            )
        except (ModbusException, OSError) as error:
            raise Unreachable(f"{where}: {error}", reason="METER_UNREACHABLE") from error
        if answer.isError():
            raise InvalidInput(f"{where} refused the request: {answer}; check `map` and `unit`", reason="METER_REFUSED")
        return list(answer.registers)

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    async def aclose(self) -> None:
        self._drop()
