"""The contract rig of `cluster_rigs` for the adapter over an API server, a double or a real one: the two differ by what makes time pass."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from swingbus.clock import SystemClock
from swingbus_controller.adapters.kubernetes.answers import Answer, ByteStream
from swingbus_controller.adapters.kubernetes.cluster import ClusterNames, KubernetesCluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.adapters.kubernetes.own_objects import CapacityPool
from swingbus_controller.adapters.kubernetes.resources import (
    CAPACITY_POOLS,
    DISRUPTION_BUDGETS,
    EVENTS,
    MERGE_PATCH,
    POD_TEMPLATES,
    PODS,
    ApiCall,
    Resource,
)
from swingbus_controller.domain.cluster.facts import HOSTNAME_LABEL, ClusterPod
from swingbus_controller.domain.cluster.pool_words import GpuCounts, PoolCondition, PoolWords, Truth
from tests.fakes.api_server.faults import FaultPlan, Refuse
from tests.fakes.api_server.store import Refusal
from tests.fakes.cluster_rigs import HOLLOW, NO_CLASS, OURS, POOL_LABELS, TEMPLATE, THEIRS, new_name, until
from tests.fakes.kube_rig import pod_body

_POOL = msgspec.json.Decoder(CapacityPool)
_GPU = "nvidia.com/gpu"


@dataclass
class Permit:
    """A permit that a test ends."""

    s: float = 3600.0

    def left_s(self) -> float:
        return self.s


@dataclass
class Heard:
    """A watch whose lines wait until somebody hears."""

    lines: ByteStream
    hears: asyncio.Event

    async def read_some(self) -> bytes:
        some = await self.lines.read_some()
        await self.hears.wait()
        return some


@dataclass
class CountingApi:
    """An API server, and every write that was sent to it; what its watches say is heard only while `hears` is set."""

    api: ApiConnection
    writes: list[ApiCall] = field(default_factory=list)
    hears: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.hears.set()

    async def call(self, call: ApiCall, *, timeout_s: float | None = None) -> Answer:
        if call.verb not in ("get", "list", "watch"):
            self.writes.append(call)
        return await self.api.call(call, timeout_s=timeout_s)

    @asynccontextmanager
    async def stream(self, call: ApiCall) -> AsyncIterator[ByteStream]:
        async with self.api.stream(call) as lines:
            yield Heard(lines, self.hears)


@dataclass
class ApiRig:
    """A cluster over an API server.

    Args:
        admin: may all; what others do goes this way.
        ours: the controller's own connection, which the faults strike.
        moment: what passes the time.
        make_past_admission: makes a template that the server would refuse; None where nobody can.
        priority_class: one that is there, for miners.
        has_classes: whether the server knows of priority classes by itself.
    """

    admin: ApiConnection
    ours: CountingApi
    faults: FaultPlan
    namespace: str
    miner_namespace: str
    nodes: tuple[str, str]
    moment: Callable[[], Awaitable[None]]
    make_past_admission: Callable[[str, dict[str, Any]], object] | None = None
    priority_class: str = ""
    has_classes: bool = False
    permit: Permit = field(default_factory=Permit)
    pool_name: str = field(default_factory=lambda: new_name("pool"))

    def __post_init__(self) -> None:
        self.names = ClusterNames(instance=new_name("rig"))
        self.cluster = KubernetesCluster(
            self.ours, self.permit, SystemClock(), names=self.names, chance=random.Random(1)
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make pool and template, follow the cluster, take the pool away."""
        await self._make_template(TEMPLATE, [{"name": "main", "image": "example.invalid/none:1"}])
        spec = {
            "site": "tx1",
            "container": "c07",
            "nodeSelector": POOL_LABELS,
            "caps": {"mining": 450, "inference": 700},
            "mining": {
                "enabled": True,
                "namespace": self.miner_namespace,
                "podTemplate": TEMPLATE,
                **({"priorityClassName": self.priority_class} if self.priority_class else {}),
            },
        }
        await self._create(CAPACITY_POOLS, "", {"metadata": {"name": self.pool_name}, "spec": spec})
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self.cluster.run())
            await until(self, lambda: self.cluster.state.is_synced)
            yield
            following.cancel()
        await self.admin.call(ApiCall(verb="delete", resource=CAPACITY_POOLS, name=self.pool_name))

    # What others do.

    async def make_pod(
        self, name: str, *, gates: tuple[str, ...] = (OURS,), labels: Mapping[str, str] | None = None, node: str = ""
    ) -> ClusterPod:
        made = await self._create(PODS, self.namespace, _pod(name, gates, labels or {}, node))
        return await self._seen(json.loads(made))

    async def make_foreign(self, name: str) -> None:
        await self._create(PODS, self.miner_namespace, pod_body(name, gates=(THEIRS,)))

    async def touch(self, pod: ClusterPod) -> ClusterPod:
        return await self._seen(json.loads(await self._note(pod)))

    def hear(self, is_hearing: bool) -> None:
        (self.ours.hears.set if is_hearing else self.ours.hears.clear)()

    async def note(self, pod: ClusterPod) -> None:
        await self._note(pod)

    async def follow_up(self, pod: ClusterPod) -> None:
        await self.drop(pod)
        await self._create(PODS, pod.namespace, _pod(pod.name, (OURS,), {}, ""))

    async def end(self, pod: ClusterPod) -> None:
        status = {"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]}
        await self._patch(PODS, pod.namespace, pod.name, {"status": status}, subresource="status")

    async def drop(self, pod: ClusterPod) -> None:
        call = ApiCall(
            verb="delete", resource=PODS, namespace=pod.namespace, name=pod.name, body={"gracePeriodSeconds": 0}
        )
        assert (await self.admin.call(call)).is_ok

    async def protect(self, labels: Mapping[str, str], *budgets: str, min_available: int) -> None:
        for name in budgets:
            spec = {"selector": {"matchLabels": dict(labels)}, "minAvailable": min_available}
            await self._create(DISRUPTION_BUDGETS, self.namespace, {"metadata": {"name": name}, "spec": spec})

    async def make_hollow_template(self) -> bool:
        if self.make_past_admission is not None:
            self.make_past_admission(HOLLOW, {"template": {"spec": {"containers": []}}})
            return True
        body = self._template(HOLLOW, [])
        answer = await self.admin.call(
            ApiCall(verb="create", resource=POD_TEMPLATES, namespace=self.miner_namespace, body=body)
        )
        assert answer.code == 422 and "template.spec.containers" in answer.status.message, answer.body
        return False

    async def drop_pool(self) -> None:
        assert (await self.admin.call(ApiCall(verb="delete", resource=CAPACITY_POOLS, name=self.pool_name))).is_ok

    def lack_class(self) -> None:
        if not self.has_classes:
            said = f'pods "miner" is forbidden: no PriorityClass with name {NO_CLASS} was found'
            self.faults.next("create", Refuse(Refusal(403, "Forbidden", said)))

    # Who may write, and what came of it.

    def forbid_writes(self) -> None:
        self.permit.s = 0.0

    def make_busy(self) -> None:
        for verb in ("create", "patch", "delete"):
            self.faults.next(verb, Refuse(Refusal(429, "TooManyRequests", "try again later", retry_after_s=1)))

    async def calm(self) -> None:
        self.faults.coming.clear()
        await asyncio.sleep(1.1)

    def writes_count(self) -> int:
        return len(self.ours.writes)

    async def told(self) -> PoolWords | None:
        answer = await self.admin.call(ApiCall(verb="get", resource=CAPACITY_POOLS, name=self.pool_name))
        status = _POOL.decode(answer.body).status
        if not status.observed_generation:
            return None
        return PoolWords(
            generation=status.observed_generation,
            epoch=status.epoch,
            gpus=GpuCounts(**msgspec.to_builtins(status.gpus)),
            waiting_pods=status.waiting.pods,
            waiting_gpus=status.waiting.gpus,
            conditions=tuple(
                PoolCondition(type=each.type, truth=Truth(each.status), reason=each.reason, message=each.message)
                for each in status.conditions
            ),
        )

    async def events_count(self, namespace: str) -> int:
        listing = ApiCall(verb="list", resource=EVENTS, namespace=namespace)
        items = json.loads((await self.admin.call(listing)).body)["items"]
        return sum(each.get("reportingInstance") == self.names.instance for each in items)

    async def pass_time(self) -> None:
        await self.moment()

    async def _seen(self, made: dict[str, Any]) -> ClusterPod:
        """Return a pod as the copy shows it once it knows this state of it, or a newer one."""
        meta = made["metadata"]
        key, pods = (meta["namespace"], meta["name"]), self.cluster.state.pods

        def is_seen() -> bool:
            return (
                key in pods and pods[key].uid == meta["uid"] and int(pods[key].revision) >= int(meta["resourceVersion"])
            )

        await until(self, is_seen)
        return pods[key]

    async def _note(self, pod: ClusterPod) -> bytes:
        note = {"metadata": {"annotations": {"example.com/note": new_name("note")}}}
        return await self._patch(PODS, pod.namespace, pod.name, note)

    async def _make_template(self, name: str, containers: list[dict[str, Any]]) -> None:
        await self._create(POD_TEMPLATES, self.miner_namespace, self._template(name, containers))

    def _template(self, name: str, containers: list[dict[str, Any]]) -> dict[str, Any]:
        spec = {"containers": containers, "terminationGracePeriodSeconds": 2}
        template = {"metadata": {"labels": {"app": "miner"}}, "spec": spec}
        return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}

    async def _create(self, resource: Resource, namespace: str, body: dict[str, Any]) -> bytes:
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        answer = await self.admin.call(ApiCall(verb="create", resource=resource, namespace=namespace, body=body))
        assert answer.code == 201, answer.body
        return answer.body

    async def _patch(
        self, resource: Resource, namespace: str, name: str, body: dict[str, Any], *, subresource: str = ""
    ) -> bytes:
        call = ApiCall(
            verb="patch",
            resource=resource,
            namespace=namespace,
            name=name,
            subresource=subresource,
            content_type=MERGE_PATCH,
            body=body,
        )
        answer = await self.admin.call(call)
        assert answer.is_ok, answer.body
        return answer.body


def _pod(name: str, gates: tuple[str, ...], labels: Mapping[str, str], node: str) -> dict[str, Any]:
    """Return a pod of one GPU."""
    body = pod_body(name, gates=gates, labels=dict(labels), terminationGracePeriodSeconds=2)
    body["spec"]["containers"][0]["resources"] = {"limits": {_GPU: "1"}}
    if node:
        body["spec"]["nodeSelector"] = {HOSTNAME_LABEL: node}
    return body
