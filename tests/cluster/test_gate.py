"""The gate that the Kubernetes design rests on, on a real API server and scheduler: it holds a pod, and one patch lets it go where told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swingbus.faults import InvalidInput
from swingbus_sim.cluster.api import Api
from swingbus_sim.cluster.up import Cluster
from tests.cluster.pods import is_gated, lift, make_namespace, make_pod, make_pod_spec, wait_gone, wait_pod

pytestmark = pytest.mark.cluster
_BOUND_WITHIN_S = 1.0


def lift_and_wait(api: Api, path: str, node: str) -> float:
    """Lift a gated pod to a node and return the seconds until it was bound there."""
    wait_pod(api, path, is_gated, what="gated")
    api.patch(path, lift(node))
    return wait_pod(api, path, lambda pod: pod["spec"].get("nodeName") == node, what=f"bound to {node}")


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """Return a namespace for this module."""
    yield make_namespace(cluster.api, "gate")
    cluster.api.delete("/api/v1/namespaces/gate")


def test_gated_pod_waits_and_one_patch_binds_it_where_told(cluster: Cluster, namespace: str) -> None:
    """The pod is held without a node; the lift binds it within a second to the node that the same patch named."""
    api, pods = cluster.api, f"/api/v1/namespaces/{namespace}/pods"
    api.create(pods, make_pod("alone", make_pod_spec(gated=True)))
    path = f"{pods}/alone"

    wait_pod(api, path, is_gated, what="gated")
    assert "nodeName" not in api.get(path)["spec"]
    api.patch(path, lift("kwok-002"))
    bound_after_s = wait_pod(api, path, lambda pod: "nodeName" in pod["spec"], what="bound", timeout_s=5)

    assert bound_after_s < _BOUND_WITHIN_S
    assert api.get(path)["spec"]["nodeName"] == "kwok-002"
    wait_pod(api, path, lambda pod: pod["status"]["phase"] == "Running", what="running")


def test_second_lift_is_refused_whole(cluster: Cluster, namespace: str) -> None:
    """A patch made for a gate that is gone changes nothing: its `test` fails, so a repeated lift can't move a pod."""
    api, pods = cluster.api, f"/api/v1/namespaces/{namespace}/pods"
    api.create(pods, make_pod("twice", make_pod_spec(gated=True)))
    api.patch(f"{pods}/twice", lift("kwok-001"))

    with pytest.raises(InvalidInput):
        api.patch(f"{pods}/twice", lift("kwok-003"))

    wait_pod(api, f"{pods}/twice", lambda pod: pod["spec"].get("nodeName") == "kwok-001", what="bound where told first")


def test_lifted_pod_cannot_be_gated_again(cluster: Cluster, namespace: str) -> None:
    """The gate acts once: the API server refuses to add one later."""
    api, pods = cluster.api, f"/api/v1/namespaces/{namespace}/pods"
    api.create(pods, make_pod("late", make_pod_spec(gated=False)))

    with pytest.raises(InvalidInput):
        api.patch(
            f"{pods}/late", [{"op": "add", "path": "/spec/schedulingGates", "value": [{"name": "swingbus.io/power"}]}]
        )


def test_gated_pod_that_is_deleted_goes_at_once(cluster: Cluster, namespace: str) -> None:
    """It never had a node, so nobody needs to confirm: no grace, no watts to wait for."""
    api, pods = cluster.api, f"/api/v1/namespaces/{namespace}/pods"
    api.create(pods, make_pod("unwanted", make_pod_spec(gated=True)))

    api.delete(f"{pods}/unwanted")

    assert wait_gone(api, f"{pods}/unwanted") < _BOUND_WITHIN_S


def test_replicaset_pods_are_lifted_one_by_one(cluster: Cluster, namespace: str) -> None:
    """Pods made by a controller carry the template's gate; one is lifted alone, and a deleted one comes back gated."""
    api, pods = cluster.api, f"/api/v1/namespaces/{namespace}/pods"
    labels = {"app": "inference"}
    template = {"metadata": {"labels": labels}, "spec": make_pod_spec(gated=True)}
    api.create(
        f"/apis/apps/v1/namespaces/{namespace}/replicasets",
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": "inference"},
            "spec": {"replicas": 3, "selector": {"matchLabels": labels}, "template": template},
        },
    )
    wait_pod(api, f"{pods}?labelSelector=app%3Dinference", lambda found: len(found["items"]) == 3, what="three pods")
    names = sorted(pod["metadata"]["name"] for pod in api.get(f"{pods}?labelSelector=app%3Dinference")["items"])

    took_s = [
        lift_and_wait(api, f"{pods}/{name}", node)
        for name, node in zip(names[:2], ("kwok-001", "kwok-003"), strict=True)
    ]

    assert max(took_s) < _BOUND_WITHIN_S
    assert is_gated(api.get(f"{pods}/{names[2]}"))
    api.delete(f"{pods}/{names[0]}")
    wait_gone(api, f"{pods}/{names[0]}")
    replacement = [
        pod for pod in api.get(f"{pods}?labelSelector=app%3Dinference")["items"] if pod["metadata"]["name"] not in names
    ]
    assert len(replacement) == 1
    wait_pod(api, f"{pods}/{replacement[0]['metadata']['name']}", is_gated, what="the replacement is gated")
