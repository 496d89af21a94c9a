"""Agents of the site in virtual time: they fence, store, apply with delays, renew, lapse and lose their memory."""

from __future__ import annotations

from collections.abc import Sequence

from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.fleet.frames import (
    AgentInventory,
    BankFrame,
    BankInventory,
    DeviceSpec,
)
from swingbus_controller.domain.fleet.orders import Mode
from tests.fakes.site_clock import VirtualClock
from tests.fakes.site_machines import Bank, Device, Lease

START_S, STOP_S = 5.0, 2.0
ATTEMPTS = 2


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
