"""Pods of the API as the nodes' kubelets need them: read from JSON, and nothing else of them kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from swingbus_sim.kwok_site.kubelet import PodView

GPU = "nvidia.com/gpu"


def view_of(pod: Mapping[str, Any], tenant_of: Callable[[str], str]) -> PodView:
    """Return what a kubelet needs of a pod.

    Args:
        pod: the object, as JSON says it.
        tenant_of: tells a tenant by a pod's namespace.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    return PodView(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec.get("nodeName", ""),
        tenant=tenant_of(metadata["namespace"]),
        gpu_count=sum(_gpus(container) for container in spec["containers"]),
        phase=pod.get("status", {}).get("phase", ""),
        is_deleting="deletionTimestamp" in metadata,
    )


def _gpus(container: Mapping[str, Any]) -> int:
    resources = container.get("resources", {})
    return int(resources.get("limits", {}).get(GPU, resources.get("requests", {}).get(GPU, "0")))
