"""One suite for every `PowerMeter`: the fake, and the Modbus adapter against the simulator's meter on TCP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random

import pytest

from swingbus.faults import InvalidInput, SwingbusError, TimedOut, Unreachable
from swingbus_agent.adapters.asic.client import boottime_s
from swingbus_agent.adapters.modbus_meter import SWINGBUS_MAP, ModbusMeter, parse_registers
from swingbus_agent.ports.meter import MeterReading, PowerMeter
from swingbus_sim.meters.meter import Meter
from swingbus_sim.meters.registers import MeterValues, encode
from swingbus_sim.meters.server import serve_meters
from swingbus_sim.physics.faults import MeterFault
from swingbus_sim.scenario import MeterSpec

_ports = itertools.count(1)


class FakeMeter:
    """Answers what the test sets; `fault` is raised instead."""

    def __init__(self) -> None:
        self.power_w = 0.0
        self.energy_j = 1000.0
        self.count = 0
        self.fault: SwingbusError | None = None
        self.is_frozen = False

    def observe(self, power_w: float) -> None:
        """One more window of so many watts."""
        if not self.is_frozen:
            self.power_w, self.count, self.energy_j = power_w, self.count + 1, self.energy_j + power_w

    async def read(self) -> MeterReading:
        if self.fault is not None:
            raise self.fault
        return MeterReading(
            power_w=self.power_w,
            energy_j=self.energy_j,
            voltage_v=240.0,
            current_a=self.power_w / (3 * 240.0 * 0.98),
            power_factor=0.98,
            measurement_count=self.count,
        )

    async def aclose(self) -> None:
        return


@dataclass
class Bench:
    """A meter under test and what feeds it."""

    meter: PowerMeter
    fake: FakeMeter | None = None
    simulated: Meter | None = None

    def window(self, power_w: float) -> None:
        """One averaging window of so many watts passes."""
        if self.fake is not None:
            self.fake.observe(power_w)
        if self.simulated is not None:
            self.simulated.observe(boottime_s() - 10.0, 1.0, power_w, 1.0)

    def freeze(self) -> None:
        """From now on the registers stand still."""
        if self.fake is not None:
            self.fake.is_frozen = True
        if self.simulated is not None:
            self.simulated.set_fault(MeterFault(is_frozen=True))


@contextlib.asynccontextmanager
async def a_bench(kind: str) -> AsyncIterator[Bench]:
    """Yield a meter of each kind."""
    if kind == "fake":
        fake = FakeMeter()
        yield Bench(fake, fake=fake)
        return
    address, port = f"127.77.0.{next(_ports)}", 15020
    word_order = "little" if kind.endswith("little") else "big"
    spec = MeterSpec(
        name="m",
        node="grid",
        address=address,
        port=port,
        window_s=1.0,
        lag_s=0.0,
        gain_error_ratio=0.0,
        declared_error_ratio=0.005,
        word_order=word_order,
    )
    simulated = Meter(
        spec, fault=MeterFault(), random=Random(1), nominal_v=240.0, frequency_hz=50.0, power_factor_ratio=0.98
    )
    simulated.observe(boottime_s() - 20.0, 1.0, 0.0, 1.0)
    async with serve_meters([simulated], boottime_s):
        meter = ModbusMeter(host=address, port=port, unit=1, map_=SWINGBUS_MAP, word_order=word_order, timeout_s=2.0)
        yield Bench(meter, simulated=simulated)
        await meter.aclose()


@pytest.mark.parametrize("kind", ["fake", "modbus", "modbus-little"])
async def test_reading_shows_power_energy_and_consistent_line_values(kind: str) -> None:
    """P agrees with 3 x V x I x power factor, energy and count advance with each window."""
    async with a_bench(kind) as bench:
        bench.window(12_000.0)
        first = await bench.meter.read()
        bench.window(13_000.0)
        second = await bench.meter.read()
        assert second.power_w == pytest.approx(13_000.0, rel=0.01)
        assert second.voltage_v and second.current_a and second.power_factor
        assert 3 * second.voltage_v * second.current_a * second.power_factor == pytest.approx(second.power_w, rel=0.02)
        assert second.energy_j is not None and first.energy_j is not None and second.energy_j > first.energy_j
        assert second.measurement_count is not None and first.measurement_count is not None
        assert second.measurement_count > first.measurement_count


@pytest.mark.parametrize("kind", ["fake", "modbus"])
async def test_frozen_meter_shows_as_the_same_measurement(kind: str) -> None:
    """Equal counts: one measurement read twice, not two that agree."""
    async with a_bench(kind) as bench:
        bench.window(5_000.0)
        first = await bench.meter.read()
        bench.freeze()
        bench.window(9_000.0)
        second = await bench.meter.read()
        assert second.measurement_count == first.measurement_count and second.energy_j == first.energy_j


async def test_absent_meter_is_unreachable_and_found_again() -> None:
    """Nobody listening is a fault; the same object reads as soon as somebody does."""
    meter = ModbusMeter(host="127.77.9.9", port=15020, unit=1, map_=SWINGBUS_MAP, word_order="big", timeout_s=1.0)
    with pytest.raises((Unreachable, TimedOut)):
        await meter.read()
    spec = MeterSpec(
        name="m",
        node="grid",
        address="127.77.9.9",
        port=15020,
        window_s=1.0,
        lag_s=0.0,
        gain_error_ratio=0.0,
        declared_error_ratio=0.0,
        word_order="big",
    )
    simulated = Meter(
        spec, fault=MeterFault(), random=Random(1), nominal_v=240.0, frequency_hz=50.0, power_factor_ratio=0.98
    )
    simulated.observe(boottime_s() - 10.0, 1.0, 700.0, 1.0)
    async with serve_meters([simulated], boottime_s):
        assert (await meter.read()).power_w == pytest.approx(700.0)
        await meter.aclose()


async def test_silent_meter_times_out_within_its_deadline() -> None:
    """A port that takes connections and says nothing costs one deadline."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        meter = ModbusMeter(
            host="127.0.0.1",
            port=server.getsockname()[1],
            unit=1,
            map_=SWINGBUS_MAP,
            word_order="big",
            timeout_s=0.3,
        )
        async with asyncio.timeout(2.0):
            with pytest.raises((TimedOut, Unreachable)):
                await meter.read()
        await meter.aclose()


def registers(**changes: float) -> list[int]:
    """Return a good set of registers."""
    values = MeterValues(
        power_w=changes.get("power_w", 1000.0),
        voltage_v=240.0,
        current_a=1.4,
        power_factor_ratio=changes.get("power_factor_ratio", 0.98),
        frequency_hz=50.0,
        energy_j=5_000_000,
        sequence=77,
        window_end_ms=1,
        window_s=1.0,
        serial=1,
        nominal_v=240.0,
    )
    return encode(values, is_low_word_first=False)


def test_registers_are_parsed_exactly() -> None:
    """Energy and count stay whole numbers."""
    reading = parse_registers(SWINGBUS_MAP, registers(), "big")
    assert (reading.power_w, reading.energy_j, reading.measurement_count) == (1000.0, 5_000_000, 77)


def test_wrong_word_order_is_refused_not_believed() -> None:
    """Swapped words give values that cannot be, which is said with the key to mend."""
    with pytest.raises(InvalidInput, match="word_order"):
        parse_registers(SWINGBUS_MAP, registers(), "little")


@pytest.mark.parametrize("words", [[1, 3], [2, *registers()[1:]]])
def test_short_or_other_map_is_refused(words: list[int]) -> None:
    """Too few registers and another map's version say so."""
    with pytest.raises(InvalidInput, match="map"):
        parse_registers(SWINGBUS_MAP, words, "big")


def test_not_a_number_is_refused() -> None:
    """NaN in a register is a fault, never a reading."""
    words = registers()
    words[2:4] = struct.unpack(">2H", struct.pack(">f", float("nan")))
    with pytest.raises(InvalidInput, match="no number"):
        parse_registers(SWINGBUS_MAP, words, "big")
