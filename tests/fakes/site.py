"""A whole site in virtual time: machines, meters and agents that obey like real ones, a judge beside them, the real engine above.

Nothing here asks the controller what is true: watts come from the machines, limits from what was ordered, grants from the journal.
One step is one second. Agents fence, store, apply with delays, renew, lapse and lose their memory; machines can ignore a write, wake
by themselves or draw more than they say. The judge looks at every step: watts over a limit, orders that are not journaled, watts above
claims.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from swingbus.faults import WrongState
from swingbus_controller.app.commands import Commands, Order
from swingbus_controller.app.engine import SiteEngine
from swingbus_controller.deciding import Deciding, build_deciding
from swingbus_controller.domain.cluster.state import ClusterState
from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.frames import (
    AgentInventory,
    BankFrame,
    BankInventory,
    BatchFrame,
    DeviceSpec,
    MeterFrame,
)
from swingbus_controller.domain.fleet.orders import Mode
from swingbus_controller.domain.flips.flip import Flip, Phase
from swingbus_controller.domain.planning.market import MarketView, Quote
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.site.curtailment import Curtailment
from swingbus_controller.domain.site.sitefile import SiteBank, SiteFile
from swingbus_controller.domain.site.sitefile_parser import parse_site
from swingbus_controller.domain.site.strict_table import Faults, StrictTable
from swingbus_controller.domain.site_state import SiteState
from swingbus_controller.ports.journal import Journal, JournaledEntry, JournalEntry

UNIX_ZERO_S = 1_795_435_200.0
BOOTTIME_ZERO_S = 10_000.0
HEAD = "head"
HOUSE_W = 1500.0
ASIC_WRITE_S, BOOT_S, GPU_WRITE_S, START_S, STOP_S = 2.0, 6.0, 1.0, 5.0, 2.0
ATTEMPT_S, ATTEMPTS = 4.0, 2
# After a controller or a link is back: the agent reports, is adopted and regranted, is cut, sheds.
RECOVERY_S = 20.0

SITE = """
[site]
name = "north"
authority = "{authority}"

[protocol]
ttl_s = {{value = 20.0, why = "tests"}}
disturbance_s = {{value = 15.0, why = "tests"}}
meter_error_ratio = {{value = 0.003, why = "tests", commissioned = true}}
meter_dead_s = {{value = 6.0, why = "tests"}}
shed_deadline_s = {{value = 20.0, why = "tests"}}
{protocol}
[[feeder]]
name = "grid"
kind = "grid"
u_max_w = 2000.0
[[feeder.limit]]
name = "contract"
limit_w = {limit_w}
window_s = 1.0
source = "contract"
[feeder.meter]
id = "m-grid"
agent = "head"
error_ratio = 0.003
energy_count_j = 1.0

{feeders}
[[class]]
name = "s19"
kind = "asic"
commissioned = true
ceiling_w = 3250.0
floor_w = 15.0
boot_w = 2000.0
asic_target_factor = 1.05
losses_ratio = 0.01
cooling_w = 400.0
safe_share_w = 1500.0
settle_s = 10.0
point = [
  {{name = "mine", mode = "mining", power_w = 3250.0, hashrate_ths = 95.0}},
  {{name = "standby", mode = "standby", power_w = 0.0, draw_w = 15.0}},
]

[[class]]
name = "s21"
kind = "asic"
commissioned = true
ceiling_w = 3500.0
floor_w = 15.0
boot_w = 2000.0
asic_target_factor = 1.05
losses_ratio = 0.01
cooling_w = 400.0
safe_share_w = 1500.0
settle_s = 10.0
point = [
  {{name = "mine", mode = "mining", power_w = 3500.0, hashrate_ths = 200.0}},
  {{name = "standby", mode = "standby", power_w = 0.0, draw_w = 15.0}},
]

[[class]]
name = "h100"
kind = "gpu"
commissioned = true
ceiling_w = 700.0
floor_w = 200.0
gpu_limit_factor = 1.03
host_w = 1200.0
cooling_ratio = 0.05
losses_ratio = 0.01
safe_share_w = 5200.0
settle_s = 10.0
unit_size = 8
inference_class = "h100"
mining_class = "h100"
sleeps_by_software_only = false
point = [
  {{name = "mine", mode = "mining", power_w = 500.0, draw_w = 480.0, throughput_ratio = 1.0}},
  {{name = "serve", mode = "inference", power_w = 700.0, draw_w = 620.0, throughput_ratio = 1.0}},
  {{name = "serve-capped", mode = "inference", power_w = 525.0, draw_w = 515.0, throughput_ratio = 0.9}},
  {{name = "standby", mode = "standby", power_w = 200.0, draw_w = 80.0}},
]
[class.workloads]
mining = "miner"
inference = "llm"

{banks}
{reservation}
[policy]
gpu_mining_allowed = true
asic_dwell_s = 10.0
gpu_dwell_s = 10.0
cap_dwell_s = 10.0
power_price_variance = 4.0
inference_margin_variance = 0.001
[policy.times]
planned_s = 60.0
draining_s = 10.0
released_s = 20.0
settling_s = 60.0
starting_s = 30.0
verifying_s = 60.0
"""
FEEDER = """[[feeder]]
name = "{name}"
parent = "grid"
kind = "{kind}"
losses_ratio = {losses_ratio}
[feeder.meter]
id = "m-{name}"
agent = "{agent}"
error_ratio = 0.003
energy_count_j = 1.0
"""
BANK = """[[bank]]
agent = "{agent}"
bank = "{bank}"
feeder = "{feeder}"
class = "{klass}"
device_count = {count}
"""
RESERVATION = """[[reservation]]
name = "acme"
inference_class = "h100"
gpu_count = 8
price_usd_per_gpu_h = "3.10"
start_time = 2026-01-01T00:00:00Z
end_time = 2030-01-01T00:00:00Z
"""


def make_site(
    *,
    limit_w: float = 145_000.0,
    authority: str = "control",
    asics: int = 20,
    gpus: int = 16,
    is_reserved: bool = False,
    protocol: str = "",
    meter_readers: dict[str, str] | None = None,
) -> SiteFile:
    """Parse a site of two ASIC containers (the worse one first) and two GPU hosts with units of 8."""
    readers = {"c1": "edge1", "c2": "edge2", "g1": "gpu1", "g2": "gpu2", **(meter_readers or {})}
    kinds = {"c1": "container", "c2": "container", "g1": "pdu", "g2": "pdu"}
    feeders = [
        FEEDER.format(name=n, kind=k, losses_ratio=0.01 if k == "container" else 0.0, agent=readers[n])
        for n, k in kinds.items()
    ]
    banks = [
        BANK.format(agent="edge1", bank="asics", feeder="c1", klass="s19", count=asics),
        BANK.format(agent="edge2", bank="asics", feeder="c2", klass="s21", count=asics),
        BANK.format(agent="gpu1", bank="gpus", feeder="g1", klass="h100", count=gpus),
        BANK.format(agent="gpu2", bank="gpus", feeder="g2", klass="h100", count=gpus),
    ]
    text = SITE.format(
        limit_w=limit_w,
        authority=authority,
        protocol=protocol,
        feeders="\n".join(feeders),
        banks="\n".join(banks),
        reservation=RESERVATION if is_reserved else "",
    )
    faults = Faults()
    table = StrictTable(tomllib.loads(text), faults)
    site = parse_site(table, faults)
    table.finish()
    faults.raise_if_faulty("the test's site")
    assert site is not None
    return site


class VirtualClock:
    """Time that moves when it is told to; the wall may be set apart from it."""

    def __init__(self) -> None:
        self.s = BOOTTIME_ZERO_S
        self.wall_offset_s = UNIX_ZERO_S - BOOTTIME_ZERO_S

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.s + self.wall_offset_s, UTC)

    def boottime_s(self) -> float:
        return self.s

    def boottime_ns(self) -> int:
        return round(self.s * 1e9)

    def monotonic_s(self) -> float:
        return self.s

    async def sleep(self, span_s: float) -> None:
        raise AssertionError("nothing sleeps in virtual time")


class JournalFile:
    """What is on the disk of a memory journal: shared by all controllers that ever open it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str]] = []
        self.epoch = 0
        self.instance = ""

    def copy(self, rows: int | None = None) -> JournalFile:
        """Return an old copy: only the first rows, and the epoch that they know."""
        old = JournalFile()
        old.rows = self.rows[:rows]
        old.epoch = max((epoch for epoch, _ in old.rows), default=0)
        return old


class MemoryJournal:
    """A journal with `SqliteJournal`'s contract and no disk: JSON in, JSON out, fenced by epoch."""

    def __init__(self, file: JournalFile) -> None:
        self.file = file
        self.was_created = not file.rows
        self._epoch: int | None = None
        self.crash_after: int | None = None
        self.crash_when: Callable[[JournalEntry], bool] | None = None

    def claim_epoch(self, instance: str, at_least: int) -> int:
        self.file.epoch = max(self.file.epoch, at_least) + 1
        self.file.instance = instance
        self._epoch = self.file.epoch
        return self.file.epoch

    def append(self, entries: Sequence[JournalEntry]) -> int:
        if self._epoch is None:
            raise WrongState("no epoch", reason="NO_EPOCH")
        if not entries:
            return len(self.file.rows)
        if self._epoch != self.file.epoch:
            raise WrongState("a newer controller took over", reason="FENCED")
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise Crashed
        for entry in entries:
            self.file.rows.append((self._epoch, json.dumps(_row(entry), allow_nan=False)))
        if self.crash_when is not None and any(self.crash_when(entry) for entry in entries):
            raise Crashed
        return len(self.file.rows)

    def read(self, after_revision: int = 0, limit: int | None = None) -> Iterator[JournaledEntry]:
        end = None if limit is None else after_revision + limit
        for number, (epoch, text) in enumerate(self.file.rows[after_revision:end], start=after_revision + 1):
            yield JournaledEntry(revision=number, epoch=epoch, entry=JournalEntry(**json.loads(text)))

    def newest_revision(self) -> int:
        return len(self.file.rows)

    async def wait_newer(self, after_revision: int) -> int:
        raise AssertionError("nobody watches in virtual time")


class Crashed(Exception):
    """The controller was killed while it wrote."""


def _row(entry: JournalEntry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "subject": entry.subject,
        "author": entry.author,
        "reason": entry.reason,
        "message": entry.message,
        "at_unix_s": entry.at_unix_s,
        "facts": dict(entry.facts),
        "payload": entry.payload,
    }


@dataclass
class Device:
    """One machine. `enforced_w` is the ASIC's target or the GPU's limit; it stays while nobody changes it."""

    name: str
    unit: int
    is_gpu: bool
    rated_w: float
    floor_w: float
    mode: Mode = Mode.MINING
    enforced_w: float = 0.0
    boot_until_s: float = -1.0
    restarted_s: float = 0.0
    due_s: float | None = None
    next_mode: Mode = Mode.STANDBY
    next_w: float = 0.0
    attempts: int = 0
    attempted_s: float = -1e9
    ignores_sleep: bool = False
    woke: bool = False
    extra_w: float = 0.0
    is_hung: bool = False
    ignores_limit: bool = False

    def land(self, now_s: float) -> None:
        """Let a write that is due take hold."""
        if self.due_s is None or now_s < self.due_s:
            return
        self.due_s = None
        if self.is_hung or (self.ignores_sleep and self.next_mode is Mode.STANDBY and not self.is_gpu):
            return
        if self.is_gpu:
            if not self.ignores_limit:
                self.enforced_w = self.next_w
            return
        if self.mode is Mode.STANDBY and self.next_mode is Mode.MINING:
            self.boot_until_s = now_s + BOOT_S
        self.mode, self.enforced_w = self.next_mode, self.next_w

    def write(self, mode: Mode, watts: float, now_s: float) -> None:
        """Send a write; nothing else is sent before it has landed."""
        if self.due_s is None and now_s - self.attempted_s >= ATTEMPT_S:
            self.due_s = now_s + (GPU_WRITE_S if self.is_gpu else ASIC_WRITE_S)
            self.next_mode, self.next_w = mode, watts
            self.attempts += 1
            self.attempted_s = now_s


@dataclass
class Unit:
    """What runs on one unit of GPUs."""

    number: int
    workload: str = ""
    phase: str = "idle"  # idle, starting, ready, stopping, failed
    since_s: float = -1e9
    reason: str = ""


@dataclass
class Lease:
    """A durable grant."""

    epoch: int
    generation: int
    watts: float


@dataclass
class Bank:
    """One bank's machines and what its agent keeps of it."""

    site: SiteBank
    name: str
    devices: list[Device]
    units: list[Unit]
    counting: orders.BankCounting | None = None
    order: orders.BankOrder | None = None
    lease: Lease | None = None
    lease_until_s: float = -1.0
    is_lost: bool = True
    fallen_w: float | None = None
    applied_s: float | None = None
    broken: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    fitted_w: dict[int, float] = field(
        default_factory=dict
    )  # limit by unit: the order's, or less where the grant is less

    @property
    def is_gpu(self) -> bool:
        return bool(self.units)

    def device_w(self, device: Device, now_s: float) -> float:
        """Return what a machine truly draws."""
        if not self.is_gpu:
            if device.mode is not Mode.MINING:
                return device.floor_w
            if now_s < device.boot_until_s:
                return 1900.0
            return device.enforced_w * 1.02 + device.extra_w
        unit = self.units[device.unit]
        if unit.phase in ("ready", "starting", "stopping"):
            return min(device.enforced_w, 0.97 * device.enforced_w) + device.extra_w
        return min(80.0, device.enforced_w)

    def reported_w(self, device: Device, now_s: float) -> float:
        """Return what a machine says it draws: nothing of what it hides."""
        return self.device_w(device, now_s) - device.extra_w

    def true_w(self, now_s: float) -> float:
        """Return what the bank truly draws at its feeder."""
        spec = self.site.spec
        devices_w = sum(self.device_w(d, now_s) for d in self.devices)
        return (devices_w * (1.0 + 0.9 * spec.cooling_ratio) + 0.9 * (spec.host_w + spec.cooling_w)) * (
            1.0 + spec.losses_ratio
        )

    def counted_device_w(self, mode: Mode, enforced_w: float) -> float:
        """Return what one machine counts at."""
        count = self.counting
        assert count is not None
        if self.is_gpu:
            return enforced_w * count.gpu_limit_ratio
        if mode is Mode.STANDBY:
            return count.rest_w
        return max(count.asic_boot_w, enforced_w * count.asic_target_ratio)

    def counted_w(self) -> float:
        """Return what the bank counts at as read back, pending raises included."""
        count = self.counting
        assert count is not None
        devices_w = 0.0
        for device in self.devices:
            watts = self.counted_device_w(device.mode, device.enforced_w)
            if device.due_s is not None:
                watts = max(watts, self.counted_device_w(device.next_mode, device.next_w))
            devices_w += count.device_ceiling_w if device.is_hung else watts
        return (devices_w * (1.0 + count.cooling_ratio) + count.fixed_w) * (1.0 + count.losses_ratio)


class Agent:
    """One host's agent: its banks, its meters, its memory."""

    def __init__(self, name: str, banks: Sequence[Bank], clock: VirtualClock) -> None:
        self.name = name
        self.banks = list(banks)
        self.clock = clock
        self.is_alive = True
        self.is_linked = True
        self.run_count = 0
        self.boot_id = f"boot-{name}"
        self.fence: tuple[int, str] = (0, "")
        self.order: orders.AgentOrder | None = None
        self.markers: list[tuple[float, int, int]] = []
        self.said_hello = False
        self.sequence = 0
        self.batch = 0
        self.refusal = ""
        self.lost_s = -1e18
        self.restart()

    def restart(self, *, loses_memory: bool = False) -> None:
        """Start the program anew; machines never notice."""
        self.run_count += 1
        self.instance = f"{self.name}-run{self.run_count}"
        self.is_alive = True
        self.said_hello = False
        self.sequence = 0
        self.markers = []
        if loses_memory:
            self.fence, self.order = (0, ""), None
        for bank in self.banks:
            bank.applied_s = None
            bank.counting = bank.counting if not loses_memory else None
            if loses_memory:
                bank.lease, bank.order, bank.is_lost, bank.fallen_w = None, None, True, None

    # Messages.

    def take_adopt(self, adopt: orders.AdoptOrder) -> None:
        if adopt.epoch < self.fence[0] or (adopt.epoch == self.fence[0] and adopt.controller_instance != self.fence[1]):
            self.refusal = "old epoch"
            return
        self.fence = (adopt.epoch, adopt.controller_instance)
        for bank in self.banks:
            bank.counting = next((c for c in adopt.counting if c.bank == bank.site.bank), None)

    def take_order(self, order: orders.AgentOrder, asked_s: float) -> None:
        if (order.epoch, order.controller_instance) != self.fence:
            return
        held = self.order
        if held is not None and held.epoch == order.epoch and order.generation < held.generation:
            return
        self.order = order
        for bank_order in order.banks:
            bank = next(b for b in self.banks if b.site.bank == bank_order.bank)
            key = (order.epoch, bank_order.generation)
            have = (0, 0) if bank.lease is None else (bank.lease.epoch, bank.lease.generation)
            if key < have:
                continue
            if key == have:
                assert bank.lease is not None and bank.lease.watts == bank_order.grant_w, "a grant changed its watts"
                if not self.is_lapsed(bank):
                    bank.lease_until_s = max(bank.lease_until_s, asked_s + order.ttl_s)
            else:
                if bank.is_lost and bank_order.for_instance != self.instance:
                    continue
                if asked_s + order.ttl_s <= self.clock.s:
                    continue
                bank.lease = Lease(*key, bank_order.grant_w)
                bank.lease_until_s = asked_s + order.ttl_s
                bank.is_lost, bank.fallen_w, bank.applied_s = False, None, None
            if bank.order is None or bank.order.points != bank_order.points:
                bank.applied_s = None
            bank.order = bank_order
            bank_points = sum(p.count for p in bank_order.points)
            assert bank_points == len(bank.devices), f"{bank.name}: {bank_points} devices ordered"

    def renewed(self, reply: orders.RenewalReply) -> None:
        if reply.epoch != self.fence[0]:
            return
        for bank in self.banks:
            if bank.lease is not None and bank.lease.epoch == reply.epoch and not self.is_lapsed(bank):
                bank.lease_until_s = max(bank.lease_until_s, reply.sent_boottime_ns / 1e9 + reply.ttl_s)

    # Watts.

    def is_lapsed(self, bank: Bank) -> bool:
        return bank.lease is None or bank.fallen_w is not None or self.clock.s >= bank.lease_until_s

    def allowed_w(self, bank: Bank) -> float:
        if not self.is_lapsed(bank) and bank.lease is not None:
            return bank.lease.watts
        if bank.lease is None:
            watts = float("inf") if bank.counting is None else bank.counted_w()
            if bank.order is not None:
                watts = min(watts, bank.order.safe_shares[0].power_w)
        else:
            share_w = bank.order.safe_shares[0].power_w if bank.order is not None else bank.lease.watts
            watts = min(bank.lease.watts, share_w)
        bank.fallen_w = watts if bank.fallen_w is None else min(bank.fallen_w, watts)
        return bank.fallen_w

    def act(self) -> None:
        """Carry orders out as far as the allowance lets it."""
        for bank in self.banks:
            if bank.counting is None or bank.order is None:
                continue
            allowed_w = self.allowed_w(bank)
            may_raise = not self.is_lapsed(bank)
            if bank.is_gpu:
                self._act_gpu(bank, allowed_w, may_raise)
            else:
                self._act_asic(bank, allowed_w, may_raise)
            self._note_applied(bank)

    def _is_stuck(self, device: Device) -> bool:
        return device.is_hung or device.attempts > ATTEMPTS

    def _act_asic(self, bank: Bank, allowed_w: float, may_raise: bool) -> None:
        order, now_s = bank.order, self.clock.s
        assert order is not None
        mining = next((p for p in order.points if p.mode is Mode.MINING), None)
        wanted = 0 if mining is None or order.locked_out else mining.count
        stuck = [d for d in bank.devices if self._is_stuck(d) and d.mode is Mode.MINING]
        free = [d for d in bank.devices if d not in stuck]
        free.sort(key=lambda d: (d.mode is not Mode.MINING, d.name))
        keep = free[: max(0, wanted - len(stuck))]
        if not may_raise:
            keep = [d for d in keep if d.mode is Mode.MINING]
        resting = [d for d in free if d not in keep]
        # Fit: the last ones rest where the grant has no room for all.
        per_w = bank.counted_device_w(Mode.MINING, bank.devices[0].rated_w)
        count = bank.counting
        assert count is not None
        base = (len(bank.devices) * count.rest_w * (1.0 + count.cooling_ratio) + count.fixed_w) * (
            1.0 + count.losses_ratio
        )
        each = (per_w - count.rest_w) * (1.0 + count.cooling_ratio) * (1.0 + count.losses_ratio)
        room = max(0, int((allowed_w - base) / each + 1e-6) - len(stuck))
        resting += keep[room:]
        keep = keep[:room]
        for device in resting:
            if device.mode is Mode.MINING or (device.due_s is not None and device.next_mode is Mode.MINING):
                device.write(Mode.STANDBY, 0.0, now_s)
            elif device.due_s is None:
                device.attempts, device.woke = 0, False
        for device in keep:
            if device.mode is Mode.MINING:
                if device.due_s is None:
                    device.attempts = 0
                continue
            if device.due_s is None and may_raise and bank.counted_w() + each <= allowed_w + 1e-6:
                device.write(Mode.MINING, device.rated_w, now_s)

    def _act_gpu(self, bank: Bank, allowed_w: float, may_raise: bool) -> None:
        order, now_s = bank.order, self.clock.s
        assert order is not None and bank.counting is not None
        factor = (1.0 + bank.counting.cooling_ratio) * (1.0 + bank.counting.losses_ratio)
        targets: dict[int, orders.PointOrder] = {u: p for p in order.points for u in p.units}
        assert set(targets) == {u.number for u in bank.units}, f"{bank.name}: units {sorted(targets)} ordered"
        floor_w = bank.devices[0].floor_w
        limits = {u: p.power_w for u, p in targets.items()}
        wanted_w = sum(len(self._gpus(bank, u)) * w for u, w in limits.items()) * bank.counting.gpu_limit_ratio
        base_w = bank.counting.fixed_w * (1.0 + bank.counting.losses_ratio)
        if base_w + wanted_w * factor > allowed_w + 1e-6:
            spare = (allowed_w - base_w) / factor / bank.counting.gpu_limit_ratio - floor_w * len(bank.devices)
            total = sum((w - floor_w) * len(self._gpus(bank, u)) for u, w in limits.items()) or 1.0
            scale = min(1.0, max(0.0, spare / total))
            limits = {u: floor_w + (w - floor_w) * scale for u, w in limits.items()}
        bank.fitted_w = limits
        for unit in bank.units:
            point = targets[unit.number]
            gpus = self._gpus(bank, unit.number)
            limit_w = limits[unit.number]
            runs_other = unit.phase in ("starting", "ready") and unit.workload != point.workload
            for gpu in gpus:
                if gpu.due_s is not None:
                    continue
                if abs(gpu.enforced_w - limit_w) < 0.5:
                    gpu.attempts = 0
                    continue
                if limit_w < gpu.enforced_w:
                    gpu.attempted_s = -1e9
                    gpu.write(Mode.STANDBY, limit_w, now_s)
                elif may_raise and not runs_other and unit.phase != "stopping":
                    more_w = (limit_w - gpu.enforced_w) * bank.counting.gpu_limit_ratio * factor
                    if bank.counted_w() + more_w <= allowed_w + 1e-6:
                        gpu.attempted_s = -1e9
                        gpu.write(Mode.STANDBY, limit_w, now_s)
            if runs_other:
                unit.phase, unit.since_s = "stopping", now_s
            elif unit.phase == "stopping" and now_s - unit.since_s >= STOP_S:
                unit.phase, unit.since_s, unit.workload = "idle", now_s, ""
            elif unit.phase == "starting" and now_s - unit.since_s >= START_S + bank.slow.get(unit.workload, 0.0):
                is_broken = unit.workload in bank.broken
                unit.phase, unit.reason = ("failed", "probe failed") if is_broken else ("ready", "")
                unit.since_s = now_s
            elif (
                point.workload
                and may_raise
                and (unit.phase == "idle" or (unit.phase == "failed" and now_s - unit.since_s >= 3.0))
                and all(abs(g.enforced_w - limit_w) < 0.5 for g in gpus)
            ):
                unit.phase, unit.since_s, unit.workload = "starting", now_s, point.workload

    def _gpus(self, bank: Bank, unit: int) -> list[Device]:
        return [d for d in bank.devices if d.unit == unit]

    def _is_held(self, bank: Bank, device: Device) -> bool:
        """Tell whether a machine stands where the order wants it (any of the ASICs may)."""
        order = bank.order
        assert order is not None
        point = next(p for p in order.points if device.unit in p.units)
        unit = bank.units[device.unit]
        is_at = abs(device.enforced_w - bank.fitted_w.get(device.unit, point.power_w)) < 0.5 and device.due_s is None
        return is_at and (unit.phase == "ready") == bool(point.workload) and unit.phase != "stopping"

    def in_progress(self, bank: Bank) -> bool:
        now_s = self.clock.s
        order = bank.order
        if order is None:
            return False
        if any(d.due_s is not None and not d.is_hung for d in bank.devices):
            return True
        if bank.is_gpu:
            targets = {u: p for p in order.points for u in p.units}
            for unit in bank.units:
                point = targets[unit.number]
                if unit.phase == "stopping" or (
                    unit.phase in ("starting", "ready") and unit.workload != point.workload
                ):
                    return True
                if any(
                    abs(g.enforced_w - bank.fitted_w.get(unit.number, point.power_w)) >= 0.5
                    and not self._is_stuck(g)
                    and not g.ignores_limit
                    for g in self._gpus(bank, unit.number)
                ):
                    return True
            return False
        mining = sum(p.count for p in order.points if p.mode is Mode.MINING) if not order.locked_out else 0
        stuck = sum(self._is_stuck(d) and d.mode is Mode.MINING for d in bank.devices)
        running = sum(d.mode is Mode.MINING and now_s >= d.boot_until_s for d in bank.devices)
        return running != max(mining, stuck)

    def _note_applied(self, bank: Bank) -> None:
        lease = bank.lease
        fits = lease is not None and bank.counted_w() <= lease.watts + 1e-6
        if not fits or any(d.due_s is not None for d in bank.devices) or self.in_progress(bank):
            bank.applied_s = None
        elif bank.applied_s is None:
            bank.applied_s = self.clock.s

    # What it says.

    def report(self) -> orders.AgentReport:
        self.sequence += 1
        is_current = self.order is not None and self.order.epoch == self.fence[0]
        return orders.AgentReport(
            agent=self.name,
            epoch=self.fence[0],
            generation=self.order.generation if is_current and self.order is not None else 0,
            hash="",
            banks=tuple(self._bank_report(b) for b in self.banks),
            marker=self.markers[-1][2] if self.markers else 0,
            boottime_s=self.clock.s,
            boot_id=self.boot_id,
            refusal=self.refusal,
            instance_uid=self.instance,
            sequence=self.sequence,
            fence_instance=self.fence[1],
        )

    def _bank_report(self, bank: Bank) -> orders.BankReport:
        lapsed = self.is_lapsed(bank)
        reported_w: float | None = self.allowed_w(bank)
        if bank.counting is None or reported_w == float("inf"):
            reported_w = None
        lease = bank.lease
        is_done = bank.applied_s is not None and not self.in_progress(bank)
        return orders.BankReport(
            bank=bank.site.bank,
            epoch=0 if lease is None else lease.epoch,
            generation=0 if lease is None else lease.generation,
            grant_w=0.0 if lease is None else lease.watts,
            allowed_w=reported_w or 0.0,
            applied_generation=lease.generation if lease is not None and is_done else 0,
            applied_boottime_s=bank.applied_s if is_done and bank.applied_s is not None else 0.0,
            has_in_flight=self.in_progress(bank),
            held_count=0,
            observed=self._observed(bank),
            stragglers=self._stragglers(bank),
            counted_power_w=0.0 if bank.counting is None else bank.counted_w(),
            safe_shares=() if bank.order is None else bank.order.safe_shares,
            ready_workloads=tuple(
                orders.UnitWorkload(unit=u.number, workload=u.workload) for u in bank.units if u.phase == "ready"
            ),
            failed_workloads=tuple(
                orders.UnitWorkload(unit=u.number, workload=u.workload, reason=u.reason)
                for u in bank.units
                if u.phase == "failed"
            ),
            released_units=tuple(u.number for u in bank.units if u.phase in ("idle", "failed")),
            reported_w=reported_w,
            is_lapsed=lapsed,
            is_lost=bank.is_lost,
            unheld_count=sum(d.is_hung for d in bank.devices),
            locked_out=bank.order is not None and bank.order.locked_out,
        )

    def _mode_of(self, bank: Bank, device: Device) -> Mode:
        if device.is_hung:
            return Mode.UNKNOWN
        if not bank.is_gpu:
            return Mode.STANDBY if self.clock.s < device.boot_until_s else device.mode
        unit = bank.units[device.unit]
        if unit.phase != "ready":
            return Mode.STANDBY
        return Mode.INFERENCE if unit.workload == "llm" else Mode.MINING

    def _observed(self, bank: Bank) -> tuple[orders.PointOrder, ...]:
        counts: dict[tuple[str, Mode, float, str], int] = {}
        units: dict[tuple[str, Mode, float, str], set[int]] = {}
        names = {
            ("asic", Mode.MINING): "mine",
            ("asic", Mode.STANDBY): "standby",
        }
        for device in bank.devices:
            mode = self._mode_of(bank, device)
            if not bank.is_gpu:
                watts = device.enforced_w if mode is Mode.MINING else 0.0
                key = (names.get(("asic", mode), ""), mode, watts, "")
            else:
                unit = bank.units[device.unit]
                workload = unit.workload if unit.phase in ("starting", "ready", "stopping") else ""
                points = {(Mode.MINING, 500.0): "mine", (Mode.INFERENCE, 700.0): "serve"}
                points |= {(Mode.INFERENCE, 525.0): "serve-capped", (Mode.STANDBY, 200.0): "standby"}
                key = (points.get((mode, device.enforced_w), ""), mode, device.enforced_w, workload)
            counts[key] = counts.get(key, 0) + 1
            units.setdefault(key, set()).add(device.unit)
        return tuple(
            orders.PointOrder(
                point=key[0],
                mode=key[1],
                power_w=key[2],
                count=count,
                workload=key[3],
                units=tuple(sorted(units[key])) if bank.is_gpu else (),
            )
            for key, count in counts.items()
        )

    def _stragglers(self, bank: Bank) -> tuple[orders.StragglerReport, ...]:
        found: list[orders.StragglerReport] = []
        for device in bank.devices:
            reason = ""
            if device.is_hung:
                reason = "hung"
            elif device.woke:
                reason = "self_woke"
            elif self._is_stuck(device) or (device.ignores_limit and bank.order and not self._is_held(bank, device)):
                reason = "ignored"
            elif bank.is_gpu and bank.order is not None and not self._is_held(bank, device):
                reason = "in_flight"
            if reason:
                found.append(orders.StragglerReport(device=device.name, reason=reason, attempt_count=device.attempts))
        return tuple(found)

    def inventory(self) -> AgentInventory:
        return AgentInventory(
            agent=self.name,
            version="0",
            hostname=self.name,
            banks=tuple(
                BankInventory(
                    bank=b.site.bank,
                    kind="gpu" if b.is_gpu else "asic",
                    device_class=b.site.device_class,
                    unit_size=len(b.devices) // len(b.units) if b.is_gpu else 1,
                    devices=tuple(
                        DeviceSpec(
                            device=d.name,
                            model="",
                            firmware="",
                            serial_number="",
                            address="",
                            unsupported_fields=(),
                            unit=d.unit,
                        )
                        for d in b.devices
                    ),
                    value_fields=("power_w",),
                    counter_fields=("uptime_s",),
                    points=(),
                    workloads=("miner", "llm") if b.is_gpu else (),
                    meter="",
                )
                for b in self.banks
            ),
            meters=(),
            host_fields=(),
            unsupported=(),
            writes_enabled=True,
        )

    def frames(self) -> tuple[BankFrame, ...]:
        now_s = self.clock.s
        return tuple(
            BankFrame(
                bank=b.site.bank,
                values=[b.reported_w(d, now_s) for d in b.devices],
                counters=[now_s - d.restarted_s for d in b.devices],
                conditions=[1] * len(b.devices),
                modes=[self._mode_of(b, d).value for d in b.devices],
                read_boottime_ns=[round(now_s * 1e9)] * len(b.devices),
            )
            for b in self.banks
        )

    def marker_before(self, begun_s: float) -> tuple[int, int]:
        """Return the newest marker (epoch, count) that had come in when a reading began."""
        known = [m for m in self.markers if m[0] <= begun_s and m[1] == self.fence[0]]
        return (known[-1][1], known[-1][2]) if known else (0, 0)


@dataclass
class Market:
    """Prices and demand, as they stand."""

    power: float | None = 40.0
    hashprice: float | None = 0.05
    inference: float | None = 2.35
    demand: float | None = 0.0
    gpu_mining: float | None = 0.12

    def view(self, now_unix_s: float) -> MarketView:
        def quote(value: float | None) -> Quote | None:
            return None if value is None else Quote(value=value, source="test")

        def by_class(value: float | None) -> MappingProxyType[str, Quote]:
            made = quote(value)
            return MappingProxyType({} if made is None else {"h100": made})

        return MarketView(
            now_s=now_unix_s,
            power_price_usd_per_mwh=quote(self.power),
            hashprice_usd_per_th_day=quote(self.hashprice),
            inference_price_usd_per_gpu_h=by_class(self.inference),
            inference_demand_gpus=by_class(self.demand),
            gpu_mining_usd_per_gpu_h=by_class(self.gpu_mining),
        )


@dataclass
class Verdicts:
    """What the judge found; every list must stay empty unless a test planted the cause."""

    over_cap: list[str] = field(default_factory=list)
    unjournaled: list[str] = field(default_factory=list)
    above_claim: list[str] = field(default_factory=list)

    def assert_clean(self) -> None:
        """Fail with the first findings."""
        assert not self.unjournaled, self.unjournaled[:3]
        assert not self.over_cap, self.over_cap[:3]
        assert not self.above_claim, self.above_claim[:3]


@dataclass(frozen=True)
class TrueLimit:
    """A limit as it was ordered, in the judge's own words: `full_from_s` is when all of it must hold."""

    feeder: str
    watts: float
    full_from_s: float
    until_s: float


class VirtualSite:
    """The site, its agents and at most one living controller."""

    def __init__(
        self,
        site: SiteFile | None = None,
        *,
        seed: int = 1,
        mining: int | None = None,
        open_journal: Callable[[], Any] | None = None,
    ) -> None:
        """Make the site; `mining` machines of each ASIC bank run at the start, all by default none."""
        self.site = site or make_site()
        self.rng = random.Random(seed)
        self.clock = VirtualClock()
        self.market = Market()
        self.verdicts = Verdicts()
        self.banks: dict[str, Bank] = {b.name: self._bank(b, mining or 0) for b in self.site.banks}
        self.agents: dict[str, Agent] = {
            name: Agent(name, [b for b in self.banks.values() if b.site.agent == name], self.clock)
            for name in self.site.agents()
        }
        self.journal_file = JournalFile()
        self._open_journal = open_journal
        self.journal: Any = None
        self.deciding: Deciding | None = None
        self.controllers = 0
        self.marker = 0
        self.energy_j = dict.fromkeys(self.site.tree.feeders, 0.0)
        self.counts = dict.fromkeys(self.site.tree.feeders, 0)
        self.dead_meters: set[str] = set()
        self.voltage_v = 230.0
        self.limits: list[TrueLimit] = [
            TrueLimit("grid", lim.limit_w, -1e18, 1e18) for lim in self.site.tree.feeder("grid").limits
        ]
        self.excused_until_s = -1e18
        self.undecided_s = -1e18
        self.is_disobedient: set[str] = set()
        self.house_w = HOUSE_W
        self._grants: dict[tuple[str, int, int], float] = {}
        self._rows_read = 0
        self._orders: dict[str, tuple[orders.AgentOrder, float]] = {}
        self.is_new = False

    def _bank(self, declared: SiteBank, mining: int) -> Bank:
        is_gpu = declared.spec.kind.value == "gpu"
        size = self.site.classes[declared.device_class].unit_size
        devices = [
            Device(
                name=f"d{i:02d}",
                unit=i // size if is_gpu else 0,
                is_gpu=is_gpu,
                rated_w=declared.spec.device_ceiling_w,
                floor_w=declared.spec.device_floor_w,
                mode=Mode.MINING if i < mining and not is_gpu else Mode.STANDBY,
                enforced_w=200.0 if is_gpu else (declared.spec.device_ceiling_w if i < mining else 0.0),
                restarted_s=BOOTTIME_ZERO_S - 5000.0,
            )
            for i in range(declared.device_count)
        ]
        units = [Unit(i) for i in range(declared.device_count // size)] if is_gpu else []
        return Bank(site=declared, name=declared.name, devices=devices, units=units)

    # The controller.

    @property
    def engine(self) -> SiteEngine:
        """Return the living controller's engine."""
        assert self.deciding is not None, "no controller lives"
        return self.deciding.engine

    @property
    def state(self) -> SiteState:
        """Return the living controller's state."""
        return self.engine.state

    def start_controller(self, *, boot_id: str = "boot-controller") -> None:
        """Build a controller from the journal as it is."""
        self.controllers += 1
        self.journal = self._open_journal() if self._open_journal else MemoryJournal(self.journal_file)
        self.is_new = self.journal.was_created
        self.deciding = build_deciding(
            site=self.site,
            journal=self.journal,
            journal_is_new=self.journal.was_created,
            clock=self.clock,
            instance=f"controller-{self.controllers}",
            boot_id=boot_id,
            market=self.market.view,
            cluster=self.cluster_state(),
        )
        self.commands = Commands(self.engine, self.clock)
        self.marker = 0
        self._orders.clear()
        for agent in self.agents.values():
            agent.said_hello = False

    def cluster_state(self) -> ClusterState | None:
        """Return what the controller sees of a cluster; this site has none."""
        return None

    def kill_controller(self) -> None:
        """Drop it where it stands."""
        self.deciding = None
        self._orders.clear()
        close = getattr(self.journal, "close", None)
        if close is not None:
            close()

    def restart_controller(self) -> None:
        """Kill and start."""
        self.kill_controller()
        self.start_controller()

    # Time.

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether `until` came true (True without one)."""
        for _ in range(int(seconds)):
            self.step()
            if until is not None and until():
                return True
        return until is None

    def step(self) -> None:
        """One second."""
        self.clock.s += 1.0
        now_s = self.clock.s
        for bank in self.banks.values():
            for device in bank.devices:
                device.land(now_s)
        for agent in self.agents.values():
            if agent.is_alive:
                agent.act()
        watts = self.true_w()
        for feeder, power_w in watts.items():
            self.energy_j[feeder] += power_w
            self.counts[feeder] += 1
        try:
            for agent in self.agents.values():
                if agent.is_alive and agent.is_linked and self.deciding is not None:
                    self._talk(agent, watts)
            if self.deciding is not None:
                self.engine.tick(now_s, self.clock.now().timestamp())
        except Crashed:
            self.kill_controller()
        if self.deciding is not None:
            self._send()
        self._judge(watts)

    def _talk(self, agent: Agent, watts: dict[str, float]) -> None:
        engine, now_s = self.engine, self.clock.s
        if agent.name in self._orders:
            order, sent_s = self._orders.pop(agent.name)
            agent.take_order(order, sent_s)
            agent.act()
        if not agent.said_hello:
            engine.take_inventory(agent.inventory(), now_s)
            self._take_report(agent, is_hello=True)
            agent.said_hello = True
            adopt = engine.adopt_order(agent.name)
            if adopt is not None:
                agent.take_adopt(adopt)
                self._mark(agent)
        agent.batch += 1
        engine.take_batch(
            BatchFrame(
                agent=agent.name,
                sequence=agent.batch,
                first_sequence=agent.batch,
                boot_id=agent.boot_id,
                sample_unix_s=self.clock.now().timestamp(),
                sample_boottime_s=now_s,
                banks=agent.frames(),
                meters=tuple(self._meters(agent, watts)),
                host_values=(),
                events=(),
                is_live=True,
            ),
            now_s,
        )
        try:
            self._take_report(agent, is_hello=False)
        except WrongState as refused:
            if refused.reason != "NEW_EPOCH":
                raise
            agent.said_hello = False  # the stream is closed; it connects again with the next step
            return
        renewed = engine.renew(agent.name, round(now_s * 1e9), now_s)
        if renewed is not None:
            agent.renewed(renewed)
            self._mark(agent)

    def _take_report(self, agent: Agent, *, is_hello: bool) -> None:
        self.engine.take_report(agent.report(), is_hello=is_hello, now_s=self.clock.s)

    def _mark(self, agent: Agent) -> None:
        self.marker += 1
        self.engine.note_marker(agent.name, self.marker, self.clock.s)
        agent.markers.append((self.clock.s, self.state.ledger.epoch, self.marker))
        del agent.markers[:-40]

    def _meters(self, agent: Agent, watts: dict[str, float]) -> Iterator[MeterFrame]:
        for feeder, note in self.site.feeder_notes.items():
            if note.meter_agent != agent.name or not note.meter or feeder in self.dead_meters:
                continue
            end_s = self.clock.s
            gain = 1.0 + self.rng.uniform(-0.0005, 0.0005)
            power_w = watts[feeder] * gain
            epoch, marker = agent.marker_before(end_s - 1.0)
            yield MeterFrame(
                meter=note.meter,
                feeder=feeder,
                measurement_count=self.counts[feeder],
                window_start_boottime_s=end_s - 1.0,
                window_end_boottime_s=end_s,
                marker=marker,
                marker_epoch=epoch,
                power_w=power_w,
                energy_j=self.energy_j[feeder],
                voltage_v=self.voltage_v,
                current_a=power_w / (3.0 * self.voltage_v * 0.98),
                power_factor=0.98,
                fault="",
            )

    def _send(self) -> None:
        """Hand the newest orders out, as the link does: they arrive with the next step."""
        self._read_grants()
        for agent in self.agents.values():
            order = self.engine.order_for(agent.name)
            if order is None:
                continue
            held = agent.order
            if held is None or (held.epoch, held.generation) != (order.epoch, order.generation):
                self.check_order(agent, order)
                if agent.is_linked and agent.is_alive:
                    self._orders[agent.name] = (order, self.clock.s)

    def _read_grants(self) -> None:
        for row in self.journal.read(self._rows_read if self._rows_read <= self.journal.newest_revision() else 0):
            self._rows_read = row.revision
            budget = (row.entry.payload or {}).get("budget", {})
            if budget.get("event") == "GrantIssued":
                self._grants[(budget["bank"], budget["epoch"], budget["generation"])] = budget["grant_w"]

    def forget_grants(self) -> None:
        """Read the journal from its start again: another one was put in its place."""
        self._rows_read = 0
        self._grants.clear()

    def check_order(self, agent: Agent, order: orders.AgentOrder) -> None:
        for bank in order.banks:
            key = (f"{agent.name}/{bank.bank}", order.epoch, bank.generation)
            if self._grants.get(key) != bank.grant_w:
                self.verdicts.unjournaled.append(f"{key}: {bank.grant_w} ordered, {self._grants.get(key)} journaled")

    # Truth.

    def true_w(self) -> dict[str, float]:
        """Return what every feeder truly carries."""
        now_s = self.clock.s
        tree = self.site.tree
        watts = dict.fromkeys(tree.feeders, 0.0)
        watts["grid"] += self.house_w
        for bank in self.banks.values():
            at_w = bank.true_w(now_s)
            for feeder, factor in tree.path(bank.site.feeder):
                watts[feeder] += at_w * factor
        return watts

    def limit_w(self) -> float:
        """Return the grid's limit that must hold now."""
        now_s = self.clock.s
        return min(lim.watts for lim in self.limits if lim.full_from_s <= now_s < lim.until_s)

    def unreachable_w(self) -> float:
        """Return watts that no controller could have taken away in time: of dead agents, or of all while none has decided lately."""
        now_s, tree = self.clock.s, self.site.tree
        is_undecided = now_s - self.undecided_s <= RECOVERY_S
        total_w = 0.0
        for bank in self.banks.values():
            agent = self.agents[bank.site.agent]
            if not (agent.is_alive and agent.is_linked):
                agent.lost_s = now_s
            if is_undecided or now_s - agent.lost_s <= RECOVERY_S:
                total_w += bank.true_w(now_s) * tree.loss_factor(bank.site.feeder, "grid")
        return total_w

    def excuse(self, seconds: float) -> None:
        """Let the judge look away for a while: a limit fell without notice, or a machine was made to misbehave."""
        self.excused_until_s = self.clock.s + seconds

    def _judge(self, watts: dict[str, float]) -> None:
        now_s = self.clock.s
        if self.deciding is None:
            self.undecided_s = now_s
        for lim in self.limits:
            if not lim.full_from_s <= now_s < lim.until_s:
                continue
            over_w = watts["grid"] - lim.watts
            if lim.full_from_s > BOOTTIME_ZERO_S:
                # A programme's limit: nobody can tell a dead agent's machines, and a dead controller tells nobody.
                over_w -= self.unreachable_w()
            if over_w > 0.0 and now_s > self.excused_until_s:
                self.verdicts.over_cap.append(f"t={now_s:.0f}: {over_w:.0f} W over {lim.watts:.0f} W")
        if self.deciding is None:
            return
        for name, bank in self.banks.items():
            claim_w = self.state.ledger.claim_w(name)
            true_w = bank.true_w(now_s)
            if true_w > claim_w + 1.0 and name not in self.is_disobedient:
                self.verdicts.above_claim.append(f"t={now_s:.0f}: {name} draws {true_w:.0f} W, claims {claim_w:.0f} W")

    # Words for tests.

    def order(self, request_id: str, *, validate_only: bool = False, digest: str = "") -> Order:
        """Return what every write carries."""
        return Order(
            author="ada", request_id=request_id, reason="test", digest=digest or request_id, validate_only=validate_only
        )

    def curtail(
        self, limit_w: float, *, notice_s: float = 30.0, ramp_s: float = 0.0, duration_s: float = 120.0, id: str = "c"
    ) -> Curtailment:
        """Order a curtailment of the grid and tell the judge."""
        made = self.commands.start_curtailment(
            self.order(f"curtail-{id}-{self.clock.s}"),
            feeder="grid",
            limit_w=limit_w,
            notice_s=notice_s,
            ramp_s=ramp_s,
            duration_s=duration_s,
            window_s=60.0,
            payment="",
            penalty="",
        )
        start_s = self.clock.s + notice_s
        self.limits.append(TrueLimit("grid", limit_w, start_s + ramp_s, start_s + ramp_s + duration_s))
        return made

    def flips(self, *phases: Phase, bank: str | None = None) -> list[Flip]:
        """Return flips, of some phases and one bank where named."""
        return [
            f
            for f in self.state.flips.values()
            if (not phases or f.phase in phases) and (bank is None or f.bank == bank)
        ]

    def flips_open(self, bank: str) -> list[Flip]:
        """Return open flips of a bank."""
        return list(self.state.open_flips(bank))

    def count(self, bank: str, mode: Mode) -> int:
        """Return machines of a bank that truly are in a mode."""
        agent = self.agents[self.banks[bank].site.agent]
        return sum(agent._mode_of(self.banks[bank], d) is mode for d in self.banks[bank].devices)

    def claimed_ratio(self, feeder: str = "grid") -> float:
        """Return claims, uncontrolled load and margin over the limit."""
        view = self.state.ledger.feeder_view(feeder, self.clock.s)
        return (view.claimed_w + view.uncontrolled_w + view.margin_w) / view.limit_w

    def is_quiet(self) -> bool:
        """Tell whether every flip is over and every bank settled."""
        return not self.state.open_flips() and all(self.state.ledger.is_settled(b) for b in self.banks)

    def explain(self) -> str:
        """Tell where everything stands, for failing tests."""
        ledger, now_s = self.state.ledger, self.clock.s
        lines = [
            f"t={now_s:.0f} grid {self.true_w()['grid']:.0f} W of {self.limit_w():.0f}, ratio {self.claimed_ratio():.3f}"
        ]
        for name in self.banks:
            newest = ledger.newest_grant(name)
            lines.append(
                f"{name}: {ledger.state(name, now_s).value} claim {ledger.claim_w(name):.0f} grant "
                f"{'-' if newest is None else f'{newest.grant_w:.0f} ({newest.epoch}.{newest.generation} {newest.reason})'} "
                f"true {self.banks[name].true_w(now_s):.0f}; "
                + ", ".join(f"{p.count} {p.point}" for p in self.state.holdings[name].placements)
                if name in self.state.holdings
                else f"{name}: no holdings, {ledger.state(name, now_s).value} claim {ledger.claim_w(name):.0f}"
            )
            group = ledger.group_of(name)
            if group is not None and not ledger.is_settled(name):
                lines.append(f"   not settled: {self.engine.not_settled(group)}")
        lines += [
            f"open: {f.story()} {f.direction} {f.watts} since {f.since_s:.0f} "
            f"{self.engine.flips.refusals.get(f.id, '')}"
            for f in self.state.open_flips()
        ]
        return "\n".join(lines)


def settled_site(site: SiteFile | None = None, *, seed: int = 1, mining: int = 10, **options: Any) -> VirtualSite:
    """Return a site with a controller that has adopted everything, filled the limit and come to rest."""
    made = VirtualSite(site, seed=seed, mining=mining, **options)
    made.start_controller()
    assert made.run(400, lambda: made.clock.s > BOOTTIME_ZERO_S + 60 and made.is_quiet()), made.explain()
    return made


__all__ = [
    "Authority",
    "Journal",
    "JournalFile",
    "Market",
    "MemoryJournal",
    "Path",
    "TrueLimit",
    "VirtualSite",
    "make_site",
    "replace",
    "settled_site",
]
