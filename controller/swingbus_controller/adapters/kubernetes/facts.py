"""From the API's objects to what the domain knows of them, and the marks that we leave on pods.

Decides what a field means. Refuses to decide about pods. Invariant: an object that says nonsense becomes a fault that names it, or is told
as it is; none is dropped in silence.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from swingbus.faults import InvalidInput
from swingbus_controller.adapters.kubernetes.answers import shorten
from swingbus_controller.adapters.kubernetes.objects import Node, Pod, shared
from swingbus_controller.adapters.kubernetes.own_objects import CapacityPool
from swingbus_controller.domain.cluster.facts import (
    ClusterNode,
    ClusterPod,
    LabelNeed,
    OnBlocked,
    Pool,
    PoolMode,
    Taint,
    Toleration,
)

POOL_LABEL = "swingbus.io/pool"
SLOT_LABEL = "swingbus.io/slot"
# The chart's policy lets a pod of ours be ungated by this label alone.
TENANT_LABEL, MINING_TENANT = "swingbus.io/tenant", "mining"
FLIP_MARK = "swingbus.io/flip"
NODE_MARK = "swingbus.io/node"
LIFTED_MARK = "swingbus.io/lifted-at"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Labels of pods that have to start together with others, and whose they are.
_GANGS = {
    "leaderworkerset.sigs.k8s.io/name": "LeaderWorkerSet",
    "jobset.sigs.k8s.io/jobset-name": "JobSet",
    "scheduling.x-k8s.io/pod-group": "PodGroup",
}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_OVER = ("Succeeded", "Failed")


def to_pod(pod: Pod, *, resource: str, gate: str) -> ClusterPod | None:
    """Return a pod as the domain knows it, None where it asks for none of our GPUs. Raises InvalidInput for an impossible count."""
    gpu_count = pod.devices(resource)
    if gpu_count <= 0:
        return None
    meta, spec, status = pod.metadata, pod.spec, pod.status
    conditions = {condition.type: condition for condition in status.conditions}
    scheduled = conditions.get("PodScheduled")
    owner = next((owner for owner in meta.owner_references if owner.controller), None)
    slot = meta.labels.get(SLOT_LABEL, "")
    is_over = status.phase in _OVER
    gates = pod.gates
    return ClusterPod(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        revision=meta.resource_version,
        gpu_count=gpu_count,
        node=spec.node_name,
        aimed_at=meta.annotations.get(NODE_MARK, ""),
        is_gated=gate in gates,
        has_other_gates=any(each != gate for each in gates),
        is_leaving=pod.is_deleting,
        is_over=is_over,
        is_ready=pod.is_ready,
        failure=_words(status.reason or status.phase, status.message) if is_over else "",
        unschedulable=""
        if scheduled is None or scheduled.status != "False" or gates
        else _words(scheduled.reason, scheduled.message),
        disruption=conditions["DisruptionTarget"].reason if "DisruptionTarget" in conditions else "",
        priority=spec.priority,
        made_unix_s=unix_s(meta.creation_timestamp) or 0.0,
        owner_uid="" if owner is None else owner.uid,
        owner_kind="" if owner is None else owner.kind,
        gang=next((f"{kind} starts its pods together" for label, kind in _GANGS.items() if label in meta.labels), ""),
        queue=meta.labels.get(_QUEUE_LABEL, ""),
        miner_pool=meta.labels.get(POOL_LABEL, ""),
        slot=int(slot) if slot.isascii() and slot.isdecimal() and len(slot) < 6 else None,
        flip=meta.annotations.get(FLIP_MARK, ""),
        lifted_unix_s=unix_s(meta.annotations.get(LIFTED_MARK)),
        only_nodes=frozenset() if spec.affinity is None else shared(spec.affinity.named_nodes),
        node_selector=spec.node_selector,
        tolerations=shared(
            tuple(
                Toleration(key=each.key, operator=each.operator, value=each.value, effect=each.effect)
                for each in spec.tolerations
            )
        ),
    )


def to_node(node: Node, *, resource: str) -> ClusterNode:
    """Return a node as the domain knows it."""
    return ClusterNode(
        name=node.metadata.name,
        uid=node.uid,
        gpu_count=node.devices(resource),
        labels=node.metadata.labels,
        taints=tuple(Taint(key=each.key, effect=each.effect, value=each.value) for each in node.spec.taints),
        is_ready=node.is_ready,
        is_unschedulable=node.spec.unschedulable,
    )


def to_pool(pool: CapacityPool) -> Pool:
    """Return a pool as the domain knows it. Raises InvalidInput where the definition in the cluster is another one than ours."""
    spec = pool.spec
    try:
        return Pool(
            name=pool.metadata.name,
            uid=pool.uid,
            revision=pool.revision,
            generation=pool.metadata.generation,
            site=spec.site,
            container=spec.container,
            node_selector=spec.node_selector,
            resource=spec.resource,
            mining_cap_w=spec.caps.mining,
            inference_cap_w=spec.caps.inference,
            is_mining_enabled=spec.mining.enabled,
            miner_namespace=spec.mining.namespace,
            miner_template=spec.mining.pod_template,
            miner_priority_class=spec.mining.priority_class_name,
            miner_grace_s=spec.mining.grace_seconds,
            namespace_needs=(
                *(
                    LabelNeed(key=key, operator="In", values=(value,))
                    for key, value in spec.inference.namespace_selector.match_labels.items()
                ),
                *(
                    LabelNeed(key=need.key, operator=need.operator, values=need.values)
                    for need in spec.inference.namespace_selector.match_expressions
                ),
            ),
            evict_deadline_s=span_s(spec.inference.evict_deadline),
            on_blocked=OnBlocked(spec.inference.on_blocked),
            dwell_mining_s=span_s(spec.timing.dwell_mining),
            dwell_inference_s=span_s(spec.timing.dwell_inference),
            lift_deadline_s=span_s(spec.timing.lift_deadline),
            flips_per_minute=spec.timing.max_flips_per_minute,
            mode=PoolMode(spec.mode),
        )
    except ValueError as error:
        raise InvalidInput(
            f"CapacityPool {pool.metadata.name}: {shorten(str(error))}; the definition in the cluster is not this version's, upgrade it",
            reason="BAD_POOL",
            metadata={"pool": pool.metadata.name},
        ) from error


def span_s(text: str) -> float:
    """Return a duration as Kubernetes writes it, in seconds.

    >>> span_s("1m30s"), span_s("500ms")
    (90.0, 0.5)
    """
    parts = _SPAN.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidInput(f"{text[:40]!r} is no duration: write 30s, 5m, 1h30m", reason="BAD_DURATION")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def unix_s(text: str | None) -> float | None:
    """Return a time as the API writes it, in Unix seconds; None where there is none or it is not one."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def api_time(at_unix_s: float) -> str:
    """Return Unix seconds as the API writes times, whole seconds."""
    return datetime.fromtimestamp(at_unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _words(reason: str, message: str) -> str:
    return shorten(f"{reason}: {message}" if message else reason)
