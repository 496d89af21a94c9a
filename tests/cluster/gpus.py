"""Simulated GPUs on a real node: a host's shelf, the device plugin beside the kubelet, and pods that ask for GPUs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import swingbus
import swingbus_sim
from swingbus_sim.cluster import node
from swingbus_sim.cluster.processes import children, wait_until
from swingbus_sim.cluster.up import Cluster
from tests.cluster.pods import make_pod, make_probe_spec
from tests.fakes.gpu_host import GpuHost

RESOURCE = "nvidia.com/gpu"
_SLEEP = "import sys, time; time.sleep(600)"
_KUBELET_TIMEOUT_S = 60.0


class NodeGpus:
    """The GPUs of one real node; change `host` and the plugin tells the kubelet."""

    def __init__(self, cluster: Cluster, number: int, host: GpuHost) -> None:
        self.cluster = cluster
        self.plan = cluster.real_nodes[number - 1]
        self.host = host
        self.plugin = f"device-plugin-{self.plan.name}"

    def start_plugin(self) -> None:
        """Start the plugin on the node, as its DaemonSet would."""
        shelf = str(self.host.shelf.path)
        self.cluster.processes.start(
            self.plugin,
            (sys.executable, "-m", "swingbus_sim.main", "device-plugin", "--shelf", shelf),
            enter=node.entry(self.cluster.processes, self.plan),
            environment={"HOME": str(Path.home())},  # the stand-in is built there already
        )

    def pod_resources(self) -> Path:
        """Return kubelet's socket as the host reaches it: through the node's first process, a short path into its own /var."""
        (inside,) = children(self.cluster.processes.must_run(node.init_name(self.plan)).pid)
        return Path(f"/proc/{inside}/root/var/lib/kubelet/pod-resources/kubelet.sock")

    def counts(self) -> tuple[int, int]:
        """Return the node's capacity and what of it pods may have."""
        status = self.cluster.api.get(f"/api/v1/nodes/{self.plan.name}")["status"]
        return int(status["capacity"].get(RESOURCE, 0)), int(status["allocatable"].get(RESOURCE, 0))

    def working_on(self, index: int) -> list[int]:
        """Return the host's numbers of the processes that work on a GPU now, whatever anybody says of pods."""
        return [process.pid for process in self.host.shelf.processes() if process.gpu == index]

    def wait_counts(self, capacity: int, allocatable: int) -> None:
        """Wait until the kubelet has told the API server."""
        wanted = (capacity, allocatable)
        wait_until(
            lambda: self.counts() == wanted,
            what=f"{self.plan.name} shows {wanted} GPUs; it shows {self.counts()}",
            timeout_s=_KUBELET_TIMEOUT_S,
            poll_s=0.2,
        )


@contextmanager
def gpus_on_node(cluster: Cluster, number: int, folder: Path, *, gpu_count: int) -> Iterator[NodeGpus]:
    """Give a node so many GPUs for a while."""
    host = GpuHost(folder / f"shelf-{number}", gpu_count)
    gpus = NodeGpus(cluster, number, host)
    gpus.start_plugin()
    try:
        gpus.wait_counts(gpu_count, gpu_count)
        yield gpus
    finally:
        cluster.processes.end(gpus.plugin)
        host.close()


def make_gpu_pod(name: str, node_name: str, gpu_count: int, *command: str) -> dict[str, Any]:
    """Return a pod that holds so many GPUs of a node and runs a program, by default one that waits."""
    spec = make_probe_spec(node_name, *(command or ("python3", "-c", _SLEEP, f"swingbus-gpu-{name}")))
    spec["containers"][0]["resources"] = {"limits": {RESOURCE: str(gpu_count)}}
    return make_pod(name, spec)


def make_working_pod(name: str, node_name: str, gpu_count: int, kind: str = "mining") -> dict[str, Any]:
    """Return a pod with a toy workload that really works on the GPUs it is given: its process shows there until it is dead."""
    pod = make_gpu_pod(name, node_name, gpu_count, "python3", "-m", "swingbus_sim.workloads", kind, "--gpus", "visible")
    rooms = {"sim": swingbus_sim.__file__, "protos": swingbus.__file__}
    (container,) = pod["spec"]["containers"]
    container["env"] = [{"name": "PYTHONPATH", "value": ":".join(f"/rooms/{room}" for room in rooms)}]
    container["volumeMounts"] += [{"name": room, "mountPath": f"/rooms/{room}", "readOnly": True} for room in rooms]
    pod["spec"]["volumes"] += [
        {"name": room, "hostPath": {"path": str(Path(file or "").parents[1])}} for room, file in rooms.items()
    ]
    return pod
