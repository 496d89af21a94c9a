"""Which pods hold a bank's units, from what the kubelet says of pods and devices. Pure.

Decides to which unit a device belongs, whose tenant a pod is, and what cannot be told (slices, MIG, claims): then it refuses the whole
node, for a slice whose GPU is not known may lie on any of them. Refuses to know processes and watts: a unit that no pod holds is not
thereby free. Invariant: every whole GPU of the bank that the kubelet names is in exactly one holding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.workload import GpuUnit

_MOST_NAMED = 4  # pods in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDevice:
    """One device of one container, or one device of a claim (then `claim_driver` is set and `resource` empty)."""

    namespace: str
    pod: str
    resource: str
    device: str
    claim_driver: str = ""

    @property
    def holder(self) -> str:
        """Return the pod as people write it."""
        return f"{self.namespace}/{self.pod}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTenants:
    """How pods become the two workloads that the controller knows by name (promise S7)."""

    resource: str  # what pods ask for, such as nvidia.com/gpu
    miner_namespace: str  # its pods mine; everybody else's infer
    mining_workload: str
    inference_workload: str

    def workload_of(self, namespace: str) -> str:
        """Return the workload that pods of a namespace are."""
        return self.mining_workload if namespace == self.miner_namespace else self.inference_workload

    def mode_of(self, workload: str) -> Mode:
        """Return what a workload makes GPUs do."""
        return Mode.MINING if workload == self.mining_workload else Mode.INFERENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitHolding:
    """Who holds a unit; no holders: no pod that the kubelet knows of, which is not yet free."""

    holders: tuple[str, ...] = ()  # namespace/pod
    workload: str | None = None  # None without holders, or where they are of both tenants
    held_count: int = 0  # of the unit's GPUs
    remark: str = ""  # what an operator should know


def find_refusal(devices: Iterable[HeldDevice], tenants: PodTenants) -> str:
    """Return why pods of this node cannot be told apart by GPU, with the next step; empty where they can."""
    vendor = tenants.resource.partition("/")[0]
    for device in devices:
        what = _what_else(device, tenants.resource, vendor)
        if what:
            return (
                f"pod {device.holder} holds {what}, not a whole GPU: Swingbus moves whole GPUs only; "
                f"offer them as plain {tenants.resource} on this node, or take its bank out of the file"
            )
    return ""


def _what_else(device: HeldDevice, resource: str, vendor: str) -> str:
    if device.claim_driver:
        return (
            f"{device.device} by a claim of {device.claim_driver} (DRA)"
            if device.claim_driver == f"gpu.{vendor}"
            else ""
        )
    if device.resource.startswith(f"{vendor}/mig-") or (
        device.resource == resource and device.device.startswith("MIG-")
    ):
        return f"{device.device}, a MIG slice ({device.resource})"
    if device.resource not in (resource, f"{resource}.shared"):
        return ""
    if device.resource != resource or "::" in device.device:
        return f"{device.device}, a share of a GPU in time ({device.resource})"
    if not device.device.startswith("GPU-"):
        return f"{device.device or 'a device without a name'}, which is no GPU's UUID ({device.resource})"
    return ""


def hold_units(units: Sequence[GpuUnit], devices: Iterable[HeldDevice], tenants: PodTenants) -> dict[str, UnitHolding]:
    """Return who holds each unit, by its name. GPUs of no unit here are another bank's, or nobody's, and are passed over."""
    unit_of = {uuid: unit.name for unit in units for uuid in unit.gpu_uuids}
    held: dict[str, dict[str, list[HeldDevice]]] = {unit.name: {} for unit in units}
    places: dict[str, set[str]] = {}
    for device in devices:
        if device.resource != tenants.resource or device.device not in unit_of:
            continue
        name = unit_of[device.device]
        held[name].setdefault(device.device, []).append(device)
        places.setdefault(device.holder, set()).add(name)
    return {unit.name: _holding(unit, held[unit.name], places, tenants) for unit in units}


def _holding(
    unit: GpuUnit, held: dict[str, list[HeldDevice]], places: dict[str, set[str]], tenants: PodTenants
) -> UnitHolding:
    everyone = [device for each in held.values() for device in each]
    if not everyone:
        return UnitHolding()
    holders = tuple(sorted({device.holder for device in everyone}))
    workloads = {tenants.workload_of(device.namespace) for device in everyone}
    remarks = []
    if len(workloads) > 1:
        remarks.append("pods of both tenants hold it")
    for uuid, claims in held.items():
        if len({device.holder for device in claims}) > 1:
            remarks.append(
                f"{uuid} is listed for several pods: a kubelet before 1.34 lists pods that have ended; delete those"
            )
    for holder in holders:
        others = sorted(places[holder] - {unit.name})
        if others:
            remarks.append(f"{holder} also holds {', '.join(others[:_MOST_NAMED])}: they are free together")
    if len(held) < len(unit.gpu_uuids):
        remarks.append(f"{len(held)} of its {len(unit.gpu_uuids)} GPUs are held")
    return UnitHolding(
        holders=holders,
        workload=workloads.pop() if len(workloads) == 1 else None,
        held_count=len(held),
        remark="; ".join(remarks),
    )


def name_some(holders: Sequence[str]) -> str:
    """Return pods for a sentence, shortened where there are many."""
    more = len(holders) - _MOST_NAMED
    return ", ".join(holders[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
