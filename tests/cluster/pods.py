"""Pods for tests on a real cluster, and waiting for what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swingbus.faults import NotFound
from swingbus_sim.cluster.api import Api
from swingbus_sim.cluster.images import BASE_IMAGE
from swingbus_sim.cluster.kwok import TOLERATION
from swingbus_sim.cluster.processes import wait_until
from swingbus_sim.cluster.up import Cluster

GATE = "swingbus.io/power"
# Somebody of the group that may lift gates when no controller runs.
BREAK_GLASS = ("--as=ada", "--as-group=system:masters", "--as-group=swingbus:break-glass")
_LIFT = (
    f'[{{"op": "test", "path": "/spec/schedulingGates/0/name", "value": "{GATE}"}},'
    ' {"op": "remove", "path": "/spec/schedulingGates/0"}]'
)
_SETTLE_TIMEOUT_S = 30.0


def make_namespace(api: Api, name: str) -> str:
    """Create a namespace and wait for its default service account: a pod that comes earlier is refused."""
    api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    wait_until(
        lambda: exists(api, f"/api/v1/namespaces/{name}/serviceaccounts/default"),
        what="a service account",
        timeout_s=30,
    )
    return name


def make_pod_spec(*, gated: bool, gpu_count: int = 1) -> dict[str, Any]:
    """Return the spec of a pod for KWOK's nodes."""
    resources = {"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": str(gpu_count)}}
    spec: dict[str, Any] = {
        "containers": [{"name": "work", "image": "swingbus.invalid/work:1", "resources": resources}],
        "tolerations": [TOLERATION],
        "terminationGracePeriodSeconds": 2,
    }
    if gated:
        spec["schedulingGates"] = [{"name": GATE}]
    return spec


def make_pod(name: str, spec: Mapping[str, Any], *, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a pod object."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(labels or {})}, "spec": spec}


def make_probe_spec(node: str, *command: str) -> dict[str, Any]:
    """Return the spec of a pod that runs one of the machine's own programs on a real node, with no rights at all.

    The image is empty; the machine's /usr is mounted over it, so nothing is downloaded.
    """
    return {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "terminationGracePeriodSeconds": 2,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "probe",
                "image": BASE_IMAGE,
                "imagePullPolicy": "Never",
                "command": list(command),
                "workingDir": "/tmp",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": True}],
            }
        ],
        "volumes": [{"name": "usr", "hostPath": {"path": "/usr"}}],
    }


def is_running(pod: Mapping[str, Any]) -> bool:
    """Return whether all its containers are ready."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return bool(statuses) and all(status["ready"] for status in statuses)


def lift(node: str) -> Sequence[Mapping[str, Any]]:
    """Return the one patch that lifts our gate and narrows the pod to a node; it fails whole if the gate is not there."""
    return (
        {"op": "test", "path": "/spec/schedulingGates/0/name", "value": GATE},
        {"op": "remove", "path": "/spec/schedulingGates/0"},
        {"op": "add", "path": "/spec/nodeSelector", "value": {"kubernetes.io/hostname": node}},
    )


def lift_by_hand(cluster: Cluster, namespace: str, name: str, *, who: Sequence[str] = BREAK_GLASS) -> None:
    """Lift a gate as somebody, of the break-glass group by default."""
    cluster.kubectl("patch", "pod", name, "-n", namespace, "--type=json", "-p", _LIFT, *who)


def is_gated(pod: Mapping[str, Any]) -> bool:
    """Return whether the scheduler says that it waits for a gate."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "PodScheduled" and c.get("reason") == "SchedulingGated" for c in conditions)


def wait_pod(
    api: Api, path: str, so: Callable[[dict[str, Any]], bool], *, what: str, timeout_s: float = _SETTLE_TIMEOUT_S
) -> float:
    """Wait until a pod is so and return the seconds it took."""
    started = time.monotonic()
    wait_until(lambda: so(api.get(path)), what=f"{path}: {what}", timeout_s=timeout_s)
    return time.monotonic() - started


def wait_gone(api: Api, path: str, *, timeout_s: float = _SETTLE_TIMEOUT_S) -> float:
    """Wait until an object is gone and return the seconds it took."""
    started = time.monotonic()
    wait_until(lambda: not exists(api, path), what=f"{path} is still there", timeout_s=timeout_s)
    return time.monotonic() - started


def exists(api: Api, path: str) -> bool:
    """Return whether an object is there."""
    try:
        api.get(path)
    except NotFound:
        return False
    return True
