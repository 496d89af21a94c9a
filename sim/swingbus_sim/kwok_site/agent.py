"""The agent of one KWOK node: what it reads on its GPUs, which limits it writes for an order, and what is Applied; pure.

Decides as the real agent does where pods are the workloads: limits go down at once; they go up only under a living grant that has room,
on a unit that is empty or holds who shall have it; a unit is released by a reading that shows no process and no pod. Knows no wire.
Everything it says comes from the server's processes and limits and from the kubelet's allocations at its last reading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from uuid import UUID

from swingbus_sim.kwok_site.holding import Grant, Holding
from swingbus_sim.kwok_site.kubelet import Kubelet
from swingbus_sim.kwok_site.physics import INFERENCE, MINING

_RETRY_S = 3.0
_SAME_W = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How the site counts the bank (BankCounting of the wire), for GPUs."""

    gpu_limit_ratio: float
    device_ceiling_w: float
    cooling_ratio: float
    losses_ratio: float
    fixed_w: float

    def feeder_w(self, limits_w: Sequence[float]) -> float:
        """Return watts at the feeder for GPUs at these limits."""
        devices_w = sum(limits_w) * self.gpu_limit_ratio
        return (devices_w * (1.0 + self.cooling_ratio) + self.fixed_w) * (1.0 + self.losses_ratio)

    def fit(self, limits_w: Sequence[float], miners: Sequence[bool], allowed_w: float, floor_w: float) -> list[float]:
        """Return limits that count at no more than is allowed: miners to the floor first, then all alike. None rises."""
        fitted = list(limits_w)
        for group in ([i for i, is_miner in enumerate(miners) if is_miner], list(range(len(fitted)))):
            # The greatest even cap that fits, to a watt: halving is quick enough for eight of them.
            low_w, high_w = floor_w, max(fitted, default=floor_w)
            if self.feeder_w(fitted) <= allowed_w:
                return fitted
            for _ in range(12):
                cap_w = (low_w + high_w) / 2
                tried = [min(w, cap_w) if i in group else w for i, w in enumerate(fitted)]
                low_w, high_w = (cap_w, high_w) if self.feeder_w(tried) <= allowed_w else (low_w, cap_w)
            fitted = [min(w, low_w) if i in group else w for i, w in enumerate(fitted)]
        return fitted


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitOrder:
    """What one unit (one GPU) shall do."""

    point: str
    mode: str  # mining, inference, standby
    power_w: float
    workload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOrder:
    """What the bank may draw and what each unit shall do."""

    generation: int
    grant_w: float
    safe_share_w: float
    units: tuple[UnitOrder, ...]
    ticket: str
    ttl_s: float
    for_instance: str
    is_locked_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSeen:
    """One GPU at one reading."""

    enforced_w: float
    power_w: float
    process_count: int
    tenant: str | None  # of the processes
    holder: str  # namespace/name by the kubelet; empty where nobody holds it
    holder_tenant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The grant under which all was read back, and when."""

    generation: int
    at_s: float


class NodeAgent:
    """One node's agent."""

    def __init__(self, kubelet: Kubelet, *, workloads: dict[str, str], random: Random) -> None:
        """Nothing is known before the first `read`.

        Args:
            workloads: workload name by tenant.
        """
        self.kubelet = kubelet
        self.server = kubelet.server
        self.name = self.server.name
        self.workloads = workloads
        self._random = random
        self.boot_id = self._uid()
        self.holding = Holding(self._uid())
        self.counting: Counting | None = None
        self.order: BankOrder | None = None
        self.order_number = (0, 0)  # epoch, generation of the agent's order
        self.order_hash = ""
        self.seen: tuple[UnitSeen, ...] = ()
        self.read_s = -math.inf
        self.applied: Applied | None = None
        self._written: list[tuple[float, float]] = [(0.0, -math.inf)] * len(self.server.gpus)  # watts, when

    def _uid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def restart(self) -> None:
        """Begin anew after a reboot: what is on the disk is kept, what was seen is not."""
        self.boot_id = self._uid()
        self.holding.restart(self._uid())
        self.seen = ()
        self.applied = None
        self._written = [(0.0, -math.inf)] * len(self.server.gpus)

    # Readings.

    def read(self, now_s: float) -> None:
        """Read every GPU and the kubelet's list, write what is due, judge whether all is applied."""
        holders = self.kubelet.holders()
        self.seen = tuple(
            UnitSeen(
                enforced_w=gpu.enforced_w,
                power_w=gpu.power_w,
                process_count=len(gpu.processes),
                tenant=gpu.tenant,
                holder="" if holder is None else holder.key,
                holder_tenant="" if holder is None else holder.tenant,
            )
            for gpu, holder in zip(self.server.gpus, holders, strict=True)
        )
        self.read_s = now_s
        self.act(now_s)

    def is_released(self, unit: int) -> bool:
        """Tell whether the last reading shows a unit free: no process and no pod."""
        seen = self.seen[unit]
        return not seen.process_count and not seen.holder

    def is_ready(self, unit: int) -> bool:
        """Tell whether a pod holds the unit, as the kubelet says it: whether it serves, the API knows."""
        return bool(self.seen[unit].holder)

    def counted_limits_w(self) -> list[float]:
        """Return what each GPU counts at: what was read, or a higher limit written since that may bite any moment."""
        return [
            max(seen.enforced_w, written_w) if written_s >= self.read_s else seen.enforced_w
            for seen, (written_w, written_s) in zip(self.seen, self._written, strict=True)
        ]

    def counted_w(self) -> float:
        """Return what the bank counts at, 0 before it is known how to count."""
        return 0.0 if self.counting is None or not self.seen else self.counting.feeder_w(self.counted_limits_w())

    def known_w(self) -> float | None:
        """Return what the bank surely holds, None before the first reading or without the site's counting."""
        return None if self.counting is None or not self.seen else self.counted_w()

    def allowed_w(self, now_s: float) -> float:
        """Return what the bank may draw now."""
        return self.holding.allowed_w(now_s, self.known_w())

    # Orders.

    def take_order(self, epoch: int, generation: int, hash_: str, order: BankOrder, now_s: float) -> None:
        """Take a desired state of the epoch in force, or refuse it with a reason and carry on."""
        if (epoch, generation) < self.order_number:
            return
        why = self.holding.take_grant(
            Grant(epoch=epoch, generation=order.generation, grant_w=order.grant_w),
            ticket=order.ticket,
            ttl_s=order.ttl_s,
            for_instance=order.for_instance,
            now_s=now_s,
        )
        self.holding.refusal = f"generation {generation}: bank: {why}" if why else ""
        if why:
            return
        self.holding.safe_share_w = order.safe_share_w
        self.order_number, self.order_hash, self.order = (epoch, generation), hash_, order
        self.applied = None
        if self.seen:
            self.act(now_s)

    def targets_w(self, now_s: float) -> list[float] | None:
        """Return the limit of each GPU that shall be: the order's, or less where less is allowed; None without any order."""
        if self.order is None or self.counting is None:
            return None
        floor_w = self.server.gpu_class.min_limit_w
        if self.order.is_locked_out:
            wanted = [floor_w] * len(self.seen)
        else:
            wanted = [unit.power_w or seen.enforced_w for unit, seen in zip(self.order.units, self.seen, strict=True)]
        if not self.holding.is_lapsed(now_s):
            return wanted
        lowered = [min(w, seen.enforced_w) for w, seen in zip(wanted, self.seen, strict=True)]
        miners = [seen.tenant != INFERENCE for seen in self.seen]
        return self.counting.fit(lowered, miners, self.allowed_w(now_s), floor_w)

    def act(self, now_s: float) -> None:
        """Write the limits that are due, lowering first, and judge whether the order is applied."""
        targets = self.targets_w(now_s)
        if targets is None or self.counting is None or self.order is None:
            return
        order = self.order
        is_held = True
        raises: list[int] = []
        for unit, (seen, target_w) in enumerate(zip(self.seen, targets, strict=True)):
            written_w, written_s = self._written[unit]
            is_there = abs(seen.enforced_w - target_w) <= _SAME_W and self.read_s >= written_s
            is_held = is_held and is_there and not self._holds_other(seen)
            if is_there or (abs(written_w - target_w) <= _SAME_W and now_s - written_s < _RETRY_S):
                continue
            if target_w < seen.enforced_w or target_w < written_w:
                self._write(unit, target_w, now_s)
            elif self._may_fill(order.units[unit], seen):
                raises.append(unit)
        if raises and not self.holding.is_lapsed(now_s):
            limits = self.counted_limits_w()
            for unit in raises:
                limits[unit] = max(limits[unit], targets[unit])
                if self.counting.feeder_w(limits) > self.allowed_w(now_s) + 1e-6:
                    limits[unit] = self.counted_limits_w()[unit]  # no room yet: others have to come down first
                    continue
                self._write(unit, targets[unit], now_s)
        grant = self.holding.grant
        last_write_s = max(written_s for _, written_s in self._written)
        if (
            not is_held
            or grant is None
            or self.read_s < max(self.holding.accepted_s, last_write_s)
            or self.counted_w() > grant.grant_w + 1e-6
        ):
            self.applied = None
        elif self.applied is None or self.applied.generation != grant.generation:
            self.applied = Applied(generation=grant.generation, at_s=now_s)

    def _write(self, unit: int, limit_w: float, now_s: float) -> None:
        self._written[unit] = (limit_w, now_s)
        self.applied = None
        self.server.write_limit(unit, limit_w, now_s)

    def _may_fill(self, unit: UnitOrder, seen: UnitSeen) -> bool:
        """Tell whether a unit may get more: empty, or held by who shall have it."""
        if not unit.workload:
            return True
        return self.workloads.get(seen.holder_tenant) == unit.workload or (not seen.holder and not seen.process_count)

    def _holds_other(self, seen: UnitSeen) -> bool:
        """Tell whether a unit holds what must go first: a process that no pod owns.

        A pod that is in the way is the controller's to move, and may be allowed to stay: its watts are bounded by the limit.
        """
        return not seen.holder and bool(seen.process_count)

    def mode(self, unit: int) -> str:
        """Return what a unit is seen doing; empty where it is not known (a process without a pod)."""
        seen = self.seen[unit]
        if seen.holder:
            return seen.holder_tenant
        return "" if seen.process_count else "standby"


MODES = (MINING, INFERENCE, "standby")
