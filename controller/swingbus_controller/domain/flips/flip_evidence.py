"""What reports and samples show of an open flip: the events that move it on.

Decides: which evidence event a flip's phase can be given now. Refuses to know: orders' wire form, the ledger's reasons. Invariant:
an event is made only from a report on the order that carries the flip's present wish, with every device of the bank read back, or
from a sample read after that; a reply, a low draw or time make none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swingbus_controller.domain.fleet import orders
from swingbus_controller.domain.flips.flip import Flip, Phase, WattState
from swingbus_controller.domain.flips.flip_events import (
    Applied,
    Drained,
    FlipEvent,
    Released,
    Vacated,
    VerifiedRunning,
    WattsSettled,
    WorkloadFailed,
    WorkloadReady,
)
from swingbus_controller.domain.flips.placement import ORDER_MODES, BankModel
from swingbus_controller.domain.flips.pods_seen import PodsSeen
from swingbus_controller.domain.planning.points import DeviceKind, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRows:
    """The newest sample of a bank, row by row.

    Attributes:
        devices: the name of each row's device; units: its unit; modes: wire numbers; read_s: CLOCK_BOOTTIME of the
            agent when each row was read.
    """

    devices: Sequence[str]
    units: Sequence[int]
    modes: Sequence[int]
    read_s: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """All that is known of a bank at one moment.

    Attributes:
        wish_generation: the agent order that first carried the flip's present wish.
        report_generation: the agent order that the report answers.
        grant_generation: the newest grant's generation.
        is_settled: the newest grant is proven by the meter, and no lower one is still to be issued.
        ordered: what the bank is ordered to, by point.
        pods: what the pods of its node show; None where workloads are the agent's own.
    """

    wish_generation: int
    report_generation: int
    grant_generation: int
    report: orders.BankReport
    rows: DeviceRows | None
    is_settled: bool
    ordered: tuple[orders.PointOrder, ...]
    pods: PodsSeen | None = None

    @property
    def is_applied(self) -> bool:
        """Tell whether every device was read back at the points of the present wish."""
        return (
            self.report_generation >= self.wish_generation > 0
            and self.report.applied_generation == self.grant_generation > 0
            and not self.report.has_in_flight
        )


def evidence_for(model: BankModel, flip: Flip, seen: Sighting, *, event_id: str, now_s: float) -> FlipEvent | None:
    """Return the next event that the sighting supports, None where there is none yet."""
    match flip.phase:
        case Phase.DRAINING:
            # Workloads under the agent drain inside their own stop grace: being told to stop is how they finish. A pod may refuse to go.
            return Drained(event_id=event_id, at_s=now_s) if _is_drained(flip, seen.pods) else None
        case Phase.RELEASED:
            return Released(event_id=event_id, at_s=now_s) if _is_released(model, flip, seen) else None
        case Phase.SETTLING if flip.watts is WattState.GIVEN_BACK:
            return WattsSettled(event_id=event_id, at_s=now_s) if seen.is_settled and seen.is_applied else None
        case Phase.STARTING | Phase.VERIFYING if _is_vacated(model, flip, seen):
            return Vacated(event_id=event_id, at_s=now_s)
        case Phase.STARTING:
            return _starting(model, flip, seen, event_id=event_id, now_s=now_s)
        case Phase.VERIFYING:
            return VerifiedRunning(event_id=event_id, at_s=now_s) if _is_running(model, flip, seen) else None
        case _:
            return None


def followers_count(model: BankModel, flip: Flip, seen: Sighting) -> int:
    """Return how many of an ASIC flip's devices show the destination, for a phase that timed out."""
    if model.kind is not DeviceKind.ASIC:
        return 0
    mode = ORDER_MODES[flip.destination.mode]
    if flip.phase is Phase.RELEASED:
        mode = orders.Mode.STANDBY
    if seen.rows is None:
        return 0
    at_mode = sum(1 for m in seen.rows.modes if m == mode.value)
    ordered = sum(p.count for p in seen.ordered if p.mode is mode)
    return max(0, min(flip.count, flip.count - (ordered - at_mode)))


def _is_drained(flip: Flip, pods: PodsSeen | None) -> bool:
    """Whether whoever holds the units was told to leave, and Kubernetes took it."""
    return pods is None or (pods.is_known and not pods.staying_units & (_units(flip) - _units_there(flip, pods)))


def _units(flip: Flip) -> frozenset[int]:
    return frozenset(int(unit) for unit in flip.unit_ids)


def _units_there(flip: Flip, pods: PodsSeen) -> frozenset[int]:
    """Return which units the pod that comes with the flip has already: somebody else let it go."""
    is_coming = flip.pod is not None and flip.destination.mode is Mode.INFERENCE
    return _units(flip) & pods.units.get(flip.pod, frozenset()) if is_coming and flip.pod else frozenset()


def _is_released(model: BankModel, flip: Flip, seen: Sighting) -> bool:
    if model.kind is DeviceKind.GPU:
        answers = seen.report_generation >= seen.wish_generation > 0
        units = _units(flip) if seen.pods is None else _units(flip) - _units_there(flip, seen.pods)
        # While the API has the old pod the scheduler counts its GPU as taken: another one lifted now would push a second pod out.
        is_gone = seen.pods is None or (seen.pods.is_known and not seen.pods.present_units & units)
        return answers and is_gone and units <= set(seen.report.released_units)
    # A machine that ignores sleep is no longer waited for by its agent, yet it mines on: it must not pass for asleep.
    ordered = sum(p.count for p in seen.ordered if p.mode is orders.Mode.MINING)
    mining = sum(p.count for p in seen.report.observed if p.mode is orders.Mode.MINING)
    return seen.is_applied and mining <= ordered


def _starting(model: BankModel, flip: Flip, seen: Sighting, *, event_id: str, now_s: float) -> FlipEvent | None:
    if seen.report_generation < seen.wish_generation:
        return None
    units = {int(u) for u in flip.unit_ids}
    workload = flip.destination.workload or ""
    if seen.pods is not None and flip.pod is not None and flip.destination.mode is Mode.INFERENCE:
        why = seen.pods.failures.get(flip.pod)
        if why is not None:
            return WorkloadFailed(event_id=event_id, at_s=now_s, reason=f"pod {flip.pod}: {why}")
    if model.kind is DeviceKind.GPU and workload:
        failed = next((f for f in seen.report.failed_workloads if f.unit in units and f.workload == workload), None)
        if failed is not None:
            return WorkloadFailed(event_id=event_id, at_s=now_s, reason=failed.reason or "its process ended")
    if seen.is_applied and "Applied" not in flip.evidence and not _stuck(model, flip, seen):
        return Applied(event_id=event_id, at_s=now_s)
    ready = {r.unit for r in seen.report.ready_workloads if r.workload == workload}
    is_pod_ready = seen.pods is None or flip.pod is None or flip.pod in seen.pods.ready
    is_ready = units <= ready and is_pod_ready
    if flip.destination.mode is Mode.INFERENCE and "WorkloadReady" not in flip.evidence and is_ready:
        return WorkloadReady(event_id=event_id, at_s=now_s)
    return None


def _stuck(model: BankModel, flip: Flip, seen: Sighting) -> frozenset[str]:
    """Return GPUs of the flip whose agent has given up on them: it waits for them no longer, yet they are not at their point."""
    if model.kind is not DeviceKind.GPU or seen.rows is None:
        return frozenset()
    units = {int(u) for u in flip.unit_ids}
    mine = {name for name, unit in zip(seen.rows.devices, seen.rows.units, strict=True) if unit in units}
    return frozenset(s.device for s in seen.report.stragglers if s.device in mine and s.reason != "in_flight")


def _is_vacated(model: BankModel, flip: Flip, seen: Sighting) -> bool:
    """Whether nobody has the units of a flip on its way back to inference, and who had them is gone: nobody comes with the flip."""
    if seen.pods is None or not seen.pods.is_known or not flip.may_stand_empty or _stuck(model, flip, seen):
        return False
    units = _units(flip)
    is_free = units <= set(seen.report.released_units) and not seen.pods.present_units & units
    return is_free and flip.pod not in seen.pods.units and seen.is_applied


def _empty_units(flip: Flip, seen: Sighting) -> frozenset[int]:
    """Return units of a flip that only changes a limit and that no pod has: nobody can be shown at work there, the limit can."""
    if flip.is_mode_flip or seen.pods is None or not seen.pods.is_known:
        return frozenset()
    return (_units(flip) & frozenset(seen.report.released_units)) - seen.pods.present_units


def _is_running(model: BankModel, flip: Flip, seen: Sighting) -> bool:
    if not seen.is_applied or seen.rows is None:
        return False
    mode = ORDER_MODES[flip.destination.mode].value
    after_s = seen.report.applied_boottime_s
    if model.kind is DeviceKind.GPU:
        units = {int(u) for u in flip.unit_ids}
        rows = [i for i, unit in enumerate(seen.rows.units) if unit in units]
        if _stuck(model, flip, seen):
            return False
        empty = _empty_units(flip, seen)
        return len(rows) == flip.count and all(
            seen.rows.read_s[i] >= after_s
            and (
                seen.rows.modes[i] == mode
                or (seen.rows.units[i] in empty and seen.rows.modes[i] == ORDER_MODES[Mode.STANDBY].value)
            )
            for i in rows
        )
    ordered = sum(p.count for p in seen.ordered if p.mode.value == mode)
    running = sum(1 for m, at_s in zip(seen.rows.modes, seen.rows.read_s, strict=True) if m == mode and at_s >= after_s)
    return running >= ordered
