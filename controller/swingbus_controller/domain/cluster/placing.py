"""Which waiting pods could go where: what the planner is told of demand, and who is first in line at each bank.

Decides by labels, taints, sizes and room in GPUs. Refuses to know watts and prices: the planner chooses among what fits. Invariants: a pod
is demand of one inference class at most; a pod of several units has one bank kept for it, and who asks for less does not go before it
there; who fits nowhere is no demand and is told why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
        unplaced: pods of several units that fit a bank, none of which has room for them now, and the class that they ask for.
    """

    line: dict[str, list[ClusterPod]] = field(default_factory=dict)
    at_most: dict[str, int] = field(default_factory=dict)
    demand: dict[str, int] = field(default_factory=dict)
    unfit: dict[PodRef, str] = field(default_factory=dict)
    unplaced: dict[PodRef, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Room:
    room: BankRoom
    left_count: int
    idle_count: int
    kept_count: int = 0  # for pods of several units
    small_count: int = 0  # GPUs of pods of one unit that may come
    groups: list[int] = field(default_factory=list)  # of pods of one unit, by their number
    is_held: bool = False  # for a pod that does not fit yet: what gets free here is not given away one by one


@dataclass(slots=True)
class _Group:
    """Pods that are alike in everything that says where they fit; a thousand replicas are looked at once."""

    pods: list[ClusterPod]
    fitting: list[_Room]
    why: str


def place_pods(
    waiting: Iterable[ClusterPod],
    rooms: Sequence[BankRoom],
    namespaces: Mapping[str, Mapping[str, str]],
    *,
    holding: Collection[PodRef] = (),
) -> Placing:
    """Return where waiting pods could go.

    Args:
        waiting: pods that only our gate holds; pods that a flip brings already are left out.
        namespaces: labels by name, of enrolled namespaces only.
        holding: pods of several units for which a bank is held although it has no room for them yet.
    """
    placing = Placing()
    places = [_Room(room, room.free_count, room.idle_count) for room in sorted(rooms, key=lambda room: room.bank)]
    for place in places:
        room = place.room
        placing.demand[room.inference_class] = placing.demand.get(room.inference_class, 0) + room.used_count
    groups = _grouped(waiting, places, namespaces)
    large: list[tuple[ClusterPod, _Group]] = []
    for number, group in enumerate(groups):
        if not group.fitting:
            placing.unfit.update((pod.ref, group.why) for pod in group.pods)
        elif group.pods[0].gpu_count > group.fitting[0].room.unit_size:
            large += [(pod, group) for pod in group.pods]
        else:
            _offer(number, group, placing)
    kept = _keep_places(sorted(large, key=lambda each: each[0].rank), placing, holding)
    lines: dict[tuple[int, ...], list[ClusterPod]] = {}
    for place in places:
        room = place.room
        asked_count = 0 if place.is_held else min(place.kept_count + place.small_count, room.free_count)
        placing.at_most[room.bank] = min(room.used_count + asked_count, room.device_count)
        key = tuple(place.groups)
        if key not in lines:
            lines[key] = sorted((pod for number in key for pod in groups[number].pods), key=lambda pod: pod.rank)
        own = kept.get(room.bank)
        # Most banks have the same pods in line: they share one list, which nobody changes.
        placing.line[room.bank] = sorted((*own, *lines[key]), key=lambda pod: pod.rank) if own else lines[key]
    return placing


def _grouped(
    waiting: Iterable[ClusterPod], places: Sequence[_Room], namespaces: Mapping[str, Mapping[str, str]]
) -> list[_Group]:
    groups: dict[tuple[object, ...], _Group] = {}
    for pod in waiting:
        selector = tuple(sorted(pod.node_selector.items()))
        key = (pod.namespace, pod.gpu_count, pod.gang, pod.queue, selector, pod.tolerations, pod.only_nodes)
        group = groups.get(key)
        if group is None:
            fitting, why = _fitting(pod, places, namespaces)
            groups[key] = group = _Group([], fitting, why)
        group.pods.append(pod)
    return sorted(groups.values(), key=lambda group: min(pod.rank for pod in group.pods))


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


def _offer(number: int, group: _Group, placing: Placing) -> None:
    """Offer pods of one unit to every bank of one class: where there is most room for them."""
    room_left: dict[str, int] = {}
    for place in group.fitting:
        name = place.room.inference_class
        room_left[name] = room_left.get(name, 0) + place.left_count
    chosen = max(sorted(room_left), key=lambda name: room_left[name])
    asked_count = sum(pod.gpu_count for pod in group.pods)
    placing.demand[chosen] += asked_count
    for place in group.fitting:
        if place.room.inference_class == chosen:
            place.groups.append(number)
            place.small_count += asked_count


def _keep_places(
    large: Iterable[tuple[ClusterPod, _Group]], placing: Placing, holding: Collection[PodRef]
) -> dict[str, list[ClusterPod]]:
    """Keep one bank for each pod of several units; who finds no room now is demand all the same, and may have a bank held for it."""
    kept: dict[str, list[ClusterPod]] = {}
    for pod, group in large:
        roomy = [place for place in group.fitting if place.left_count >= pod.gpu_count]
        if not roomy:
            best = max(group.fitting, key=lambda place: (place.left_count, place.room.bank))
            placing.demand[best.room.inference_class] += pod.gpu_count
            placing.unplaced[pod.ref] = best.room.inference_class
            if pod.ref in holding:
                best.is_held = True
                kept.setdefault(best.room.bank, []).append(pod)
            continue
        # Where most is idle nobody has to leave; of equals, the fullest, so that the largest still find a whole node.
        best = min(roomy, key=lambda p: (-min(p.idle_count, pod.gpu_count), p.left_count - pod.gpu_count, p.room.bank))
        best.left_count -= pod.gpu_count
        best.idle_count = max(0, best.idle_count - pod.gpu_count)
        best.kept_count += pod.gpu_count
        kept.setdefault(best.room.bank, []).append(pod)
        placing.demand[best.room.inference_class] += pod.gpu_count
    return kept
