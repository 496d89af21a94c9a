"""Pods as the workloads of a bank: implements the port `WorkloadDriver` on what the kubelet says.

Decides what a unit's pods mean for its phase. Starts and ends nothing: pods belong to the controller and Kubernetes; `start` and `stop`
only note what is wanted, so that limits go first and nobody is asked twice a second. Knows no readiness: READY says that pods hold the
whole unit; whether they serve, the API knows. Invariants: an unanswered question is UNKNOWN and holds the unit; a pod's absence says IDLE
from the moment it was seen and never that the GPU is free (that takes a later reading without a process).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from swingbus.faults import NotFound, WrongState
from swingbus_agent.domain.answers import Hung, Unavailable
from swingbus_agent.domain.pod_holding import PodTenants, UnitHolding, find_refusal, hold_units, name_some
from swingbus_agent.domain.workload import GpuUnit, WorkloadPhase, WorkloadStatus
from swingbus_agent.ports.pods import PodLister

_STOP_NOTE_S = 30.0
_HUNG_PAUSE_S = 5.0  # a hung kubelet must not slow the readings of GPUs down


@dataclass(slots=True, kw_only=True)
class _Noted:
    """What was noted of one unit; none of it outlives the agent, for the pods say the rest."""

    status: WorkloadStatus
    wanted: str | None = None
    stop_until_s: float | None = None
    was_whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """One answer of the kubelet: who holds what, or why nobody can say."""

    why_not: str = ""
    holdings: Mapping[str, UnitHolding] = field(default_factory=dict)


class PodWorkloads:
    """The units of one bank and the pods that hold them."""

    def __init__(
        self,
        *,
        units: Sequence[GpuUnit],
        kubelet: PodLister,
        tenants: PodTenants,
        now_s: Callable[[], float],
    ) -> None:
        """Nothing is known before the first `observe`.

        Args:
            units: the bank's.
            kubelet: says who holds what.
            tenants: which pods are which workload.
            now_s: CLOCK_BOOTTIME.
        """
        self._units = {unit.name: unit for unit in units}
        self._kubelet = kubelet
        self._tenants = tenants
        self._now_s = now_s
        self._hung: _Answer | None = None
        self._hung_until_s = 0.0
        now = now_s()
        unasked = "kubelet was not asked yet"
        self._noted = {
            name: _Noted(status=_status(name, WorkloadPhase.UNKNOWN, now, reason=unasked)) for name in self._units
        }

    async def start(self, unit: str, workload: str) -> None:
        """Note that the unit is to be held by pods of this workload (see the port)."""
        noted = self._unit(unit)
        if workload not in (self._tenants.mining_workload, self._tenants.inference_workload):
            raise NotFound(
                f"no workload {workload!r} among pods: there are {self._tenants.mining_workload} (pods of namespace "
                f"{self._tenants.miner_namespace}) and {self._tenants.inference_workload} (all others)",
                reason="NO_SUCH_WORKLOAD",
                metadata={"unit": unit, "workload": workload},
            )
        status = noted.status
        if status.has_process and (status.workload != workload or status.phase is WorkloadPhase.UNKNOWN):
            raise WrongState(
                f"unit {unit} is still held ({status.reason or status.phase.value}): wait until kubelet names no pod there",
                reason="UNIT_IS_HELD",
                metadata={"unit": unit, "workload": workload, "held_by": ", ".join(status.holders or ())},
            )
        noted.wanted = workload
        # What was to go and is wanted again was never told so by us: it simply stays.
        noted.stop_until_s = None
        if not status.has_process and status.phase is not WorkloadPhase.STARTING:
            noted.status = self._waiting(unit, workload, self._now_s())

    async def stop(self, unit: str, *, grace_s: float | None = None) -> None:
        """Note that the unit's pods are to go (see the port); one that is still there after the grace shows as it is again."""
        noted = self._unit(unit)
        noted.wanted = None
        now = self._now_s()
        if not noted.status.has_process:
            if noted.status.phase is not WorkloadPhase.IDLE:
                noted.status = _status(unit, WorkloadPhase.IDLE, now)
            return
        until_s = now + (_STOP_NOTE_S if grace_s is None else grace_s)
        noted.stop_until_s = until_s if noted.stop_until_s is None else min(until_s, noted.stop_until_s)
        if noted.status.phase is not WorkloadPhase.UNKNOWN:
            self._show(noted, replace(noted.status, phase=WorkloadPhase.STOPPING, since_boottime_s=now))

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """Ask the kubelet once and say what it means for every unit (see the port)."""
        answer = await self._ask()
        now = self._now_s()  # after the answer: a process list that counts as evidence was read later than this
        for name, noted in self._noted.items():
            self._show(noted, self._judge(self._units[name], noted, answer, now))
        return {name: noted.status for name, noted in self._noted.items()}

    async def _ask(self) -> _Answer:
        if self._hung is not None and self._now_s() < self._hung_until_s:
            return self._hung
        self._hung = None
        match await self._kubelet.list_held():
            case Unavailable(reason=reason):
                return _Answer(why_not=reason)
            case Hung(reason=reason):
                self._hung = _Answer(why_not=reason)
                self._hung_until_s = self._now_s() + _HUNG_PAUSE_S
                return self._hung
            case held:
                refusal = find_refusal(held, self._tenants)
                return _Answer(why_not=refusal, holdings=hold_units(list(self._units.values()), held, self._tenants))

    def _judge(self, unit: GpuUnit, noted: _Noted, answer: _Answer, now: float) -> WorkloadStatus:
        if answer.why_not:
            reason = answer.why_not
            if noted.status.holders:
                reason += f"; last seen there: {name_some(noted.status.holders)}"
            return replace(
                noted.status, phase=WorkloadPhase.UNKNOWN, has_process=True, since_boottime_s=now, reason=reason
            )
        holding = answer.holdings[unit.name]
        if not holding.holders:
            noted.stop_until_s = None
            noted.was_whole = False
            if noted.wanted is not None:
                return self._waiting(unit.name, noted.wanted, now)
            return _status(unit.name, WorkloadPhase.IDLE, now)
        if noted.stop_until_s is not None and now >= noted.stop_until_s:
            noted.stop_until_s = (
                None  # the order may have changed meanwhile: show what is there, and be told again if need be
            )
        phase = self._phase(unit, noted, holding)
        noted.was_whole = noted.was_whole or phase is WorkloadPhase.READY
        workload = holding.workload
        pods = name_some(holding.holders)
        return WorkloadStatus(
            unit=unit.name,
            phase=phase,
            has_process=True,
            since_boottime_s=now,
            workload=workload,
            mode=None if workload is None else self._tenants.mode_of(workload),
            reason=f"held by {pods}; {holding.remark}" if holding.remark else f"held by {pods}",
            holders=holding.holders,
        )

    def _phase(self, unit: GpuUnit, noted: _Noted, holding: UnitHolding) -> WorkloadPhase:
        if noted.stop_until_s is not None:
            return WorkloadPhase.STOPPING
        if holding.workload is None:
            return WorkloadPhase.UNREADY
        if holding.held_count == len(unit.gpu_uuids):
            return WorkloadPhase.READY
        return WorkloadPhase.UNREADY if noted.was_whole else WorkloadPhase.STARTING

    def _show(self, noted: _Noted, status: WorkloadStatus) -> None:
        """Take a new status; a phase that goes on began when it began, unless other pods are in it now."""
        before = noted.status
        if before.phase is status.phase and before.holders == status.holders:
            status = replace(status, since_boottime_s=before.since_boottime_s)
        noted.status = status

    def _waiting(self, unit: str, workload: str, now: float) -> WorkloadStatus:
        return _status(
            unit,
            WorkloadPhase.STARTING,
            now,
            workload=workload,
            mode=self._tenants.mode_of(workload),
            reason="waits for a pod to be given these GPUs",
        )

    def _unit(self, name: str) -> _Noted:
        noted = self._noted.get(name)
        if noted is None:
            known = ", ".join(sorted(self._noted)) or "none"
            raise NotFound(
                f"no unit {name!r} on this host (it has: {known})", reason="NO_SUCH_UNIT", metadata={"unit": name}
            )
        return noted


def _status(unit: str, phase: WorkloadPhase, now: float, **more: object) -> WorkloadStatus:
    """Return the status of a unit that no pod holds; only one that nobody knows of counts as held."""
    facts = {"has_process": phase is WorkloadPhase.UNKNOWN, "holders": (), **more}
    return WorkloadStatus(unit=unit, phase=phase, since_boottime_s=now, **facts)  # type: ignore[arg-type]  # named by callers here
