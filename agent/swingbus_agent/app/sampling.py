"""The loops that look: one task per bank, one per meter, one for the host.

Decides when to look and how a meter's reading is dated. Invariants: a source that fails or hangs delays nobody else; one task alone
speaks to a meter; a fault is a reading that says why there is none.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from swingbus.clock import Clock
from swingbus.faults import SwingbusError
from swingbus_agent.app.rounds import Rounds
from swingbus_agent.domain.readings import MeterRound, MeterSpec
from swingbus_agent.domain.windows import WindowDating, date_window
from swingbus_agent.ports.bank import BankPort, BankReading
from swingbus_agent.ports.host import HostSource
from swingbus_agent.ports.meter import PowerMeter

_log = structlog.get_logger()
_METER_BACKOFF_MAX_S = 10.0


class Ticks:
    """Even ticks on CLOCK_BOOTTIME, the same for every loop of this agent, shifted once per agent by chance."""

    def __init__(self, clock: Clock, random_: random.Random) -> None:
        self._clock = clock
        self._shift = random_.random()

    async def wait(self, period_s: float) -> None:
        """Wait for the next tick of this period; ticks that went by are skipped, never caught up."""
        shift_s = self._shift * min(period_s, 1.0)
        now_s = self._clock.boottime_s() - shift_s
        await self._clock.sleep(period_s - now_s % period_s)


async def sample_bank(bank: BankPort, rounds: Rounds, ticks: Ticks, on_reading: Callable[[BankReading], None]) -> None:
    """Look at one bank at its period, for ever."""
    while True:
        await ticks.wait(bank.period_s)
        reading = await bank.read()
        if reading is None:
            continue
        on_reading(reading)
        rounds.take_bank(reading)
        for kind, device, message in reading.events:
            rounds.tell(kind, message, bank=reading.spec.bank, device=device)


async def sample_host(host: HostSource, rounds: Rounds, ticks: Ticks, period_s: float) -> None:
    """Look at the host at its period, for ever."""
    while True:
        rounds.take_host(host.read())
        await ticks.wait(period_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPlace:
    """A meter, its place in the inventory and its period."""

    index: int
    spec: MeterSpec
    period_s: float


async def sample_meter(
    meter: PowerMeter,
    place: MeterPlace,
    rounds: Rounds,
    ticks: Ticks,
    clock: Clock,
    marker_before: Callable[[float], int],
) -> None:
    """Look at one meter at its period, for ever; after faults less often, up to every 10 s."""
    dating = WindowDating()
    fault = ""
    fault_count = 0
    while True:
        await ticks.wait(place.period_s)
        asked_s = clock.boottime_s()
        try:
            reading = await meter.read()
        except SwingbusError as error:
            fault_count += 1
            if not fault:
                rounds.tell("meter_lost", f"meter {place.spec.meter}: {error}")
            fault = str(error)
            now_ns = clock.boottime_ns()
            rounds.take_meter(
                MeterRound(
                    meter_index=place.index,
                    window_start_boottime_ns=now_ns,
                    window_end_boottime_ns=now_ns,
                    marker=0,
                    fault=fault,
                )
            )
            await clock.sleep(min(_METER_BACKOFF_MAX_S, place.period_s * (2.0 ** min(fault_count, 6) - 1.0)))
            continue
        if fault:
            rounds.tell("meter_found", f"meter {place.spec.meter} answers again")
            fault, fault_count = "", 0
        window, dating = date_window(
            dating,
            count=reading.measurement_count,
            asked_s=asked_s,
            window_s=place.spec.window_s,
            lag_s=place.spec.lag_s,
        )
        rounds.take_meter(
            MeterRound(
                meter_index=place.index,
                window_start_boottime_ns=round(window.start_s * 1e9),
                window_end_boottime_ns=round(window.end_s * 1e9),
                marker=marker_before(window.start_s),
                measurement_count=reading.measurement_count,
                power_w=reading.power_w,
                energy_j=reading.energy_j,
                voltage_v=reading.voltage_v,
                current_a=reading.current_a,
                power_factor=reading.power_factor,
            )
        )


async def first_look(banks: list[BankPort], deadline_s: float) -> list[BankReading]:
    """Look once at every bank before the first session, so that the first inventory is whole where it can be."""
    found: list[BankReading] = []

    async def look(bank: BankPort) -> None:
        reading = await bank.read()
        if reading is not None:
            found.append(reading)

    try:
        async with asyncio.timeout(deadline_s), asyncio.TaskGroup() as group:
            for bank in banks:
                group.create_task(look(bank))
    except TimeoutError:
        _log.warning("first_look_cut", found_count=len(found), deadline_s=deadline_s)
    return found
