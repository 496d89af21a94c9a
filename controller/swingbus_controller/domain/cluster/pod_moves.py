"""What the pods of one node shall do now: which miner is deleted, which pod evicted, which waiting pod let go, which miner made.

Decides the calls that are due, from how many units each tenant shall hold and which pods are there. Refuses to know: watts (a unit that
may start has them), the API, and what was asked before: it is called again with every change, so whatever a crash left undone is due
again, and what was done is not. Invariants: with every pod that still leaves counted, no tenant ever gets more units than it shall hold,
and nobody starts on GPUs that are not free by evidence; only miners are deleted; only a pod that a flip names is let go.

Units are counted, not addressed: kubelet gives a pod any free GPU of its node (docs/adr/0004). Who is known to hold a unit that another
tenant shall have leaves first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swingbus_controller.domain.planning.points import Mode

PodKey = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitWish:
    """What one unit of the node shall hold.

    Attributes:
        tenant: MINING, INFERENCE, or STANDBY: nobody.
        may_start: its watts are held and its GPUs were seen free since the last tenant, so somebody may come.
        flip: the flip that wants it so, empty where it stands.
        pod: the waiting pod that the flip lets in, None for a miner and where it stands.
    """

    unit: int
    tenant: Mode
    may_start: bool = False
    flip: str = ""
    pod: PodKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePod:
    """A pod that has GPUs of the node, is on its way there, or waits to be let go there.

    Attributes:
        tenant: MINING for a miner of ours, INFERENCE for everybody else's.
        units: the units that the node's agent sees it hold; empty where that is not known yet.
        is_gated: it carries our gate and no other, so it holds nothing.
        is_leaving: it was deleted or evicted and is not gone: it holds what it held.
        made_s: when it was made, in Unix seconds; priority: its own.
        slot: the number in a miner's name.
    """

    key: PodKey
    uid: str
    tenant: Mode
    gpu_count: int
    units: frozenset[int] = frozenset()
    is_gated: bool = False
    is_leaving: bool = False
    priority: int = 0
    made_s: float = 0.0
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteMiner:
    """Delete a miner, this life of it."""

    key: PodKey
    uid: str


@dataclass(frozen=True, slots=True)
class EvictPod:
    """Ask for a pod to be evicted; its disruption budget may say no."""

    key: PodKey
    uid: str


@dataclass(frozen=True, slots=True)
class LiftGate:
    """Let a waiting pod go to the node, marked with its flip."""

    key: PodKey
    uid: str
    flip: str


@dataclass(frozen=True, slots=True)
class MakeMiner:
    """Make the miner of a slot; one of that name that is still there is in the way, and that is right."""

    slot: int
    flip: str


PodMove = DeleteMiner | EvictPod | LiftGate | MakeMiner


def pod_moves(wishes: Sequence[UnitWish], pods: Iterable[NodePod], *, unit_size: int) -> tuple[PodMove, ...]:
    """Return the calls that are due on one node, those that free GPUs first.

    Args:
        wishes: one for each unit of the node.
        unit_size: GPUs of a unit; a miner has one unit.
    """
    here = sorted(pods, key=lambda pod: pod.key)
    held = [pod for pod in here if not pod.is_gated]
    leave: list[PodMove] = []
    for tenant in (Mode.MINING, Mode.INFERENCE):
        due = _leavers(wishes, [pod for pod in held if pod.tenant is tenant], tenant, unit_size)
        leave.extend(DeleteMiner(p.key, p.uid) if tenant is Mode.MINING else EvictPod(p.key, p.uid) for p in due)
    # GPUs that anybody has or is on the way to; one that leaves has them until it is gone.
    free_count = len(wishes) * unit_size - sum(pod.gpu_count for pod in held)
    # Each tenant's newcomers fit what is wished for it, and the wishes fit the node: together they fit too.
    lifts = _lifts(wishes, here, unit_size, free_count)
    miners = _miners(wishes, [pod for pod in held if pod.tenant is Mode.MINING], unit_size, free_count)
    return (*leave, *(LiftGate(pod.key, pod.uid, flip) for pod, flip in lifts), *miners)


def _leavers(wishes: Sequence[UnitWish], pods: Sequence[NodePod], tenant: Mode, unit_size: int) -> list[NodePod]:
    """Return who has to go so that a tenant holds no more than it shall; who leaves already is counted as gone."""
    wanted = {wish.unit for wish in wishes if wish.tenant is tenant}
    staying = [pod for pod in pods if not pod.is_leaving]
    over_count = sum(pod.gpu_count for pod in staying) - len(wanted) * unit_size
    # Who is in somebody else's place first, then who matters least, then who came last.
    order = sorted(staying, key=lambda p: (p.units <= wanted, p.priority, -p.made_s, p.key))
    leavers: list[NodePod] = []
    for pod in order:
        if over_count <= 0:
            break
        leavers.append(pod)
        over_count -= pod.gpu_count
    return leavers


def _lifts(
    wishes: Sequence[UnitWish], pods: Sequence[NodePod], unit_size: int, free_count: int
) -> list[tuple[NodePod, str]]:
    """Return which named pods may be let go now, oldest flip's first, each with its flip."""
    named: dict[PodKey, str] = {}
    for wish in wishes:
        if wish.tenant is Mode.INFERENCE and wish.may_start and wish.pod is not None:
            named.setdefault(wish.pod, wish.flip)
    # A pod comes only when all the units that its flip wants for it may start.
    for wish in wishes:
        if wish.pod is not None and not wish.may_start:
            named.pop(wish.pod, None)
    wanted = sum(wish.tenant is Mode.INFERENCE for wish in wishes) * unit_size
    room = wanted - sum(p.gpu_count for p in pods if p.tenant is Mode.INFERENCE and not p.is_gated)
    waiting = {pod.key: pod for pod in pods if pod.is_gated and not pod.is_leaving and pod.tenant is Mode.INFERENCE}
    lifted: list[tuple[NodePod, str]] = []
    for key, flip in named.items():
        pod = waiting.get(key)
        if pod is not None and pod.gpu_count <= min(room, free_count):
            room -= pod.gpu_count
            free_count -= pod.gpu_count
            lifted.append((pod, flip))
    return lifted


def _miners(wishes: Sequence[UnitWish], miners: Sequence[NodePod], unit_size: int, free_count: int) -> list[MakeMiner]:
    """Return which miners are missing and may be made now."""
    shall = [wish for wish in wishes if wish.tenant is Mode.MINING]
    have = sum(pod.gpu_count for pod in miners) // unit_size
    may_count = min(len(shall) - have, sum(wish.may_start for wish in shall), free_count // unit_size)
    taken = {pod.slot for pod in miners}
    free_slots = (slot for slot in range(len(wishes)) if slot not in taken)
    flips = sorted((wish.flip for wish in shall if wish.may_start), key=lambda flip: not flip)
    return [MakeMiner(slot, flip) for slot, flip, _ in zip(free_slots, flips, range(max(0, may_count)), strict=False)]
