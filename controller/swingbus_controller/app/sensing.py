"""Senses: live telemetry to what deciding needs: meter windows for the ledger, rows of devices for flips, blips, accusations.

Decides nothing about watts. Invariant: columns stay columns; a bank that the site file does not manage, a frame that does not fit its
inventory and a meter read by anybody but its declared reader are left out.
"""

from __future__ import annotations

from collections import deque

from swingbus_controller.app.naming import Accuser
from swingbus_controller.app.recording import Recorder
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.frames import AgentInventory, BankInventory, BatchFrame
from swingbus_controller.domain.fleet.observing import BlipWatch, WindowMaker, column
from swingbus_controller.domain.flips.flip_evidence import DeviceRows
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.power import reports
from swingbus_controller.domain.power.decisions import disturbance
from swingbus_controller.domain.power.uncontrolled import LoadWatch
from swingbus_controller.domain.site.curtailment import SeenWindow
from swingbus_controller.domain.site_state import SiteState

# Of a feeder with a curtailment its proof is made from these; of any other the newest few are enough to look at.
KEPT_WINDOWS, KEPT_OTHERWISE = 256, 16


class Senses:
    """The newest of what was sampled at one site."""

    def __init__(self, state: SiteState, recorder: Recorder, accuser: Accuser) -> None:
        self._state = state
        self._recorder = recorder
        self._accuser = accuser
        self._inventories: dict[tuple[str, str], BankInventory] = {}
        self._rows: dict[str, DeviceRows] = {}
        self._windows: dict[str, deque[SeenWindow]] = {}
        self._makers: dict[str, WindowMaker] = {}
        self._blips = BlipWatch()
        self._fresh_from: dict[str, tuple[str, float]] = {}  # by agent: boot, and the moment on its clock
        self._loads: dict[str, LoadWatch] = {}
        self.begin_term()

    def begin_term(self) -> None:
        """Start the histories of uncontrolled load anew: an epoch begins with every one of them at U_max."""
        tree = self._state.site.tree
        self._loads = {
            name: LoadWatch(max_w=tree.uncontrolled_max_w(name), step_w=tree.uncontrolled_step_w(name))
            for name, feeder in tree.feeders.items()
            if feeder.measures_uncontrolled
        }

    def rows(self, bank: str) -> DeviceRows | None:
        """Return a bank's newest sample, row by row."""
        return self._rows.get(bank)

    def windows(self, feeder: str) -> tuple[SeenWindow, ...]:
        """Return the newest plausible windows of a feeder's meter, oldest first."""
        return tuple(self._windows.get(feeder, ()))

    def doubt(self) -> None:
        """Forget every sample: we slept, and what comes in next was on its way meanwhile. `trust` ends it, agent by agent."""
        self._rows.clear()
        self._windows.clear()
        self._fresh_from = dict.fromkeys(self._state.models_of, ("", float("inf")))
        self._fresh_from |= {note.meter_agent: ("", float("inf")) for note in self._state.site.feeder_notes.values()}

    def trust(self, agent: str, boot_id: str, from_s: float) -> None:
        """Take an agent's samples again from a moment on its own clock."""
        self._fresh_from[agent] = (boot_id, from_s)

    def _is_fresh(self, batch: BatchFrame, read_s: float) -> bool:
        boot_id, from_s = self._fresh_from.get(batch.agent, ("", float("-inf")))
        return read_s >= from_s or (boot_id not in ("", batch.boot_id))

    def take_inventory(self, inventory: AgentInventory) -> None:
        """Remember what the columns of an agent's banks mean."""
        for bank in inventory.banks:
            self._inventories[(inventory.agent, bank.bank)] = bank

    def take_batch(self, batch: BatchFrame, now_s: float) -> bool:
        """Take a live round of samples in; return whether a meter closed a window. Backlog is history, not evidence: leave it out."""
        has_news = False
        for frame in batch.banks:
            name = f"{batch.agent}/{frame.bank}"
            inventory = self._inventories.get((batch.agent, frame.bank))
            if name not in self._state.models or inventory is None or len(frame.modes) != len(inventory.devices):
                continue
            devices = [d.device for d in inventory.devices]
            read_s = [ns / 1e9 for ns in frame.read_boottime_ns]
            if self._is_fresh(batch, min(read_s, default=0.0)):
                self._rows[name] = DeviceRows(
                    devices=devices,
                    units=[d.unit for d in inventory.devices],
                    modes=frame.modes,
                    read_s=read_s,
                )
            self._accuser.take_modes(name, devices, frame.modes, now_s)
            power = column(inventory.value_fields, "power_w")
            if power is not None:
                self._accuser.take_reported(name, frame.values[power :: len(inventory.value_fields)])
            index = column(inventory.counter_fields, "uptime_s")
            if index is not None:
                width = len(inventory.counter_fields)
                uptimes = [float(frame.counters[row * width + index]) for row in range(len(devices))]
                is_ordered = bool(self._state.open_flips(name))
                self._disturb(self._blips.uptimes(name, devices, uptimes, is_ordered=is_ordered), now_s)
        for meter in batch.meters:
            feeder = self._state.site.feeder_of_meter(meter.meter)
            if feeder is None or self._state.site.feeder_notes[feeder].meter_agent != batch.agent:
                continue
            self._disturb(self._blips.voltage(meter.meter, meter.voltage_v), now_s)
            window = self._makers.setdefault(feeder, WindowMaker(feeder, batch.agent)).take(meter, batch.boot_id)
            if window is not None and self._state.ledger.observe_window(window, now_s):
                self._watch_load(window, now_s)
                self._accuser.take_window(window, now_s)
                if self._is_fresh(batch, window.start_s):
                    spec = self._state.ledger.meters[feeder].meter
                    seen = self._windows.setdefault(feeder, deque(maxlen=KEPT_WINDOWS))
                    if len(seen) >= KEPT_OTHERWISE and feeder not in self._proven_feeders():
                        seen.popleft()
                    seen.append(
                        SeenWindow(
                            received_s=now_s,
                            start_boottime_s=window.start_s,
                            end_boottime_s=window.end_s,
                            power_w=window.mean_w,
                            upper_power_w=spec.upper_w(window.mean_w),
                        )
                    )
                has_news = True
        return has_news

    def _proven_feeders(self) -> set[str]:
        return {order.feeder for order in self._state.open_curtailments()} | {self._state.site.tree.root}

    def _watch_load(self, window: reports.MeterWindow, now_s: float) -> None:
        watch = self._loads.get(window.feeder)
        if watch is None:
            return
        ledger = self._state.ledger
        inside = ledger.tree.subtree(window.feeder)
        banks = [ledger.meters[group] for group in ledger.groups() if group in inside]
        load_w = watch.take(window, ledger.meters[window.feeder], banks, now_s, ledger.settings)
        ledger.observe_uncontrolled(window.feeder, load_w, now_s)

    def _disturb(self, why: str | None, now_s: float) -> None:
        if why is None or self._state.authority is not Authority.CONTROL:
            return
        # One record a second is enough to keep the end moving.
        if self._state.ledger.disturbed_until_s - now_s > self._state.site.protocol.disturbance_s - 1.0:
            return
        self._recorder.record(self._recorder.budget(disturbance(self._state.ledger, why, now_s)))


def ledger_report(report: orders.AgentReport, bank: orders.BankReport) -> reports.BankReport:
    """Return one bank of an agent's report as the ledger takes it."""
    applied = None
    if bank.applied_generation > 0:
        applied = reports.Applied(
            epoch=bank.epoch,
            generation=bank.applied_generation,
            at_s=bank.applied_boottime_s,
            counted_w=bank.counted_power_w,
            unheld_count=bank.unheld_count,
        )
    has_grant = bank.generation > 0
    return reports.BankReport(
        bank=f"{report.agent}/{bank.bank}",
        agent=report.agent,
        instance=report.instance_uid,
        sequence=report.sequence,
        boot_id=report.boot_id,
        fence_epoch=report.epoch,
        fence_instance=report.fence_instance,
        grant_epoch=bank.epoch if has_grant else 0,
        grant_generation=bank.generation,
        grant_w=bank.grant_w if has_grant else None,
        reported_w=bank.reported_w,
        is_lapsed=bank.is_lapsed,
        is_lost=bank.is_lost,
        applied=applied,
    )
