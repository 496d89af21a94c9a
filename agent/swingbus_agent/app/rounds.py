"""Collect what the samplers saw into numbered rounds on disk.

Decides what goes into which round and when inventories change; knows no devices. Invariants: a round lies on disk before anybody
hears of it; events are never dropped: while the disk refuses, they wait (bounded, newest kept, the count told).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace

import structlog

from swingbus.clock import Clock
from swingbus.faults import SwingbusError
from swingbus_agent.domain.readings import AgentEvent, BankSpec, Inventory, MeterRound, MeterSpec, Round
from swingbus_agent.domain.views import Notice
from swingbus_agent.ports.bank import BankReading
from swingbus_agent.ports.spool import Spool

_COALESCE_S = 0.08  # what is read on the same tick goes into the same round
_MOST_EVENTS = 1000
_log = structlog.get_logger()


class Rounds:
    """The present round under way, and the way to the spool."""

    def __init__(
        self, spool: Spool, *, clock: Clock, boot_id: str, inventory: Inventory, bank_names: Sequence[str]
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._boot_id = boot_id
        self.inventory = inventory  # grows as banks are found
        self._order = tuple(bank_names)
        self._specs: dict[str, BankSpec] = {}
        self._readings: dict[str, BankReading] = {}
        self._meters: dict[int, MeterRound] = {}
        self._host: tuple[float | None, ...] = ()
        self._events: deque[AgentEvent] = deque(maxlen=_MOST_EVENTS)
        self._has_news = asyncio.Event()
        self.stored = asyncio.Event()  # set at every stored round; whoever waits clears it
        self.inventory_changed = asyncio.Event()
        self.busy: Collection[int] = ()  # sequences on their way
        self.round_count = 0
        self.latest: dict[str, BankReading] = {}
        self.latest_host: tuple[float | None, ...] = ()
        self._latest_meters: dict[int, MeterRound] = {}

    def take_bank(self, reading: BankReading) -> None:
        """Put one bank's reading into the next round."""
        self._readings[reading.spec.bank] = reading
        self.latest[reading.spec.bank] = reading
        self._has_news.set()

    def take_meter(self, reading: MeterRound) -> None:
        """Put one meter's reading into the next round."""
        self._meters[reading.meter_index] = reading
        self._latest_meters[reading.meter_index] = reading
        self._has_news.set()

    def take_host(self, values: tuple[float | None, ...]) -> None:
        """Put the host's readings into the next round."""
        self._host = values
        self.latest_host = values
        self._has_news.set()

    def latest_meters(self) -> list[tuple[MeterSpec, MeterRound]]:
        """Return the newest reading of each meter."""
        return [(self.inventory.meters[index], meter) for index, meter in sorted(self._latest_meters.items())]

    def tell(self, kind: str, message: str, *, bank: str = "", device: str = "") -> None:
        """Put an event into the next round and the log."""
        self._events.append(
            AgentEvent(kind=kind, message=message, at_unix_s=self._clock.now().timestamp(), bank=bank, device=device)
        )
        _log.warning(kind, bank=bank, device=device, message=message)
        self._has_news.set()

    def tell_all(self, notices: Sequence[Notice], bank: str) -> None:
        """Put notices of one bank into the next round."""
        for notice in notices:
            self.tell(notice.kind, notice.message, bank=bank, device=notice.device)

    def set_unsupported(self, unsupported: tuple[str, ...]) -> None:
        """Say what this host cannot do."""
        if unsupported != self.inventory.unsupported:
            self.inventory = replace(self.inventory, unsupported=unsupported)
            self.inventory_changed.set()

    async def run(self) -> None:
        """Store rounds as they come, for ever."""
        await self._spool.announce(self.inventory)
        while True:
            await self._has_news.wait()
            await self._clock.sleep(_COALESCE_S)
            self._has_news.clear()
            try:
                await self._store()
            except SwingbusError as error:
                # The devices go on being sampled and controlled; only history is missing until the disk takes it again.
                _log.error("round_not_stored", reason=error.reason, message=str(error))
                await self._clock.sleep(1.0)
                self._has_news.set()

    async def _store(self) -> None:
        readings, meters, host, events = self._readings, self._meters, self._host, tuple(self._events)
        if not (readings or meters or host or events):
            return
        self._readings, self._meters, self._host = {}, {}, ()
        await self._update_inventory(readings)
        indexes = {bank.bank: index for index, bank in enumerate(self.inventory.banks)}
        round_ = Round(
            sample_unix_s=self._clock.now().timestamp(),
            sample_boottime_ns=self._clock.boottime_ns(),
            boot_id=self._boot_id,
            banks=tuple(
                replace(reading.round, bank_index=indexes[name])
                for name, reading in sorted(readings.items(), key=lambda item: indexes[item[0]])
            ),
            meters=tuple(meters[index] for index in sorted(meters)),
            host_values=host,
            events=events,
        )
        await self._spool.append(round_)
        for _ in events:
            self._events.popleft()
        self.round_count += 1
        self.stored.set()
        merged, dropped = await self._spool.relieve(round_.sample_unix_s, self.busy)
        if dropped:
            self.tell(
                "spool_dropped",
                f"{dropped} rounds of history were dropped for room or age; reach the controller, or raise spool.max_bytes",
            )
        elif merged:
            _log.info("spool_thinned", merged_count=merged)

    async def _update_inventory(self, readings: dict[str, BankReading]) -> None:
        """Announce banks whose layout is new, before a round that is laid out by it."""
        is_new = False
        for name, reading in readings.items():
            if self._specs.get(name) != reading.spec:
                self._specs[name] = reading.spec
                is_new = True
        if not is_new and not self.inventory_changed.is_set():
            return
        banks = tuple(self._specs[name] for name in self._order if name in self._specs)
        self.inventory = replace(self.inventory, banks=banks)
        await self._spool.announce(self.inventory)
        self.inventory_changed.set()
