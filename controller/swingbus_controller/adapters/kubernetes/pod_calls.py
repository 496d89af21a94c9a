"""The calls that move pods, as the part that decides asks for them. Implements `ports.cluster.PodCalls` over the guarded writes.

Decides how a miner is made of its template and what marks a pod carries. Invariants: every call names the life that it means; a lift
narrows the pod to one node by labels that never change, in the patch that takes the gate away; a miner never preempts anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from swingbus.clock import Clock
from swingbus.faults import Forbidden, InvalidInput
from swingbus_controller.adapters.kubernetes.facts import (
    FLIP_MARK,
    LIFTED_MARK,
    MINING_TENANT,
    NODE_MARK,
    POOL_LABEL,
    SLOT_LABEL,
    TENANT_LABEL,
    api_time,
)
from swingbus_controller.adapters.kubernetes.objects import DatedCondition, KubeObject, Meta, Pod
from swingbus_controller.adapters.kubernetes.own_objects import (
    CapacityPool,
    PoolGpus,
    PoolStatus,
    PoolWaiting,
    PoolWatts,
)
from swingbus_controller.adapters.kubernetes.pod_writes import (
    Accepted,
    Adopted,
    BudgetBlocked,
    Created,
    Lifted,
    LiftRefused,
    NameTaken,
    OtherPod,
    PodGone,
    PodLife,
    SeveralBudgets,
    StaleView,
    create_pod,
    delete_pod,
    evict_pod,
    lift_gate,
)
from swingbus_controller.adapters.kubernetes.resources import CAPACITY_POOLS, NODES, POD_TEMPLATES, PODS
from swingbus_controller.adapters.kubernetes.telling import Note, PoolGone, StalePool, Written, tell, write_pool_status
from swingbus_controller.adapters.kubernetes.writing import Writer
from swingbus_controller.domain.cluster.facts import HOSTNAME_LABEL, ClusterNode, ClusterPod, PodRef, Pool
from swingbus_controller.domain.cluster.pool_words import PoolWords, Story
from swingbus_controller.ports.cluster import CallAnswer, CallOutcome

if TYPE_CHECKING:
    from swingbus_controller.adapters.kubernetes.cluster import ClusterNames

_TAKEN = CallOutcome(answer=CallAnswer.TAKEN)
_GONE = CallOutcome(answer=CallAnswer.GONE)
_STALE = CallOutcome(answer=CallAnswer.STALE)
_TEMPLATE_KEPT_S = 10.0
_RESOURCES = {"Pod": PODS, "Node": NODES, "CapacityPool": CAPACITY_POOLS}


class _Template(KubeObject, frozen=True, rename="camel", kw_only=True):
    """A PodTemplate; what is in it is the API server's to check."""

    template: dict[str, Any]


_TEMPLATE = msgspec.json.Decoder(_Template)


class KubernetesCalls:
    """Writes of one cluster."""

    def __init__(
        self,
        writer: Writer,
        clock: Clock,
        *,
        names: ClusterNames,
        pod_of: Callable[[tuple[str, str]], Pod | None],
        pool_of: Callable[[str], CapacityPool | None],
    ) -> None:
        """Args:
        pod_of, pool_of: the newest copy of an object, None where there is none.
        """
        self._writer, self._clock, self._names = writer, clock, names
        self._pod_of, self._pool_of = pod_of, pool_of
        self._templates: dict[tuple[str, str], tuple[float, _Template]] = {}

    async def delete_pod(self, pod: PodRef, *, grace_s: int | None) -> CallOutcome:
        match await delete_pod(self._writer, _life(pod), grace_s=grace_s):
            case Accepted():
                return _TAKEN
            case PodGone() | OtherPod():
                return _GONE
            case StaleView():
                return _STALE

    async def evict_pod(self, pod: PodRef, *, only_revision: str = "") -> CallOutcome:
        there = self._pod_of(pod.key)
        if there is not None and there.uid != pod.uid:
            return _GONE
        if there is not None and only_revision and there.revision != only_revision:
            return _STALE
        match await evict_pod(self._writer, _life(pod), revision=only_revision):
            case Accepted():
                return _TAKEN
            case PodGone() | OtherPod():
                return _GONE
            case StaleView():
                return _STALE
            case BudgetBlocked() as blocked:
                return CallOutcome(
                    answer=CallAnswer.BLOCKED,
                    detail=blocked.message,
                    budget=blocked.budget,
                    needed_count=blocked.needed_count,
                    healthy_count=blocked.healthy_count,
                    retry_after_s=blocked.retry_after_s,
                )
            case SeveralBudgets(message=message):
                return CallOutcome(answer=CallAnswer.BLOCKED, detail=message, is_for_ever=True)

    async def lift_gate(self, pod: ClusterPod, node: ClusterNode, pool: Pool, *, flip: str) -> CallOutcome:
        there = self._pod_of(pod.key)
        if there is None or there.uid != pod.uid:
            return _GONE
        if there.revision != pod.revision:
            return _STALE
        selector = {**pool.node_selector, HOSTNAME_LABEL: node.labels.get(HOSTNAME_LABEL, node.name)}
        missing = {key: value for key, value in selector.items() if key not in there.spec.node_selector}
        marks = {FLIP_MARK: flip, NODE_MARK: node.name, LIFTED_MARK: api_time(self._clock.now().timestamp())}
        lifted = await lift_gate(self._writer, there, gate=self._names.gate, node_selector=missing, annotations=marks)
        match lifted:
            case Lifted():
                return _TAKEN
            case LiftRefused(message=message):
                return CallOutcome(answer=CallAnswer.REFUSED, detail=message)
            case PodGone() | OtherPod():
                return _GONE
            case StaleView():
                return _STALE

    async def make_miner(self, pool: Pool, node: ClusterNode, *, slot: int, gpu_count: int, flip: str) -> CallOutcome:
        template = await self._template(pool)
        if template is None:
            return CallOutcome(
                answer=CallAnswer.REFUSED,
                detail=f"there is no PodTemplate {pool.miner_template} in namespace {pool.miner_namespace}: create it",
            )
        body = miner_body(
            template.template, pool, node, slot=slot, gpu_count=gpu_count, flip=flip, resource=self._names.resource
        )
        try:
            made = await create_pod(self._writer, body)
        except (Forbidden, InvalidInput) as fault:
            # Admission's no: a priority class that is missing, a quota, a policy, a template that this cluster does not take.
            return CallOutcome(answer=CallAnswer.REFUSED, detail=str(fault))
        match made:
            case Created() | Adopted():
                return _TAKEN
            case NameTaken(pod=other):
                return CallOutcome(
                    answer=CallAnswer.REFUSED,
                    detail=f"pod {pool.miner_namespace}/{other.metadata.name} is not ours; rename or delete it",
                )

    async def _template(self, pool: Pool) -> _Template | None:
        key = (pool.miner_namespace, pool.miner_template)
        known = self._templates.get(key)
        now_s = self._clock.monotonic_s()
        if known is not None and now_s - known[0] < _TEMPLATE_KEPT_S:
            return known[1]
        found = await self._writer.read(POD_TEMPLATES, _TEMPLATE, namespace=key[0], name=key[1])
        if found is not None:
            self._templates[key] = (now_s, found)
        return found

    async def write_pool(self, pool: Pool, words: PoolWords) -> CallOutcome:
        there = self._pool_of(pool.name)
        # Once more on what is really there: our copy may be old for as long as its watch is silent.
        for _ in range(2):
            if there is None or there.uid != pool.uid:
                return _GONE
            status = to_status(words, there.status, now_unix_s=self._clock.now().timestamp())
            if status == there.status:
                return _TAKEN
            match await write_pool_status(self._writer, there, status):
                case Written():
                    return _TAKEN
                case StalePool(pool=newest):
                    there = newest
                case PoolGone():
                    return _GONE
        return _STALE

    async def tell(self, story: Story) -> CallOutcome:
        about = story.about
        name = about if isinstance(about, str) else about.name
        namespace = "" if isinstance(about, str) else about.namespace
        uid = story.uid if isinstance(about, str) else about.uid
        note = Note(
            resource=_RESOURCES[story.kind],
            about=KubeObject(metadata=Meta(name=name, uid=uid, resource_version="", namespace=namespace)),
            flip_id=story.flip,
            reason=story.reason,
            action=story.action,
            text=story.text,
            at=datetime.fromtimestamp(story.at_unix_s, UTC),
            is_warning=story.is_warning,
            once_for=story.once_for,
        )
        await tell(self._writer, note, instance=self._names.instance)
        return _TAKEN


def miner_body(
    template: dict[str, Any], pool: Pool, node: ClusterNode, *, slot: int, gpu_count: int, flip: str, resource: str
) -> dict[str, Any]:
    """Return the miner of a slot of a node, made of its pool's template.

    Raises InvalidInput where the template has no container. What else it holds is for the API server to judge.
    """
    meta, spec = dict(template.get("metadata") or {}), dict(template.get("spec") or {})
    containers = [dict(container) for container in spec.get("containers") or ()]
    if not containers:
        raise InvalidInput(
            f"PodTemplate {pool.miner_namespace}/{pool.miner_template} has no container; write one that mines",
            reason="BAD_TEMPLATE",
        )
    wanted = str(gpu_count)
    resources = dict(containers[0].get("resources") or {})
    for kind in ("limits", "requests"):
        resources[kind] = {**(resources.get(kind) or {}), resource: wanted}
    containers[0]["resources"] = resources
    matches = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node.name]}]}
    affinity = dict(spec.get("affinity") or {})
    affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [matches]}}
    spec |= {"containers": containers, "affinity": affinity, "preemptionPolicy": "Never"}
    if pool.miner_priority_class:
        spec["priorityClassName"] = pool.miner_priority_class
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"miner-{node.name}-{slot}"[-253:],
            "namespace": pool.miner_namespace,
            "labels": {
                **(meta.get("labels") or {}),
                TENANT_LABEL: MINING_TENANT,
                POOL_LABEL: pool.name,
                SLOT_LABEL: str(slot),
            },
            "annotations": {**(meta.get("annotations") or {}), FLIP_MARK: flip, NODE_MARK: node.name},
            "ownerReferences": [
                {
                    "apiVersion": CAPACITY_POOLS.api_version,
                    "kind": CAPACITY_POOLS.kind,
                    "name": pool.name,
                    "uid": pool.uid,
                    "controller": True,
                }
            ],
        },
        "spec": spec,
    }


def to_status(words: PoolWords, before: PoolStatus, *, now_unix_s: float) -> PoolStatus:
    """Return a status as it is written; a condition that goes on keeps the time at which it began."""
    known = {condition.type: condition for condition in before.conditions}
    conditions = []
    for told in words.conditions:
        made = DatedCondition(
            type=told.type,
            status=told.truth.value,
            reason=told.reason,
            message=told.message,
            observed_generation=words.generation,
            last_transition_time=api_time(now_unix_s),
        )
        old = known.get(told.type)
        if old is not None and old.status == made.status:
            made = msgspec.structs.replace(made, last_transition_time=old.last_transition_time)
        conditions.append(made)
    counts = words.gpus
    return PoolStatus(
        observed_generation=words.generation,
        epoch=words.epoch,
        gpus=PoolGpus(
            total=counts.total,
            inference=counts.inference,
            mining=counts.mining,
            standby=counts.standby,
            flipping=counts.flipping,
            unknown=counts.unknown,
        ),
        waiting=PoolWaiting(
            pods=words.waiting_pods,
            gpus=words.waiting_gpus,
            oldest=None if words.oldest_unix_s is None else api_time(words.oldest_unix_s),
        ),
        watts=PoolWatts(limit=words.limit_w, granted=words.granted_w, reserved=words.reserved_w),
        conditions=tuple(conditions),
    )


def _life(pod: PodRef) -> PodLife:
    return PodLife(namespace=pod.namespace, name=pod.name, uid=pod.uid)
