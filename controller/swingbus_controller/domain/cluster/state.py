"""The cluster as it was last seen: pods that ask for GPUs, nodes, pools, namespaces, each found by what it is asked for.

Decides nothing. Refuses to know where changes come from. Invariant: every index says the same as the collections; a change that comes
twice changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod, PodKey, PodRef, Pool

_NONE: Mapping[PodKey, ClusterPod] = {}


@dataclass(slots=True)
class ClusterState:
    """One cluster. `is_synced` says whether every kind was listed since the start: before, absence means nothing.

    Attributes:
        permit_left_s: tells for how long this controller may write; asked, since it ends by itself.
        troubles: tells by kind (pods, nodes, ...) why it is not followed just now; empty where all is well.
        revision_count: grows with every change, so that a reader can tell whether to look again.
        namespaces: labels by name; enrolled ones only are served.
    """

    is_synced: bool = False
    permit_left_s: Callable[[], float] = lambda: math.inf
    troubles: Callable[[], Mapping[str, str]] = dict
    revision_count: int = 0
    pods: dict[PodKey, ClusterPod] = field(default_factory=dict)
    nodes: dict[str, ClusterNode] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict)
    # Grows with every change of a node, its pods, or of what concerns all nodes.
    _node_versions: dict[str, int] = field(default_factory=dict)
    _common_version: int = 0
    _on_node: dict[str, dict[PodKey, ClusterPod]] = field(default_factory=dict)
    _free: dict[PodKey, ClusterPod] = field(default_factory=dict)  # bound to no node: waiting or under way

    def see_pod(self, pod: ClusterPod) -> None:
        """Take a pod as it is now."""
        if self.pods.get(pod.key) == pod:
            return
        self._forget(pod.key)
        self.pods[pod.key] = pod
        if place := pod.node or pod.aimed_at:
            self._on_node.setdefault(place, {})[pod.key] = pod
        if not pod.node:
            self._free[pod.key] = pod
        self._changed_at(place)

    def lose_pod(self, ref: PodRef) -> None:
        """Take that a life of a pod is over; its successor under the same name stays."""
        known = self.pods.get(ref.key)
        if known is not None and known.uid == ref.uid:
            self._forget(ref.key)
            self._changed_at("")

    def see_node(self, node: ClusterNode) -> None:
        """Take a node as it is now."""
        if self.nodes.get(node.name) != node:
            self.nodes[node.name] = node
            self._changed_at(node.name)

    def lose_node(self, name: str) -> None:
        """Take that a node's object is gone; its pods are told as gone each for itself."""
        if self.nodes.pop(name, None) is not None:
            self._changed_at(name)

    def see_pool(self, pool: Pool) -> None:
        """Take a pool as it is now."""
        if self.pools.get(pool.name) != pool:
            self.pools[pool.name] = pool
            self._changed_everywhere()

    def lose_pool(self, name: str) -> None:
        """Take that a pool was deleted."""
        if self.pools.pop(name, None) is not None:
            self._changed_everywhere()

    def see_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        """Take an enrolled namespace as it is now."""
        if self.namespaces.get(name) != labels:
            self.namespaces[name] = labels
            self.revision_count += 1

    def lose_namespace(self, name: str) -> None:
        """Take that a namespace is gone, or enrolled no more."""
        if self.namespaces.pop(name, None) is not None:
            self.revision_count += 1

    def pod(self, ref: PodRef) -> ClusterPod | None:
        """Return a pod if this very life of it is still there."""
        known = self.pods.get(ref.key)
        return known if known is not None and known.uid == ref.uid else None

    def pods_on(self, node: str) -> Collection[ClusterPod]:
        """Return pods that are bound to a node or let go to it, those that are over among them."""
        return self._on_node.get(node, _NONE).values()

    def version_of(self, node: str) -> tuple[int, int, bool]:
        """Return what changes whenever a look at a node could show something else."""
        return self._node_versions.get(node, 0), self._common_version, self.is_synced

    def unbound(self) -> Collection[ClusterPod]:
        """Return pods that no node has: waiting, or let go and not yet scheduled."""
        return self._free.values()

    def _forget(self, key: PodKey) -> None:
        known = self.pods.pop(key, None)
        if known is None:
            return
        self._free.pop(key, None)
        if place := known.node or known.aimed_at:
            here = self._on_node[place]
            del here[key]
            if not here:
                del self._on_node[place]
            self._changed_at(place)

    def _changed_at(self, node: str) -> None:
        self.revision_count += 1
        if node:
            self._node_versions[node] = self._node_versions.get(node, 0) + 1

    def _changed_everywhere(self) -> None:
        self.revision_count += 1
        self._common_version += 1
