"""Workloads as tenants write them: they know nothing of the gate, the cluster injects it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.kube.cluster import pod_spec
from tests.cluster.traps.site import CUSTOMERS, GRID, PART_LABEL, STILL, TrapSite

HOST = "kubernetes.io/hostname"
ON_GRID: Mapping[str, str] = {PART_LABEL: GRID}
ON_QUIET: Mapping[str, str] = {PART_LABEL: STILL}


def spec(gpu_count: int = 1, *, on: Mapping[str, str] = ON_GRID, **more: Any) -> dict[str, Any]:
    """Return the spec of a pod that may only run on nodes with these labels."""
    made = pod_spec(nodeSelector=dict(on), **more)
    made["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = str(gpu_count)
    return made


def pod(
    name: str, pod_spec: Mapping[str, Any], *, labels: Mapping[str, str] | None = None, **meta: Any
) -> dict[str, Any]:
    """Return a pod that nobody would make again."""
    metadata = {"name": name, "labels": dict(labels or {}), **meta}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": dict(pod_spec)}


def deployment(
    name: str,
    replicas: int,
    pod_spec: Mapping[str, Any],
    *,
    surge: int = 0,
    unavailable: int = 1,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a deployment; labels are its pods', besides its own."""
    own = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": own},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
            },
            "template": {"metadata": {"labels": {**own, **(labels or {})}}, "spec": dict(pod_spec)},
        },
    }


def daemon_set(name: str, pod_spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a daemon set."""
    own = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": own},
            "template": {"metadata": {"labels": own}, "spec": dict(pod_spec)},
        },
    }


def budget(name: str, **spec_of: Any) -> dict[str, Any]:
    """Return a disruption budget for the deployment of the same name."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, **spec_of},
    }


_PLACES = {
    "Pod": "/api/v1/namespaces/{}/pods",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "DaemonSet": "/apis/apps/v1/namespaces/{}/daemonsets",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
}


def place(kind: str, namespace: str = CUSTOMERS) -> str:
    """Return where objects of a kind are."""
    return _PLACES[kind].format(namespace)


def make(site: TrapSite, body: Mapping[str, Any], namespace: str = CUSTOMERS) -> dict[str, Any]:
    """Create an object and return it as it was made."""
    return site.cluster.api.create(place(body["kind"], namespace), body)


def scale(site: TrapSite, name: str, replicas: int) -> None:
    """Change how many replicas a deployment has."""
    site.cluster.api.merge(f"{place('Deployment')}/{name}", {"spec": {"replicas": replicas}})


def evict(site: TrapSite, name: str, namespace: str = CUSTOMERS) -> None:
    """Evict a pod as `kubectl drain` does. Raises OverBudget where a disruption budget keeps it."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    site.cluster.api.create(f"{place('Pod', namespace)}/{name}/eviction", body)


def delete(site: TrapSite, kind: str, name: str, namespace: str = CUSTOMERS, *, grace_s: int | None = None) -> None:
    """Delete an object."""
    site.cluster.api.delete(f"{place(kind, namespace)}/{name}", grace_s=grace_s)


def is_gated(pod_there: Mapping[str, Any]) -> bool:
    """Return whether a pod still has a gate."""
    return bool(pod_there["spec"].get("schedulingGates"))


def reason_of(pod_there: Mapping[str, Any], kind: str) -> str:
    """Return the reason of a pod's condition, empty where it has none."""
    conditions = pod_there.get("status", {}).get("conditions", [])
    return next((str(each.get("reason", "")) for each in conditions if each["type"] == kind), "")
