"""The fault ledger: carries out the scenario's timeline and writes down what it did.

Decides when a planted fault begins and ends, and which machine a `pick` means. Meters' faults are only written down here; the
meters read them from `meter_faults`. Invariant: every change that the scenario makes to the site has a ledger entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swingbus.faults import InvalidInput
from swingbus_sim.physics.truth import LedgerEntry
from swingbus_sim.ports import AsicState, GpuHealth, NetworkFault, NetworkWeather
from swingbus_sim.scenario import Event

if TYPE_CHECKING:
    from swingbus_sim.physics.asic import SimulatedAsic
    from swingbus_sim.physics.world import World

_WEATHER = {
    "late_replies": NetworkFault.LATE,
    "hung_socket": NetworkFault.HUNG,
    "truncated_json": NetworkFault.TRUNCATED,
}


@dataclass(slots=True)
class MeterFault:
    """What is wrong with one meter now."""

    is_frozen: bool = False
    is_power_frozen: bool = False
    gain_ratio: float = 1.0
    lag_s: float | None = None
    is_swapped: bool = False


@dataclass(slots=True)
class _Active:
    """A fault in force, and when it ends by itself (None: never)."""

    id: int
    event: Event
    targets: tuple[str, ...]
    ends_s: float | None


class FaultLedger:
    """The timeline of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._coming = sorted(world.scenario.events, key=lambda e: e.at_s)
        self._notices: list[tuple[float, int, Event]] = []
        self._armed: dict[str, int] = {}
        self._active: list[_Active] = []
        self._next_id = 1
        self._random = world.random_for("faults")
        self.meter_faults = {m.name: MeterFault() for m in world.scenario.meters}
        self.entries: list[LedgerEntry] = []
        self._unread = 0

    def take_new(self) -> list[LedgerEntry]:
        """Return the entries written since the last call."""
        fresh = self.entries[self._unread :]
        self._unread = len(self.entries)
        return fresh

    def inject(self, event: Event) -> int:
        """Do `event` now (its `at_s` is ignored) and return its ledger id."""
        return self._begin(event, self._world.now_s)

    def advance(self, now_s: float) -> None:
        """Carry out what is due by `now_s`."""
        while self._coming and self._coming[0].at_s <= now_s:
            event = self._coming.pop(0)
            try:
                self._begin(event, now_s)
            except InvalidInput as error:
                # A pick that fits nothing now must not stop the site; the ledger and the report show it.
                self._write(now_s, self._next_id - 1, event.kind, "skipped", event.targets, {"reason": str(error)})
        for due in [n for n in self._notices if n[0] <= now_s]:
            self._notices.remove(due)
            self._set_limit(due[2], due[1], now_s)
        for name, fault_id in list(self._armed.items()):
            asic = self._world.asics[name]
            if asic.faults.wakes_when_asleep_for_s is None:
                del self._armed[name]
                self._write(now_s, fault_id, "wake_by_itself", "started", (name,), {})
        for active in [a for a in self._active if a.ends_s is not None and a.ends_s <= now_s]:
            self._active.remove(active)
            self._end(active, now_s)

    # -- beginning ----------------------------------------------------------------------------------------------------

    def _begin(self, event: Event, now_s: float) -> int:
        fault_id = self._next_id
        self._next_id += 1
        if event.is_runners:
            self._write(now_s, fault_id, event.kind, "due", event.targets, _facts(event))
            return fault_id
        targets = self._resolve(event)
        ends_s = now_s + event.duration_s if event.duration_s is not None else None
        active = _Active(fault_id, event, targets, ends_s)
        detail = _facts(event)
        phase = "started"
        kind = event.kind
        if kind == "limit":
            detail |= {"limit_w": event.limit_w, "notice_s": event.notice_s, "ramp_s": event.ramp_s}
            self._notices.append((now_s + event.notice_s, fault_id, event))
            self._write(now_s, fault_id, kind, "announced", targets, detail)
            return fault_id
        if kind in _WEATHER:
            for asic in self._asics(targets):
                asic.faults.weather = NetworkWeather(fault=_WEATHER[kind], delay_s=event.delay_s)
        elif kind == "ignore_sleep":
            for asic in self._asics(targets):
                asic.faults.ignores_sleep = True
        elif kind == "wake_by_itself":
            phase = "armed"
            for asic in self._asics(targets):
                asic.faults.wakes_when_asleep_for_s = event.delay_s
                self._armed[asic.name] = fault_id
        elif kind == "draws_more":
            detail["ratio"] = event.ratio
            for asic in self._asics(targets):
                asic.faults.draws_more_ratio = event.ratio
        elif kind == "late_writes":
            for asic in self._asics(targets):
                asic.faults.late_write_s = event.delay_s
        elif kind == "reboot_miner":
            for asic in self._asics(targets):
                asic.restart_by_itself(now_s, kind)
        elif kind == "pool_loss":
            for asic in self._asics(targets):
                asic.lose_pool()
        elif kind in ("gpu_lost", "gpu_hung"):
            for name in targets:
                self._world.gpu(name)[1].health = GpuHealth.LOST if kind == "gpu_lost" else GpuHealth.HUNG
        elif kind == "gpu_limits_lost":
            for name in targets:
                self._world.hosts[name].reset_driver(now_s, kind)
        elif kind.startswith("meter_"):
            self._set_meters(event, targets)
        elif kind == "load_surge":
            detail["power_w"] = event.power_w
            for name in targets:
                load = self._world.loads[name]
                load.surge_w += event.power_w
                load.surge_since_s = now_s
        elif kind in ("sag", "outage"):
            self._drop_voltage(event, targets, now_s)
        self._active.append(active)
        self._write(now_s, fault_id, kind, phase, targets, detail)
        return fault_id

    def _set_limit(self, event: Event, fault_id: int, now_s: float) -> None:
        world = self._world
        detail = _facts(event) | {"limit_w": event.limit_w, "ramp_s": event.ramp_s}
        for name in event.targets:
            detail[f"before_w:{name}"] = world.limits_w[world.tree.index[name]]
        ends_s = now_s + event.duration_s if event.duration_s is not None else None
        self._active.append(_Active(fault_id, event, event.targets, ends_s))
        self._take_lowest_limits(event.targets)
        self._write(now_s, fault_id, "limit", "started", event.targets, detail)

    def _take_lowest_limits(self, names: tuple[str, ...]) -> None:
        """Put the lowest of the feeder's own limit and every curtailment in force."""
        world = self._world
        for name in names:
            candidates = [world.scenario.node(name).limit_w]
            candidates += [a.event.limit_w for a in self._active if a.event.kind == "limit" and name in a.targets]
            given = [c for c in candidates if c is not None]
            world.limits_w[world.tree.index[name]] = min(given) if given else None

    def _set_meters(self, event: Event, targets: tuple[str, ...]) -> None:
        for name in targets:
            fault = self.meter_faults[name]
            if event.kind == "meter_freeze":
                fault.is_frozen = True
            elif event.kind == "meter_power_freeze":
                fault.is_power_frozen = True
            elif event.kind == "meter_gain":
                fault.gain_ratio = event.ratio
            elif event.kind == "meter_lag":
                fault.lag_s = event.delay_s
            else:
                fault.is_swapped = True

    def _drop_voltage(self, event: Event, targets: tuple[str, ...], now_s: float) -> None:
        world = self._world
        for node in self._nodes(targets):
            world.voltage[node] = event.voltage_ratio
        for asic in self._fed_by(targets):
            if event.kind == "outage":
                asic.cut_power()
            elif self._random.random() < event.ratio:
                asic.restart_by_itself(now_s, event.kind)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _end(self, active: _Active, now_s: float) -> None:
        kind = active.event.kind
        world = self._world
        for asic in self._asics(active.targets) if kind not in ("limit", "sag", "outage") else ():
            if kind in _WEATHER:
                asic.faults.weather = None
            elif kind == "ignore_sleep":
                asic.faults.ignores_sleep = False
            elif kind == "wake_by_itself":
                asic.faults.wakes_when_asleep_for_s = None
                if asic.name in self._armed:
                    del self._armed[asic.name]
                    self._write(now_s, active.id, kind, "lapsed", (asic.name,), {})
            elif kind == "draws_more":
                asic.faults.draws_more_ratio = 1.0
            elif kind == "late_writes":
                asic.faults.late_write_s = 0.0
            elif kind == "pool_loss":
                asic.regain_pool(now_s)
        if kind in ("gpu_lost", "gpu_hung"):
            for name in active.targets:
                world.gpu(name)[1].health = GpuHealth.OK
        elif kind.startswith("meter_"):
            for name in active.targets:
                self.meter_faults[name] = MeterFault()
        elif kind == "load_surge":
            for name in active.targets:
                world.loads[name].surge_w -= active.event.power_w
        elif kind == "limit":
            self._take_lowest_limits(active.targets)
        elif kind in ("sag", "outage"):
            for node in self._nodes(active.targets):
                world.voltage[node] = 1.0
            if kind == "outage":
                for asic in self._fed_by(active.targets):
                    asic.restart_by_itself(now_s, kind)
        self._write(now_s, active.id, kind, "ended", active.targets, _facts(active.event))

    # -- targets ------------------------------------------------------------------------------------------------------

    def _resolve(self, event: Event) -> tuple[str, ...]:
        """Turn groups and picks into device names; other targets stay as they are."""
        world = self._world
        if event.kind in ("sag", "outage"):
            return event.targets or (world.tree.names[0],)
        # A feeder, its meter and its miners may share one name: the kind says which is meant.
        if event.kind.startswith("meter_") or event.kind in ("load_surge", "limit", "mark"):
            return event.targets
        result: list[str] = []
        for target in event.targets:
            group, _, pick = target.partition(":")
            if group not in world.groups:
                result.append(target)
                continue
            members = list(world.groups[group])
            if pick == "asleep":
                members = [a for a in members if a.state is AsicState.SLEEPING]
            elif pick == "mining":
                members = [a for a in members if a.state is AsicState.MINING]
            elif pick == "worst":
                members.sort(key=lambda a: -a.efficiency_j_per_th)
            elif pick == "best":
                members.sort(key=lambda a: a.efficiency_j_per_th)
            if event.pick_count is not None:
                members = members[: event.pick_count]
            result.extend(a.name for a in members)
        if not result:
            raise InvalidInput(
                f"{event.kind}: no machine is like {', '.join(event.targets)} now; name one, or inject later"
            )
        return tuple(result)

    def _asics(self, targets: tuple[str, ...]) -> list[SimulatedAsic]:
        return [self._world.asics[name] for name in targets if name in self._world.asics]

    def _nodes(self, targets: tuple[str, ...]) -> frozenset[int]:
        return frozenset(i for name in targets for i in self._world.tree.below(name))

    def _fed_by(self, targets: tuple[str, ...]) -> list[SimulatedAsic]:
        nodes = self._nodes(targets)
        return [asic for node, members in self._world.asics_at if node in nodes for asic in members]

    def _write(
        self,
        now_s: float,
        fault_id: int,
        kind: str,
        phase: str,
        targets: tuple[str, ...],
        detail: dict[str, float | str | bool | None],
    ) -> None:
        self.entries.append(LedgerEntry(now_s, fault_id, kind, phase, targets, detail))


def _facts(event: Event) -> dict[str, float | str | bool | None]:
    """Return what the judge needs to know of every event: how long it lasts and whether the time means leave it out."""
    lasts_s = event.duration_s if event.duration_s is not None else event.restart_after_s
    return {
        "label": event.label,
        "for_s": lasts_s,
        "is_disturbance": event.is_disturbance,
        "settle_s": event.settle_s,
    }
