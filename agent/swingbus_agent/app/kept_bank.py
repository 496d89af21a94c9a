"""What the steward keeps of one bank: its order, its aims, and the machines that it can choose from.

Decides: what may be moved, what counts as its current place, what each device falls to without a living grant. Refuses to know:
grants, time, streams. Invariant: a machine that is locked or ignores its target is never chosen; what is lowered never rises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from swingbus_agent.domain.counting import device_counted_w
from swingbus_agent.domain.execution import BankExecution
from swingbus_agent.domain.orders import BankCounting, BankOrder
from swingbus_agent.domain.readings import BankSpec, Kind
from swingbus_agent.domain.selection import Candidate, Target
from swingbus_agent.domain.views import ExecutionTimes


class KeptBank:
    """What the steward keeps of one bank."""

    __slots__ = (
        "aims",
        "counting",
        "execution",
        "fallen",
        "first_look_s",
        "floor_w",
        "is_seen",
        "order",
        "spec",
        "stuck",
    )

    def __init__(self, spec: BankSpec, times: ExecutionTimes) -> None:
        self.spec = spec
        self.execution = BankExecution(spec, times)
        self.counting: BankCounting | None = None
        self.order: BankOrder | None = None
        self.aims: dict[str, Target] = {}
        self.fallen: dict[str, Target] | None = None
        self.stuck: frozenset[str] = frozenset()
        self.floor_w = 0.0
        self.first_look_s: float | None = None
        self.is_seen = False

    def _locked(self) -> frozenset[str]:
        return frozenset() if self.order is None else frozenset(self.order.locked_devices)

    def spread(self, chosen: Mapping[str, Target]) -> dict[str, Target]:
        """Return targets by device; a GPU that rests without a limit of its own gets the least one."""
        result: dict[str, Target] = {}
        for device in self.spec.devices:
            target = chosen.get(candidate_name(self.spec, device.device, device.unit))
            if target is not None:
                if self.spec.kind is Kind.GPU and target.power_w <= 0 and self.floor_w > 0:
                    target = replace(target, power_w=self.floor_w)
                result[device.device] = target
        return result

    def candidates(self, shed_kw_per_s: float) -> list[Candidate]:
        """Return the machines or units to choose from; `shed_kw_per_s` is what each is proven to shed, 0 where nothing is."""
        locked = self._locked()
        groups: dict[str, list[tuple[str, int]]] = {}
        for device in self.spec.devices:
            name = candidate_name(self.spec, device.device, device.unit)
            groups.setdefault(name, []).append((device.device, device.unit))
        result: list[Candidate] = []
        for name, members in groups.items():
            devices = [device for device, _ in members]
            is_stuck = any(device in self.stuck for device in devices)
            is_fixed = is_stuck or any(device in locked for device in devices)
            seen = self.execution.given(devices[0])
            current = seen if is_fixed else self.aims.get(devices[0], seen)
            view = self.execution.view(devices[0])
            result.append(
                Candidate(
                    name=name,
                    unit=members[0][1],
                    current=current,
                    j_per_th=self.execution.efficiency_j_per_th(devices[0]),
                    # Where nothing is proven, machines of one class fall alike: the one that draws most gives most.
                    shed_kw_per_s=shed_kw_per_s
                    or (0.0 if view is None or view.power_w is None else view.power_w / 1000.0),
                    is_answering=view is not None and view.condition.name == "OK",
                    is_fixed=is_fixed,
                )
            )
        return result

    def lowered(self) -> dict[str, Target]:
        """Return, per device, the lesser of what it was told and what it does; sticky while the grant is over."""
        if self.fallen is not None:
            return dict(self.fallen)
        result: dict[str, Target] = {}
        locked = self._locked()
        counting = self.counting
        if counting is None:
            return result
        for device in self.spec.devices:
            aim, seen = self.aims.get(device.device), self.execution.given(device.device)
            options = [target for target in (seen, aim) if target is not None]
            if device.device in locked or not options:
                continue
            result[device.device] = min(
                options, key=lambda t: device_counted_w(counting, self.spec.kind, t.mode, t.power_w or None)
            )
        return result


def candidate_name(spec: BankSpec, device: str, unit: int) -> str:
    """Return what is chosen as one: a miner, or the unit of a GPU."""
    return f"unit-{unit}" if spec.kind is Kind.GPU else device
