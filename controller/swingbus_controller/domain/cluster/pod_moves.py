"""What the pods of one node shall do now: which miner is deleted, which pod evicted, which waiting pod let go, which miner made.

Decides the calls that are due, from how many units each tenant shall hold and which pods are there. Refuses to know: watts (a unit that
may start has them), the API, and what was asked before: it is called again with every change, so whatever a crash left undone is due
again, and what was done is not. Invariants: with every pod that still leaves counted, no tenant ever gets more units than it shall hold,
and nobody starts on GPUs that are not free by evidence; only miners are deleted; nobody is evicted but from a unit that a flip frees; only
a pod that is named is let go.

Units are counted, not addressed, where pods come: kubelet gives a pod any free GPU of its node (docs/adr/0004). Who leaves is addressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swingbus_controller.domain.cluster.facts import ClusterPod, PodKey, PodRef
from swingbus_controller.domain.planning.points import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitWish:
    """What one unit of the node shall hold.

    Attributes:
        tenant: MINING, INFERENCE, or STANDBY: nobody.
        may_start: its watts are held and its GPUs were seen free since the last tenant, so somebody may come.
        is_freed: a flip wants whoever is on it to leave.
        flip: the flip that wants it so, empty where it stands.
        pod: the waiting pod that is let in, or the one that leaves with the flip; None for a miner and where it stands.
        brings: who comes with the flip that frees the unit; where it is there already it need not leave.
    """

    unit: int
    tenant: Mode
    may_start: bool = False
    is_freed: bool = False
    flip: str = ""
    pod: PodRef | None = None
    brings: PodRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePod:
    """A pod that has GPUs of the node, is on its way there, or waits to be let go there.

    Attributes:
        tenant: MINING for a miner, INFERENCE for everybody else's.
        units: the units that the node's agent sees it hold; empty where that is not known yet.
        is_gated: it carries our gate and no other, so it holds nothing.
        is_leaving: it was deleted or evicted and is not gone: it holds what it held.
        made_s: when it was made, in Unix seconds; priority: its own.
        slot: the number in a miner's name; None for pods that are not our miners.
    """

    ref: PodRef
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

    pod: PodRef


@dataclass(frozen=True, slots=True)
class EvictPod:
    """Ask for a pod to be evicted; its disruption budget may say no."""

    pod: PodRef
    flip: str


@dataclass(frozen=True, slots=True)
class LiftGate:
    """Let a waiting pod go to the node, marked with its flip (empty: a place that stands empty)."""

    pod: PodRef
    flip: str


@dataclass(frozen=True, slots=True)
class MakeMiner:
    """Make the miner of a slot; one of that name that is still there is in the way, and that is right."""

    slot: int
    flip: str


PodMove = DeleteMiner | EvictPod | LiftGate | MakeMiner


def node_pod(pod: ClusterPod, *, miner_namespace: str, pool: str, units: Mapping[PodKey, frozenset[int]]) -> NodePod:
    """Return a pod as the moves of its node see it.

    Args:
        units: the units that the node's agent sees each pod hold.
    """
    is_miner = bool(miner_namespace) and pod.namespace == miner_namespace
    return NodePod(
        ref=pod.ref,
        tenant=Mode.MINING if is_miner else Mode.INFERENCE,
        gpu_count=pod.gpu_count,
        units=units.get(pod.key, frozenset()),
        is_gated=pod.is_gated,
        is_leaving=pod.is_leaving,
        priority=pod.priority,
        made_s=pod.made_unix_s,
        slot=pod.slot if is_miner and pod.miner_pool == pool else None,
    )


def pod_moves(
    wishes: Sequence[UnitWish], pods: Iterable[NodePod], *, unit_size: int, gpu_count: int | None = None
) -> tuple[PodMove, ...]:
    """Return the calls that are due on one node, those that free GPUs first.

    Args:
        wishes: one for each unit of the node.
        unit_size: GPUs of a unit; a miner has one unit.
        gpu_count: GPUs that the node offers now, where that is known: one that failed is offered to nobody.
    """
    here = sorted(pods, key=lambda pod: pod.ref.key)
    held = [pod for pod in here if not pod.is_gated]
    miners = [pod for pod in held if pod.tenant is Mode.MINING]
    offered_count = len(wishes) * unit_size if gpu_count is None else min(gpu_count, len(wishes) * unit_size)
    free_count = _free_count(wishes, held, unit_size, offered_count)
    lifts = _lifts(wishes, here, unit_size, free_count)
    free_count -= sum(pod.gpu_count for pod, _ in lifts)
    return (
        *(DeleteMiner(pod.ref) for pod in _surplus(wishes, held, unit_size)),
        *_evictions(wishes, held),
        *(LiftGate(pod.ref, flip) for pod, flip in lifts),
        *_miners(wishes, miners, unit_size, free_count),
    )


def _free_count(wishes: Sequence[UnitWish], held: Sequence[NodePod], unit_size: int, offered_count: int) -> int:
    """Return how many GPUs may be given away now: 0 where kubelet could choose one that is not free by evidence."""
    # What kubelet takes for free: one that leaves has its GPUs until it is gone from the API.
    unclaimed_count = offered_count - sum(pod.gpu_count for pod in held)
    # Who is on the way takes a GPU that is still told to be free: until the agent sees it there, that GPU is nobody else's.
    unseen_count = sum(max(0, pod.gpu_count - len(pod.units) * unit_size) for pod in held)
    shown_count = sum(wish.may_start for wish in wishes) * unit_size - unseen_count
    # The rest of a unit that is held in part is free for kubelet, and shown by nobody.
    rest_count = sum(max(0, len(pod.units) * unit_size - pod.gpu_count) for pod in held)
    if unclaimed_count - rest_count > shown_count:
        return 0  # somebody works on a GPU whose pod is gone, or a report is late
    return min(unclaimed_count, shown_count)


def _surplus(wishes: Sequence[UnitWish], held: Sequence[NodePod], unit_size: int) -> list[NodePod]:
    """Return our miners that have to go so that mining holds no more than it shall; who leaves already is counted as gone."""
    wanted = {wish.unit for wish in wishes if wish.tenant is Mode.MINING}
    staying = [pod for pod in held if pod.tenant is Mode.MINING and not pod.is_leaving]
    over_count = sum(pod.gpu_count for pod in staying) - len(wanted) * unit_size
    # Who was not let go may stay in a miner's place: that is no reason to keep a miner in another one that a flip frees.
    freed = {wish.unit for wish in wishes if wish.is_freed}
    others = {unit for pod in held if pod.tenant is not Mode.MINING and not pod.is_leaving for unit in pod.units}
    spare_count = len(wanted & others) * unit_size
    # Who is in somebody else's place first, then who matters least, then who came last.
    order = sorted(
        (pod for pod in staying if pod.slot is not None),
        key=lambda p: (p.units <= wanted, p.priority, -p.made_s, p.ref.key),
    )
    leavers: list[NodePod] = []
    for pod in order:
        if over_count <= 0 and (spare_count <= 0 or not pod.units & freed):
            continue
        leavers.append(pod)
        if over_count > 0:
            over_count -= pod.gpu_count
        else:
            spare_count -= pod.gpu_count
    return leavers


def _evictions(wishes: Sequence[UnitWish], held: Sequence[NodePod]) -> list[EvictPod]:
    """Return whose place a flip frees: who holds the unit, or is the pod that it names."""
    freed = [wish for wish in wishes if wish.is_freed]
    due: list[EvictPod] = []
    for pod in held:
        if pod.tenant is not Mode.INFERENCE or pod.is_leaving:
            continue
        here = [wish for wish in freed if wish.unit in pod.units or wish.pod == pod.ref]
        flip = next((wish.flip for wish in here if wish.brings != pod.ref), None)
        if flip is not None:
            due.append(EvictPod(pod.ref, flip))
    return due


def _lifts(
    wishes: Sequence[UnitWish], pods: Sequence[NodePod], unit_size: int, free_count: int
) -> list[tuple[NodePod, str]]:
    """Return which named pods may be let go now, in the order of the wishes, each with its flip."""
    named: dict[PodRef, list[UnitWish]] = {}
    for wish in wishes:
        if wish.pod is not None and not wish.is_freed:
            named.setdefault(wish.pod, []).append(wish)
    wanted = sum(wish.tenant is Mode.INFERENCE for wish in wishes) * unit_size
    room = wanted - sum(p.gpu_count for p in pods if p.tenant is Mode.INFERENCE and not p.is_gated)
    waiting = {pod.ref: pod for pod in pods if pod.is_gated and not pod.is_leaving and pod.tenant is Mode.INFERENCE}
    lifted: list[tuple[NodePod, str]] = []
    for ref, places in named.items():
        pod = waiting.get(ref)
        # A pod comes only when all that is wanted for it may start, and only when that is enough.
        may_all = all(wish.may_start and wish.tenant is Mode.INFERENCE for wish in places)
        if pod is None or not may_all or pod.gpu_count > len(places) * unit_size:
            continue
        if pod.gpu_count <= min(room, free_count):
            room -= pod.gpu_count
            free_count -= pod.gpu_count
            lifted.append((pod, next((wish.flip for wish in places if wish.flip), "")))
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
