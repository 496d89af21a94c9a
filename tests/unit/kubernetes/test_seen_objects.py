"""Pods and pools as the API may send them, and what the domain is told of them: nothing guessed, nothing dropped in silence."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from swingbus.faults import InvalidInput
from swingbus_controller.adapters.kubernetes.facts import to_pod, to_pool
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.own_objects import CapacityPool
from swingbus_controller.domain.cluster.facts import ClusterPod

GPU, GATE = "nvidia.com/gpu", "swingbus.io/power"


def seen(
    *, gpus: object = "1", meta: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **spec: Any
) -> ClusterPod | None:
    """Return what the domain is told of a pod."""
    body = {
        "metadata": {"name": "p", "namespace": "customers", "uid": "u", "resourceVersion": "7", **(meta or {})},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {GPU: gpus}}}], **spec},
        "status": status or {},
    }
    return to_pod(msgspec.json.decode(msgspec.json.encode(body), type=Pod), resource=GPU, gate=GATE)


def found(**fields: Any) -> ClusterPod:
    """Return the pod, which asks for GPUs."""
    pod = seen(**fields)
    assert pod is not None
    return pod


def test_a_pod_that_asks_for_no_gpu_is_none_of_ours() -> None:
    """Zero GPUs are no GPUs; half of one is nonsense that is named."""
    assert seen(gpus="0") is None
    with pytest.raises(InvalidInput):
        seen(gpus="500m")


def test_gates_say_who_holds_a_pod_back() -> None:
    """It waits for us only where no other gate is left and nobody has deleted it."""
    ours, others = {"name": GATE}, {"name": "example.com/quota"}
    assert found(schedulingGates=[ours]).is_waiting
    assert not found(schedulingGates=[ours, others]).is_waiting
    alone = found(schedulingGates=[others])
    assert (alone.is_gated, alone.has_other_gates, alone.is_under_way) == (False, True, False)
    assert not found(schedulingGates=[ours], meta={"deletionTimestamp": "2026-01-01T00:00:00Z"}).is_waiting
    assert found().is_under_way


@pytest.mark.parametrize("slot", ["", "-1", "1.0", "x", "٣", "9999999", " 1"])
def test_a_slot_that_is_no_number_is_none(slot: str) -> None:
    """Somebody wrote the label by hand."""
    assert found(meta={"labels": {"swingbus.io/slot": slot}}).slot is None
    assert found(meta={"labels": {"swingbus.io/slot": "3"}}).slot == 3


def test_how_a_pod_ended_and_why_it_cannot_start_are_told() -> None:
    """Reason and message of its own, of the scheduler's, of who made it leave."""
    over = found(status={"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"})
    assert (over.is_over, over.failure) == (True, "UnexpectedAdmissionError: no device")
    assert found(status={"phase": "Succeeded"}).failure == "Succeeded"
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
    assert found(status={"conditions": conditions}).unschedulable == "Unschedulable: 0/3 nodes"
    assert found(status={"conditions": conditions}, schedulingGates=[{"name": GATE}]).unschedulable == ""
    leaving = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
    assert found(status={"conditions": leaving}).disruption == "EvictionByEvictionAPI"


def test_words_of_any_length_are_shortened() -> None:
    """A message of a megabyte does not go on into events and logs."""
    assert len(found(status={"phase": "Failed", "reason": "R", "message": "x" * 10**6}).failure) < 2000


def test_only_its_controller_is_who_would_make_it_again() -> None:
    """Another owner reference is no promise."""
    owner = {"apiVersion": "v1", "kind": "Thing", "name": "t", "uid": "o"}
    assert found(meta={"ownerReferences": [owner]}).owner_uid == ""
    assert found(meta={"ownerReferences": [owner, {**owner, "uid": "o2", "controller": True}]}).owner_uid == "o2"


def test_gangs_and_queues_are_seen_by_their_labels() -> None:
    """Each by its own word."""
    assert "LeaderWorkerSet" in found(meta={"labels": {"leaderworkerset.sigs.k8s.io/name": "x"}}).gang
    assert found(meta={"labels": {"kueue.x-k8s.io/queue-name": "q"}}).queue == "q"


def pool(**spec: Any) -> CapacityPool:
    """Return a pool decoded from JSON."""
    body = {
        "metadata": {"name": "h100", "uid": "u", "resourceVersion": "7", "generation": 3},
        "spec": {"site": "north", "container": "c1", "nodeSelector": {"gpu": "h100"}, **spec},
    }
    return msgspec.json.decode(msgspec.json.encode(body), type=CapacityPool)


def test_a_pool_is_read_in_seconds_and_words_of_ours() -> None:
    """Spans, the namespaces it serves, its mode."""
    known = to_pool(
        pool(
            mode="Auto",
            timing={"dwellMining": "1m30s"},
            inference={"namespaceSelector": {"matchLabels": {"tier": "gold"}}, "onBlocked": "Wait"},
        )
    )
    assert (known.mode, known.on_blocked, known.dwell_mining_s) == ("Auto", "Wait", 90.0)
    assert known.serves({"tier": "gold"}) and not known.serves({"tier": "tin"}) and not known.serves({})


@pytest.mark.parametrize(
    "spec", [{"mode": "Turbo"}, {"inference": {"onBlocked": "Shrug"}}, {"timing": {"liftDeadline": "soon"}}]
)
def test_a_pool_that_says_what_we_do_not_know_is_a_fault(spec: dict[str, Any]) -> None:
    """It is never read as something else."""
    with pytest.raises(InvalidInput):
        to_pool(pool(**spec))


@pytest.mark.parametrize("operator", ["In", "NotIn", "Exists", "DoesNotExist", "Near"])
def test_an_operator_that_is_not_known_serves_nobody(operator: str) -> None:
    """Each operator as Kubernetes means it; an unknown one holds for no labels."""
    need = {"key": "tier", "operator": operator, "values": ["gold"] if operator in ("In", "NotIn") else []}
    known = to_pool(pool(inference={"namespaceSelector": {"matchExpressions": [need]}}))
    served = tuple(known.serves(labels) for labels in ({"tier": "gold"}, {"tier": "tin"}, {}))
    assert (
        served
        == {
            "In": (True, False, False),
            "NotIn": (False, True, True),
            "Exists": (True, True, False),
            "DoesNotExist": (False, False, True),
            "Near": (False, False, False),
        }[operator]
    )
