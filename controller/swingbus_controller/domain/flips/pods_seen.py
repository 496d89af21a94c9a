"""What the pods of one node show of its units: the API's word joined with the agent's, neither believed alone.

Decides which units somebody stays on, who is ready, what has failed. Refuses to call anything free: that is the agent's evidence alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from swingbus_controller.domain.cluster.facts import ClusterPod, PodKey, PodRef
from swingbus_controller.domain.fleet.orders import UnitHolding
from swingbus_controller.domain.planning.points import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class PodsSeen:
    """The pods of a node.

    Attributes:
        is_known: whether the cluster was listed; before, nothing is shown.
        staying_units: units held by a pod that was not told to leave.
        present_units: units held by a pod that the API still has.
        units: the units of each pod that was not told to leave.
        ready: pods that the kubelet calls ready.
        failures: why a pod ended or cannot start, where that is known.
    """

    is_known: bool = False
    staying_units: frozenset[int] = frozenset()
    present_units: frozenset[int] = frozenset()
    units: Mapping[PodRef, frozenset[int]] = field(default_factory=dict)
    ready: frozenset[PodRef] = frozenset()
    failures: Mapping[PodRef, str] = field(default_factory=dict)


UNKNOWN = PodsSeen()


def units_of_pods(holdings: Iterable[UnitHolding]) -> dict[PodKey, frozenset[int]]:
    """Return which units the agent sees each pod hold; a holder that is no `namespace/name` is passed over."""
    units: dict[PodKey, set[int]] = {}
    for holding in holdings:
        for holder in holding.holders:
            namespace, slash, name = holder.partition("/")
            if slash and namespace and name:
                units.setdefault((namespace, name), set()).add(holding.unit)
    return {key: frozenset(found) for key, found in units.items()}


def tenants_of_units(holdings: Iterable[UnitHolding], workloads: Mapping[Mode, str]) -> dict[int, Mode]:
    """Return the tenant of each unit that pods of one tenant hold."""
    by_name = {name: mode for mode, name in workloads.items() if name}
    return {h.unit: by_name[h.workload] for h in holdings if h.holders and h.workload in by_name}


def free_units(holdings: Iterable[UnitHolding]) -> frozenset[int]:
    """Return units that no pod holds and on whose GPUs a later reading saw no process."""
    return frozenset(h.unit for h in holdings if not h.holders and not h.has_process)


def see_pods(pods: Collection[ClusterPod], units: Mapping[PodKey, frozenset[int]]) -> PodsSeen:
    """Return what a node's pods show."""
    staying: dict[PodRef, frozenset[int]] = {}
    present: set[int] = set()
    for pod in pods:
        held = units.get(pod.key, frozenset())
        if not pod.is_over:
            present |= held
            if not pod.is_leaving:
                staying[pod.ref] = held
    return PodsSeen(
        is_known=True,
        staying_units=frozenset(unit for held in staying.values() for unit in held),
        present_units=frozenset(present),
        units=staying,
        ready=frozenset(pod.ref for pod in pods if pod.is_ready and not pod.is_leaving),
        failures={pod.ref: pod.failure or "it ended" for pod in pods if pod.is_over},
    )
