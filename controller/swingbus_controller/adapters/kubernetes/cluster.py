"""One cluster: a copy of what is there by four list-watches, and the calls that move pods. Implements `ports.cluster.Cluster`.

Decides nothing about pods. Invariants: the copy is `is_synced` only when every kind was listed whole; one watch per kind; nothing is
written but by the permit's holder.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from swingbus.clock import Clock
from swingbus.faults import SwingbusError
from swingbus.logs import get_logger
from swingbus_controller.adapters.kubernetes.answers import KubeApi
from swingbus_controller.adapters.kubernetes.facts import to_node, to_pod, to_pool
from swingbus_controller.adapters.kubernetes.listwatch import ListWatch
from swingbus_controller.adapters.kubernetes.objects import KubeObject, Namespace, Node, Pod
from swingbus_controller.adapters.kubernetes.own_objects import CapacityPool
from swingbus_controller.adapters.kubernetes.pod_calls import KubernetesCalls
from swingbus_controller.adapters.kubernetes.resources import CAPACITY_POOLS, NAMESPACES, NODES, PODS, Resource
from swingbus_controller.adapters.kubernetes.writing import WritePermit, Writer
from swingbus_controller.domain.cluster.facts import PodRef
from swingbus_controller.domain.cluster.mirror import Gone, Seen
from swingbus_controller.domain.cluster.state import ClusterState

T = TypeVar("T", bound=KubeObject)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNames:
    """What things are called in this cluster, as the chart was installed.

    Attributes:
        resource: what pods ask for; gate: our scheduling gate; enrolled_label, enrolled_value: of namespaces whose pods are gated.
        instance: who we are in events.
    """

    resource: str = "nvidia.com/gpu"
    gate: str = "swingbus.io/power"
    enrolled_label: str = "swingbus.io/power-gate"
    enrolled_value: str = "enabled"
    instance: str = "swingbus-controller"


class KubernetesCluster:
    """Start `run` in a task group."""

    def __init__(
        self, api: KubeApi, permit: WritePermit, clock: Clock, *, names: ClusterNames, chance: random.Random
    ) -> None:
        self._api, self._permit, self._clock, self._names, self._chance = api, permit, clock, names, chance
        self._log = get_logger()
        self._changed = asyncio.Event()
        self._told: dict[str, str] = {}
        self._pods: dict[tuple[str, str], Pod] = {}
        self._pools: dict[str, CapacityPool] = {}
        self._watches: list[ListWatch[Any]] = []
        self.state = ClusterState(permit_left_s=permit.left_s, troubles=self.troubles)
        self.calls = KubernetesCalls(
            Writer(api, permit, clock), clock, names=names, pod_of=self._pods.get, pool_of=self._pools.get
        )

    def may_write_s(self) -> float:
        return self._permit.left_s()

    async def wait_changed(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._follow(tasks, PODS, Pod, self._see_pod, self._lose_pod)
            self._follow(tasks, NODES, Node, self._see_node, lambda node: self.state.lose_node(node.metadata.name))
            self._follow(tasks, CAPACITY_POOLS, CapacityPool, self._see_pool, self._lose_pool)
            self._follow(tasks, NAMESPACES, Namespace, self._see_namespace, self._lose_namespace)
            tasks.create_task(self._sync())

    def troubles(self) -> dict[str, str]:
        """Return by kind what last went wrong with following it, those that are well left out."""
        kinds = ("pods", "nodes", "capacitypools", "namespaces")
        return {kind: each.last_trouble for kind, each in zip(kinds, self._watches, strict=False) if each.last_trouble}

    def _follow(
        self,
        tasks: asyncio.TaskGroup,
        resource: Resource,
        kind: type[T],
        see: Callable[[T], None],
        lose: Callable[[T], None],
    ) -> None:
        watch = ListWatch(self._api, resource, kind, clock=self._clock, chance=self._chance)
        self._watches.append(watch)
        tasks.create_task(watch.run())
        tasks.create_task(self._take(watch, see, lose))

    async def _take(self, watch: ListWatch[T], see: Callable[[T], None], lose: Callable[[T], None]) -> None:
        async for change in watch.changes():
            before = self.state.revision_count
            match change:
                case Seen(obj=obj):
                    self._see(obj, see)
                case Gone(obj=obj):
                    self._told.pop(obj.uid, None)
                    lose(obj)
            if self.state.revision_count != before:
                self._changed.set()

    def _see(self, obj: T, see: Callable[[T], None]) -> None:
        try:
            see(obj)
            self._told.pop(obj.uid, None)
        except SwingbusError as fault:
            # One object that says nonsense must not hide the others; it is told once.
            if self._told.get(obj.uid) != str(fault):
                self._told[obj.uid] = str(fault)
                self._log.warning("object_not_understood", object="/".join(filter(None, obj.key)), message=str(fault))

    async def _sync(self) -> None:
        for watch in self._watches:
            await watch.wait_synced()
        # Listed is not yet taken: what was listed waits in line.
        while any(watch.pending_count for watch in self._watches):
            await self._clock.sleep(0.01)
        self.state.is_synced = True
        self.state.revision_count += 1
        self._changed.set()
        self._log.info(
            "cluster_seen", pods=len(self.state.pods), nodes=len(self.state.nodes), pools=len(self.state.pools)
        )

    def _see_pod(self, pod: Pod) -> None:
        known = to_pod(pod, resource=self._names.resource, gate=self._names.gate)
        if known is None:
            return
        self._pods[pod.key] = pod
        self.state.see_pod(known)

    def _lose_pod(self, pod: Pod) -> None:
        kept = self._pods.get(pod.key)
        if kept is not None and kept.uid == pod.uid:
            del self._pods[pod.key]
        namespace, name = pod.key
        self.state.lose_pod(PodRef(namespace=namespace, name=name, uid=pod.uid))

    def _see_node(self, node: Node) -> None:
        self.state.see_node(to_node(node, resource=self._names.resource))

    def _see_pool(self, pool: CapacityPool) -> None:
        self._pools[pool.metadata.name] = pool
        self.state.see_pool(to_pool(pool))

    def _lose_pool(self, pool: CapacityPool) -> None:
        self._pools.pop(pool.metadata.name, None)
        self.state.lose_pool(pool.metadata.name)

    def _see_namespace(self, namespace: Namespace) -> None:
        labels = namespace.metadata.labels
        if labels.get(self._names.enrolled_label) == self._names.enrolled_value and not namespace.is_deleting:
            self.state.see_namespace(namespace.metadata.name, labels)
        else:
            self.state.lose_namespace(namespace.metadata.name)

    def _lose_namespace(self, namespace: Namespace) -> None:
        self.state.lose_namespace(namespace.metadata.name)
