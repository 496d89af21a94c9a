"""KWOK's nodes: objects whose pods "run" by an entry in etcd. Hundreds of them cost nothing, and nothing of them is real.

They show what the API, the scheduler, preemption and the controllers do at scale. They can't show that a process ended or that a watt
came back: evidence about a KWOK node's pods must come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swingbus_sim.cluster.api import Api
from swingbus_sim.cluster.control_plane import ControlPlane
from swingbus_sim.cluster.layout import KWOK_POD_RANGE

KWOK_USER = "swingbus:kwok"
ANNOTATION = "kwok.x-k8s.io/node"
TAINT = {"key": ANNOTATION, "value": "fake", "effect": "NoSchedule"}
TOLERATION = {"key": ANNOTATION, "operator": "Exists"}
TERMINATION_MS = 2_000  # a real miner needs about this long; with none, preemption would look instant
_STAGES = Path(__file__).with_name("stages.yaml")
_GPU = "nvidia.com/gpu"


def rules() -> tuple[dict[str, Any], ...]:
    """Return the rights that KWOK's own user needs."""
    everything = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return (
        {
            "apiGroups": [""],
            "resources": ["nodes", "nodes/status", "pods", "pods/status", "events"],
            "verbs": everything,
        },
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": everything},
    )


def start(control: ControlPlane, *, node_address: str) -> None:
    """Start KWOK for the nodes that carry its annotation, so that real ones stand beside them untouched."""
    stages = control.layout.run / "stages.yaml"
    stages.write_text(_STAGES.read_text().replace("TERMINATION_MS", str(TERMINATION_MS)))
    control.processes.start(
        "kwok",
        (
            str(control.tools.path("kwok")),
            f"--kubeconfig={control.kubeconfig('kwok', user=KWOK_USER)}",
            f"--config={stages}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake",
            f"--cidr={KWOK_POD_RANGE}",
            f"--node-ip={node_address}",
            "--node-lease-duration-seconds=40",
        ),
        enter=control.enter,
    )


def node(
    name: str, *, gpu_count: int = 8, labels: Mapping[str, str] | None = None, is_tainted: bool = False
) -> dict[str, Any]:
    """Return a node object.

    Args:
        name: as in the API.
        gpu_count: of `nvidia.com/gpu`; 0 offers none.
        labels: besides the usual ones.
        is_tainted: keep pods away that do not tolerate it (needed beside real nodes: a DNS probe on KWOK never answers).
    """
    room = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti"}
    if gpu_count:
        room[_GPU] = str(gpu_count)
    usual = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "type": "kwok"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {ANNOTATION: "fake"}, "labels": {**usual, **(labels or {})}},
        "spec": {"taints": [TAINT] if is_tainted else []},
        "status": {"allocatable": room, "capacity": room},
    }


def add_nodes(api: Api, count: int, *, gpu_count: int = 8, is_tainted: bool = False) -> tuple[str, ...]:
    """Create nodes `kwok-001`, ... and return their names."""
    names = tuple(f"kwok-{number:03}" for number in range(1, count + 1))
    for name in names:
        api.ensure("/api/v1/nodes", node(name, gpu_count=gpu_count, is_tainted=is_tainted))
    return names
