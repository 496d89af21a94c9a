"""The real engine over a site of 1,000 banks in virtual time, with agents that obey at once and meters that tell the truth."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.frames import BatchFrame, MeterFrame
from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.power.budget_events import JournalTrust
from swingbus_controller.domain.power.limits import Limit
from swingbus_controller.domain.site_state import SiteState
from swingbus_controller.settings import load_configuration
from tests.benchmarks.sites import wide_site
from tests.fakes.memory_journal import JournalFile, MemoryJournal
from tests.fakes.site_clock import VirtualClock

DEVICES = 13
PER_FEEDER = 10
DRAW_W = 3050.0
MARKER_AGE_S = 4  # seconds from a control message to readings that can only have begun after it


class WideSite:
    """`count` banks of 13 ASICs, ten to a metered container, and the engine above them."""

    def __init__(self, count: int) -> None:
        self.names = [f"a{number:04d}" for number in range(count)]
        self.clock = VirtualClock()
        with tempfile.TemporaryDirectory(prefix="swingbus-bench-") as folder:
            site = load_configuration(wide_site(Path(folder), self.names, devices=DEVICES)).site
        self.state = SiteState(site)
        self.journal = MemoryJournal(JournalFile())
        self.engine = SiteEngine(
            state=self.state,
            journal=self.journal,
            clock=self.clock,
            instance="bench",
            boot_id="bench-controller",
            trust=JournalTrust.LOST,
            market=_no_market,
            plan_period_s=math.inf,  # the planner has a figure of its own
        )
        self.feeders = self.names[::PER_FEEDER]
        self._sequence = 0
        self._count = 0
        self._energy_j = dict.fromkeys(self.feeders, 1e9)
        self._running = dict.fromkeys(self.names, DEVICES)
        self._applied: dict[str, tuple[int, float]] = {}
        self._markers: list[int] = []

    def report_all(self) -> None:
        """Let every agent report what it was told last, as done."""
        self._sequence += 1
        for name in self.names:
            order = self.engine.order_for(name)
            bank = None if order is None else order.banks[0]
            mining = (
                DEVICES if bank is None else next((p.count for p in bank.points if p.mode is orders.Mode.MINING), 0)
            )
            self._running[name] = mining
            generation = 0 if bank is None else bank.generation
            if self._applied.get(name, (-1, 0.0))[0] != generation:
                self._applied[name] = (generation, self.clock.s)
            counted_w = mining * 3400.0 + (DEVICES - mining) * 15.0
            self.engine.take_report(
                orders.AgentReport(
                    agent=name,
                    epoch=self.state.ledger.epoch,
                    fence_instance="bench",
                    generation=0 if order is None else order.generation,
                    hash="",
                    marker=0,
                    boottime_s=self.clock.s,
                    boot_id=f"boot-{name}",
                    refusal="",
                    instance_uid=f"{name}-1",
                    sequence=self._sequence,
                    banks=(
                        orders.BankReport(
                            bank="asics",
                            epoch=0 if bank is None else self.state.ledger.epoch,
                            generation=generation,
                            grant_w=0.0 if bank is None else bank.grant_w,
                            allowed_w=DEVICES * 3400.0 if bank is None else bank.grant_w,
                            applied_generation=generation,
                            applied_boottime_s=self._applied[name][1],
                            has_in_flight=False,
                            held_count=DEVICES,
                            observed=(
                                orders.PointOrder(
                                    point="normal", mode=orders.Mode.MINING, power_w=3068.0, count=mining
                                ),
                                orders.PointOrder(
                                    point="asleep", mode=orders.Mode.STANDBY, power_w=0.0, count=DEVICES - mining
                                ),
                            ),
                            stragglers=(),
                            counted_power_w=counted_w,
                            safe_shares=(),
                            ready_workloads=(),
                            failed_workloads=(),
                            released_units=(),
                            reported_w=DEVICES * 3413.0 if bank is None else bank.grant_w,
                        ),
                    ),
                ),
                is_hello=False,
                now_s=self.clock.s,
            )

    def meter(self, feeder: str) -> BatchFrame:
        """Return the next reading of a container's meter, one second after the last."""
        self._count += 1
        first = self.names.index(feeder)
        power_w = sum(
            self._running[name] * DRAW_W + (DEVICES - self._running[name]) * 10.0
            for name in self.names[first : first + PER_FEEDER]
        ) + (self._count % 7)
        self._energy_j[feeder] += power_w
        return BatchFrame(
            agent=feeder,
            sequence=self._count,
            first_sequence=self._count,
            boot_id=f"boot-{feeder}",
            sample_unix_s=self.clock.now().timestamp(),
            sample_boottime_s=self.clock.s,
            banks=(),
            meters=(
                MeterFrame(
                    meter=f"m-{feeder}",
                    feeder=feeder,
                    measurement_count=None,
                    window_start_boottime_s=self.clock.s - 1.0,
                    window_end_boottime_s=self.clock.s,
                    marker=self._markers[-MARKER_AGE_S] if len(self._markers) >= MARKER_AGE_S else 0,
                    marker_epoch=self.state.ledger.epoch,
                    power_w=power_w,
                    energy_j=self._energy_j[feeder],
                    voltage_v=None,
                    current_a=None,
                    power_factor=None,
                    fault="",
                ),
            ),
            host_values=(),
            events=(),
            is_live=True,
        )

    def tick(self) -> float:
        """Let the engine decide once; return the CPU seconds."""
        began_s = time.process_time()
        self.engine.tick(self.clock.s, self.clock.now().timestamp())
        return time.process_time() - began_s

    def run(self, seconds: int) -> None:
        """Let virtual seconds pass: reports, meters, one decision each."""
        for _ in range(seconds):
            self.clock.s += 1.0
            self.report_all()
            self._send_markers()
            for feeder in self.feeders:
                self.engine.take_batch(self.meter(feeder), self.clock.s)
            self.tick()

    def _send_markers(self) -> None:
        """Send one control message to each meter's reader, as the link does every few seconds."""
        marker = max(self.state.ledger.marker[1], self._markers[-1] if self._markers else 0) + 1
        self._markers.append(marker)
        for feeder in self.feeders:
            self.engine.note_marker(feeder, marker, self.clock.s)

    def settled_count(self) -> int:
        """Return how many banks' newest grants are proven."""
        return sum(self.state.ledger.is_settled(name) for name in self.state.ledger.bank_names())

    def cut(self, limit_w: float) -> float:
        """Lower the head feeder's limit as a curtailment does and decide; return the CPU seconds from limit to orders."""
        limit = Limit(name="bench-cut", limit_w=limit_w, source="bench")
        began_s = time.process_time()
        self.engine.recorder.record(self.engine.limit_entry("grid", limit, author="bench"))
        self.engine.tick(self.clock.s, self.clock.now().timestamp())
        return time.process_time() - began_s


def _no_market(_: float) -> MarketView:
    raise AssertionError("nothing is planned here")
