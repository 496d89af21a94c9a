"""Which waiting pods could go where: what the planner is told of demand, and who is first in line at each bank.

Decides by labels, taints, sizes and room in GPUs. Refuses to know watts and prices: the planner chooses among what fits. Invariants: a pod
is demand of one inference class at most; a pod of several units has one bank kept for it, and who asks for less does not go before it
there; who fits nowhere is no demand and is told why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod, PodRef, Pool, why_not_on


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRoom:
    """A bank that pods may be sent to.

    Attributes:
        used_count: GPUs of pods that serve here or are on their way, those that leave not counted.
        free_count: GPUs that no pod of inference has or is promised, miners' among them.
        idle_count: of them, those that nobody works on.
    """

    bank: str
    inference_class: str
    unit_size: int
    device_count: int
    node: ClusterNode
    pool: Pool
    used_count: int = 0
    free_count: int = 0
    idle_count: int = 0


@dataclass(slots=True, kw_only=True)
class Placing:
    """Where pods could go.

    Attributes:
        line: by bank, pods that may come there, first in line first.
        at_most: by bank, GPUs that somebody would use there, those in use among them.
        demand: by inference class, GPUs in use and asked for.
        unfit: why a pod fits nowhere.
    """

    line: dict[str, list[ClusterPod]] = field(default_factory=dict)
    at_most: dict[str, int] = field(default_factory=dict)
    demand: dict[str, int] = field(default_factory=dict)
    unfit: dict[PodRef, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Room:
    room: BankRoom
    left_count: int
    idle_count: int
    kept_count: int = 0  # for pods of several units


def place_pods(
    waiting: Iterable[ClusterPod], rooms: Sequence[BankRoom], namespaces: Mapping[str, Mapping[str, str]]
) -> Placing:
    """Return where waiting pods could go.

    Args:
        waiting: pods that only our gate holds; pods that a flip brings already are left out.
        namespaces: labels by name, of enrolled namespaces only.
    """
    placing = Placing()
    places = [_Room(room, room.free_count, room.idle_count) for room in sorted(rooms, key=lambda room: room.bank)]
    for place in places:
        room = place.room
        placing.at_most[room.bank] = room.used_count
        placing.demand[room.inference_class] = placing.demand.get(room.inference_class, 0) + room.used_count
        placing.line[room.bank] = []
    for pod in sorted(waiting, key=lambda pod: pod.rank):
        fitting, why = _fitting(pod, places, namespaces)
        if not fitting:
            placing.unfit[pod.ref] = why
            continue
        _place(pod, fitting, placing)
    for place in places:
        room = place.room
        # Who is one of many for this place may come here or elsewhere: as many as there is room for.
        small_count = sum(pod.gpu_count for pod in placing.line[room.bank] if pod.gpu_count <= room.unit_size)
        placing.at_most[room.bank] += min(place.kept_count + small_count, room.free_count)
    return placing


def _fitting(
    pod: ClusterPod, places: Sequence[_Room], namespaces: Mapping[str, Mapping[str, str]]
) -> tuple[list[_Room], str]:
    if pod.gang:
        return [], f"GangUnsupported: {pod.gang}"
    if pod.queue:
        return [], f"QueueUnsupported: queue {pod.queue} holds quota for it while we hold the gate"
    labels = namespaces.get(pod.namespace)
    if labels is None:
        return [], f"namespace {pod.namespace} is not enrolled"
    why = "no pool serves its namespace"
    fitting: list[_Room] = []
    for place in places:
        room = place.room
        if not room.pool.serves(labels):
            continue
        if pod.gpu_count % room.unit_size or pod.gpu_count > room.device_count:
            why = f"it asks for {pod.gpu_count} GPUs; {room.node.name} has {room.device_count}, in units of {room.unit_size}"
        elif reason := why_not_on(pod, room.node):
            why = reason
        else:
            fitting.append(place)
    return fitting, why


def _place(pod: ClusterPod, fitting: Sequence[_Room], placing: Placing) -> None:
    inference_class = fitting[0].room.inference_class
    roomy = [place for place in fitting if place.left_count >= pod.gpu_count]
    if roomy:
        # Where most is idle nobody has to leave; of equals, the fullest, so that large pods still find a whole node.
        best = min(roomy, key=lambda p: (-min(p.idle_count, pod.gpu_count), p.left_count - pod.gpu_count, p.room.bank))
        best.left_count -= pod.gpu_count
        best.idle_count = max(0, best.idle_count - pod.gpu_count)
        inference_class = best.room.inference_class
        if pod.gpu_count > best.room.unit_size:
            best.kept_count += pod.gpu_count
            placing.line[best.room.bank].append(pod)
    if pod.gpu_count <= fitting[0].room.unit_size:
        for place in fitting:
            if place.room.inference_class == inference_class:
                placing.line[place.room.bank].append(pod)
    placing.demand[inference_class] += pod.gpu_count
