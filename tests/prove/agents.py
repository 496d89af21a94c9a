"""Agents of the model: the real governor over a plain executor, with deaths, torn disks and reboots."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swingbus_agent.domain.governor import GovernedBank, Governor, GovernorReport, GovernorSettings
from swingbus_agent.domain.grant import Desired, DurableState, MarkerLog
from swingbus_controller.domain.power.reports import Applied, BankReport, MeterWindow
from tests.prove.site import CEILING_W, HOST_W, READERS, REST_W, STEP_S, WRITE_MAX_S, Bank, Meter, Write

if TYPE_CHECKING:
    from tests.prove.world import World

SETTINGS = GovernorSettings(ttl_max_s=20.0, quarantine_s=WRITE_MAX_S + 2 * STEP_S, refresh_s=6.0)
METERS_OF = {agent: meter for meter, agent in READERS.items()}


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent sends: its ticket, its bank, perhaps a window of the meter it reads."""

    agent: str
    ticket: str
    bank: BankReport
    window: MeterWindow | None


@dataclass(slots=True)
class OpenWrite:
    """A write whose answer the agent still waits for; `answer_s` None-like times out."""

    device: int
    answer_s: float
    times_out: bool


class AgentModel:
    """One agent with one bank; its machines outlive it."""

    def __init__(self, world: World, bank: Bank, safe_w: float, governor: type[Governor]) -> None:
        self.world = world
        self.bank = bank
        self.safe_w = safe_w
        self.governor_class = governor
        self.rng: random.Random = world.rng
        self.disk: DurableState | None = None
        self.governor: Governor | None = None
        self.boot = 0
        self.run = 0
        self.clock_zero_s = -self.rng.uniform(10.0, 1000.0)
        self.drift = self.rng.uniform(0.9995, 1.0005)
        self.inbox: list[Desired] = []
        self.open: list[OpenWrite] = []
        self.markers = MarkerLog()
        self.write_s = self.rng.choice((STEP_S, STEP_S, 3 * STEP_S))  # how long its firmware takes
        self.sequence = 0
        self.down_until_s = 0.0
        self.names = tuple(str(i) for i in range(len(bank.set_w)))
        self.start(0.0)

    @property
    def name(self) -> str:
        """The agent is called as its only bank."""
        return self.bank.name

    def clock_s(self, now_s: float) -> float:
        """Return this host's CLOCK_BOOTTIME."""
        return (now_s - self.clock_zero_s) * self.drift

    def start(self, now_s: float) -> None:
        """Start a new run of the agent from what is on disk."""
        self.run += 1
        self.sequence = 0
        self.inbox.clear()
        self.open.clear()
        self.markers = MarkerLog()
        shape = GovernedBank(name=self.name, devices=self.names, device_ceiling_w=CEILING_W, safe_share_w=self.safe_w)
        self.governor = self.governor_class(
            settings=SETTINGS,
            banks=(shape,),
            durable=self.disk,
            boot_id=f"{self.name}-{self.boot}",
            instance=f"{self.name}/{self.run}",
            now_s=self.clock_s(now_s),
        )

    def die(self, now_s: float, down_s: float) -> None:
        """Stop; the disk may be torn, the host may reboot, the machines hash on."""
        self.governor = None
        self.down_until_s = now_s + down_s
        self.open.clear()
        self.inbox.clear()
        if self.rng.random() < 0.15:
            self.disk = None
        if self.rng.random() < 0.3:
            self.boot += 1
            self.clock_zero_s = now_s

    def potential_w(self) -> float:
        """Return what the bank can reach without any message: running devices, or a living or stored grant."""
        reach_w = self.bank.full_w()
        grant = None if self.disk is None else self.disk.grants.get(self.name)
        if self.governor is None:
            return reach_w if grant is None else max(reach_w, grant.grant_w)
        allowance = self.governor.allowance(self.name, self.clock_s(self.world.now_s))
        return max(reach_w, allowance.watts) if allowance.may_raise else reach_w

    def step(self, now_s: float) -> None:
        """Read messages, obey the governor, report."""
        governor = self.governor
        if governor is None:
            if now_s >= self.down_until_s:
                self.start(now_s)
            return
        clock_s = self.clock_s(now_s)
        self._close_writes(governor, clock_s)
        for desired in self.inbox:
            outcome = governor.receive(desired, clock_s)
            if desired.marker is not None:
                self.markers.note(desired.marker, clock_s)
            if outcome.persist is not None:
                if self.rng.random() < 0.004:
                    if self.rng.random() < 0.5:
                        self.disk = outcome.persist
                    self.die(now_s, 6.0)
                    return
                self.disk = outcome.persist
                governor.confirm(outcome.persist, clock_s)
        self.inbox.clear()
        lazy = governor.due_refresh(clock_s)
        if lazy is not None:
            self.disk = lazy
            governor.confirm(lazy, clock_s)
        self._sweep(governor, clock_s)
        self._obey(governor, clock_s, now_s)
        self._report(governor, clock_s, now_s)

    def _close_writes(self, governor: Governor, clock_s: float) -> None:
        still: list[OpenWrite] = []
        for write in self.open:
            if write.answer_s > clock_s:
                still.append(write)
            elif write.times_out:
                governor.time_out_write(self.name, self.names[write.device], clock_s)
            else:
                governor.finish_write(self.name, self.names[write.device], clock_s)
        self.open = still

    def _sweep(self, governor: Governor, clock_s: float) -> None:
        unread = self.rng.randrange(len(self.names)) if self.rng.random() < 0.02 else -1
        counted: dict[str, float | None] = {}
        for index, name in enumerate(self.names):
            # A liar reads back as it was told; a device that rose by itself is honest about it.
            told_w = self.bank.set_w if index in self.bank.liars else self.bank.true_set_w
            counted[name] = None if index == unread else told_w[index]
        governor.observe(self.name, counted_w=counted, base_w=HOST_W, begun_s=clock_s, now_s=clock_s)

    def _obey(self, governor: Governor, clock_s: float, now_s: float) -> None:
        """Share the allowance among the devices that can be set; lower at once, raise when nothing is left to lower."""
        total_w = governor.counted_w(self.name)
        if total_w is None:
            return
        allowance = governor.allowance(self.name, clock_s)
        if abs(total_w - allowance.watts) < 0.5 or (total_w < allowance.watts and not allowance.may_raise):
            return
        busy = {write.device for write in self.open}
        free = [i for i in range(len(self.names)) if i not in busy]
        if not free:
            return
        is_over = total_w > allowance.watts
        # A device that is not held counts at its ceiling whatever is written to it: it cannot make room.
        counts_w = governor.device_counts_w(self.name)
        told_w = self.bank.true_set_w
        settled = [i for i in free if counts_w[self.names[i]] <= told_w[i] + 1e-9]
        others_w = HOST_W + sum(counts_w[n] for i, n in enumerate(self.names) if i not in settled)
        share_w = (allowance.watts - others_w) / max(1, len(settled))
        share_w = min(CEILING_W, max(REST_W, share_w))
        for index in free:
            if is_over and told_w[index] > share_w:
                self._write(governor, index, share_w, clock_s, now_s)
        if not is_over and allowance.may_raise:
            for index in settled:
                if told_w[index] < share_w - 1e-9:
                    self._write(governor, index, share_w, clock_s, now_s)

    def _write(self, governor: Governor, device: int, watts: float, clock_s: float, now_s: float) -> None:
        raises = watts > self.bank.true_set_w[device]
        start = governor.start_write(
            self.name, self.names[device], raises=raises, now_s=clock_s, counted_w=watts if raises else None
        )
        if not start.may_write:
            return
        if start.persist is not None:
            self.disk = start.persist
            governor.confirm(start.persist, clock_s)
        chance = self.rng.random()
        times_out = chance < 0.04
        land_s: float | None = now_s + self.write_s
        if times_out:
            # Lost, or late by anything up to the longest known delay.
            land_s = None if chance < 0.015 else now_s + self.rng.uniform(self.write_s, WRITE_MAX_S)
        self.world.writes.append(Write(bank=self.name, device=device, watts=watts, land_s=land_s))
        self.open.append(OpenWrite(device=device, answer_s=clock_s + self.write_s * 0.99, times_out=times_out))

    def _report(self, governor: Governor, clock_s: float, now_s: float) -> None:
        ticket = governor.issue_ticket(clock_s)
        said = governor.report(self.name, clock_s)
        self.sequence += 1
        window = None
        meter_name = METERS_OF.get(self.name)
        if meter_name is not None:
            window = self._window(meter_name, self.world.meters[meter_name], clock_s)
        report = Report(self.name, ticket, _bank_report(said, self.name, self.sequence), window)
        self.world.network.send(now_s, "controller", report, self.name)

    def _window(self, name: str, meter: Meter, clock_s: float) -> MeterWindow | None:
        if meter.reading is None:
            return None
        mean_w, start_j, end_j = meter.reading
        # What was measured in the step that just ended, stamped with this host's clock.
        start_s = clock_s - STEP_S * self.drift
        self.world.truths[name, f"{self.name}-{self.boot}", round(start_s, 6)] = meter.past[-1]
        return MeterWindow(
            feeder=name,
            reader=self.name,
            boot_id=f"{self.name}-{self.boot}",
            start_s=start_s,
            end_s=clock_s,
            mean_w=mean_w,
            energy_start_j=start_j,
            energy_end_j=end_j,
            marker=self.markers.before(start_s - meter.lag_steps * STEP_S - 0.01),
        )


def _bank_report(said: GovernorReport, agent: str, sequence: int) -> BankReport:
    applied = said.applied
    return BankReport(
        bank=said.bank,
        agent=agent,
        instance=said.instance,
        sequence=sequence,
        boot_id=said.boot_id,
        fence_epoch=said.fence_epoch,
        fence_instance=said.fence_instance,
        grant_epoch=said.grant_epoch,
        grant_generation=said.grant_generation,
        grant_w=said.grant_w,
        reported_w=said.reported_w,
        is_lapsed=said.is_lapsed,
        is_lost=said.is_lost,
        applied=None
        if applied is None
        else Applied(
            epoch=applied.epoch,
            generation=applied.generation,
            at_s=applied.at_s,
            counted_w=applied.counted_w,
            unheld_count=applied.unheld_count,
        ),
    )
