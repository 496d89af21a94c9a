"""What a platform team applies to the demo's cluster: namespaces, the controller's volume and values, miners, pool, servers, budgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swingbus_sim.demo.files import CAPPED_LIMIT_W, MINING_LIMIT_W

SYSTEM, MINERS, CUSTOMERS = "swingbus-system", "swingbus-miners", "customers"
POOL = "gpu-h100"
CONTROLLER = "swingbus-controller"
CERTIFICATES = "controller-certificates"
IMAGE_USER = 65532
_REPOSITORY = "swingbus.invalid"  # as the images are built: it never resolves
_SERVING_W = 700
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD_SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def node_labels(container: str) -> dict[str, str]:
    """Return labels of a node that never change."""
    return {"swingbus.io/container": container, "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


def namespace(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return a namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}}


def miner_template() -> dict[str, Any]:
    """Return what miners are made of."""
    container = {
        "name": "miner",
        "image": own_image("toy-miner"),
        "imagePullPolicy": "Never",
        "securityContext": _RESTRICTED,
    }
    spec = {
        "automountServiceAccountToken": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 5,
        "securityContext": _POD_SECURITY,
        "containers": [container],
    }
    return {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": "miner-h100", "namespace": MINERS},
        "template": {"metadata": {"labels": {"app": "miner"}}, "spec": spec},
    }


def capacity_pool(site: str, container: str) -> dict[str, Any]:
    """Return the pool of the real nodes; spans are as short as the demo is."""
    return {
        "apiVersion": "swingbus.io/v1alpha1",
        "kind": "CapacityPool",
        "metadata": {"name": POOL},
        "spec": {
            "site": site,
            "container": container,
            "nodeSelector": node_labels(container),
            "caps": {"mining": int(MINING_LIMIT_W), "inference": max(_SERVING_W, int(CAPPED_LIMIT_W))},
            "mining": {"enabled": True, "namespace": MINERS, "podTemplate": "miner-h100", "graceSeconds": 2},
            "inference": {"evictDeadline": "10s", "onBlocked": "Cap"},
            "timing": {"dwellMining": "10s", "dwellInference": "10s", "liftDeadline": "20s"},
            "mode": "Auto",
        },
    }


def inference_deployment(name: str, replicas: int, *, gpu_count: int) -> dict[str, Any]:
    """Return a server; a rolling update takes a pod away before it makes one, for a surge has no watts."""
    labels = {"app": name}
    probe = {"httpGet": {"path": "/readyz", "port": 8000}, "periodSeconds": 1}
    container = {
        "name": "server",
        "image": own_image("toy-inference"),
        "imagePullPolicy": "Never",
        "env": [{"name": "TOY_LOAD_S", "value": "2"}, {"name": "TOY_LEVEL", "value": "0.9"}],
        "ports": [{"containerPort": 8000}],
        "readinessProbe": probe,
        "resources": {"limits": {"nvidia.com/gpu": str(gpu_count)}},
        "securityContext": _RESTRICTED,
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": _POD_SECURITY,
        "containers": [container],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": CUSTOMERS},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def budget(name: str, min_available: int) -> dict[str, Any]:
    """Return a disruption budget by an integer: one by share or by `maxUnavailable` counts gated replicas as missing."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": CUSTOMERS},
        "spec": {"minAvailable": min_available, "selector": {"matchLabels": {"app": name}}},
    }


def own_image(name: str) -> str:
    """Return one of our images as it is loaded onto nodes."""
    return f"{_REPOSITORY}/{name}:0.1.0"


def loaded_image(image: str) -> dict[str, str]:
    """Return the chart's value for an image that was loaded onto nodes."""
    repository, _, tag = image.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}


def controller_values(image: str, site: str, *, node: str) -> dict[str, Any]:
    """Return the chart's values for the controller on one node, on a volume of that node's disk.

    Args:
        site: the site file's text.
    """
    return {
        "enabled": True,
        "image": loaded_image(image),
        "site": site,
        "certificates": {"secretName": CERTIFICATES},
        "persistence": {"size": "1Gi", "storageClassName": "-"},
        "nodeSelector": {"kubernetes.io/hostname": node},
    }


def certificates_secret(namespace_name: str, pki: Path) -> tuple[str, ...]:
    """Return kubectl's words for the Secret with what the controller needs of the authority's folder: not the authority's key."""
    files = (pki / name for name in ("ca.pem", "server.pem", "endpoint.txt", "denied.txt"))
    create = ("-n", namespace_name, "create", "secret", "generic", CERTIFICATES)
    return (*create, *(f"--from-file={file}" for file in files))


def controller_volume(namespace_name: str, folder: Path) -> dict[str, Any]:
    """Return a volume that the controller's claim gets: a folder of its node's disk, which IMAGE_USER may write."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": CONTROLLER},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": namespace_name, "name": CONTROLLER},
        },
    }
