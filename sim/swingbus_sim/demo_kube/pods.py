"""The cluster beside a demo's site: two of its GPU hosts are real nodes, and what runs there is pods.

Brings the cluster up, installs the chart, and does what a platform team and an unlucky day do to pods. Decides nothing about power.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swingbus.faults import NotFound, SwingbusError, WrongState
from swingbus_sim.cluster import node
from swingbus_sim.cluster.layout import layout
from swingbus_sim.cluster.loading import load_images
from swingbus_sim.cluster.processes import children, run, wait_until
from swingbus_sim.cluster.requirements import prepare_for_nodes
from swingbus_sim.cluster.up import Cluster, bring_up, take_down
from swingbus_sim.demo.files import InCluster, PodHost
from swingbus_sim.demo_kube.manifests import (
    CUSTOMERS,
    MINERS,
    POOL,
    SYSTEM,
    budget,
    capacity_pool,
    inference_deployment,
    miner_template,
    namespace,
    node_labels,
)

_CHART = Path(__file__).parents[3] / "charts" / "swingbus"
TOYS = ("toy-miner", "toy-inference")
RESOURCE = "nvidia.com/gpu"


@dataclass(slots=True)
class PodSide:
    """The cluster of one run.

    Args:
        hosts: the scenario's hosts that are nodes, in the order of the nodes.
        feeder: what the pool calls its container.
        images: folder with the images' archives.
        loaded: which of them nodes are given.
    """

    hosts: Sequence[str]
    feeder: str
    site: str
    gpu_count: int
    images: Path
    folder: Path
    say: Callable[[str], None]
    loaded: Sequence[str] = TOYS
    name: str = "demo-kube"
    cluster: Cluster | None = None
    evictions_seen: list[str] = field(default_factory=list)

    @property
    def up(self) -> Cluster:
        """Return the cluster; it stands after `prepare`."""
        assert self.cluster is not None
        return self.cluster

    async def prepare(self) -> None:
        """Bring the cluster up with everything but GPUs, which the simulator has to offer first."""
        await asyncio.to_thread(self._prepare)

    def _prepare(self) -> None:
        archives = [self.images / f"{name}.tar" for name in self.loaded]
        missing = [str(archive) for archive in archives if not archive.exists()]
        if missing:
            raise NotFound(f"no image {', '.join(missing)}: build them with `make images`")
        prepare_for_nodes(self.say)
        place = layout(self.name)
        take_down(place, say=self.say)
        self.cluster = bring_up(place, real_node_count=len(self.hosts), say=self.say)
        load_images(self.cluster, archives)
        self.say("installing the chart")
        self.install({})
        self.up.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/capacitypools.swingbus.io")
        for plan in self.up.real_nodes:
            self.up.kubectl("label", "node", plan.name, *(f"{k}={v}" for k, v in node_labels(self.feeder).items()))
        self.apply(namespace(CUSTOMERS, {"swingbus.io/power-gate": "enabled"}))
        wait_until(self._have_accounts, what="service accounts", timeout_s=30)
        self.apply(miner_template())
        self.apply(capacity_pool(self.site, self.feeder))

    def install(self, values: Mapping[str, Any]) -> None:
        """Install the chart with these values, or change them."""
        helm = (str(self.up.tools.path("helm")), f"--kubeconfig={self.up.kubeconfig}")
        install = ("upgrade", "--install", "swingbus", str(_CHART), "-n", SYSTEM, "--create-namespace", "--values=-")
        run((*helm, *install), input_text=json.dumps(values))

    def _have_accounts(self) -> bool:
        paths = (f"/api/v1/namespaces/{each}/serviceaccounts/default" for each in (CUSTOMERS, MINERS))
        try:
            return all(self.up.api.get(path) for path in paths)
        except NotFound:
            return False

    def in_cluster(self) -> InCluster:
        """Return what the site's files say of it."""
        return InCluster(
            hosts={
                host: PodHost(node=plan.name, socket=self._pod_resources(number))
                for number, (host, plan) in enumerate(zip(self.hosts, self.up.real_nodes, strict=True))
            },
            kubeconfig=None,
            pool=POOL,
            miner_namespace=MINERS,
        )

    def _pod_resources(self, number: int) -> Path:
        plan = self.up.real_nodes[number]
        (inside,) = children(self.up.processes.must_run(node.init_name(plan)).pid)
        return Path(f"/proc/{inside}/root/var/lib/kubelet/pod-resources/kubelet.sock")

    async def offer_gpus(self, shelves: Path) -> None:
        """Let each node offer the GPUs of its host on the simulator's shelves."""
        for host, plan in zip(self.hosts, self.up.real_nodes, strict=True):
            self.up.processes.start(
                f"device-plugin-{plan.name}",
                (sys.executable, "-m", "swingbus_sim.main", "device-plugin", "--shelf", str(shelves / host)),
                enter=node.entry(self.up.processes, plan),
                environment={"HOME": str(Path.home())},
            )
        await asyncio.to_thread(wait_until, self._are_offered, what="the nodes' GPUs", timeout_s=60.0, poll_s=0.5)

    def _are_offered(self) -> bool:
        nodes = (self.up.api.get(f"/api/v1/nodes/{plan.name}") for plan in self.up.real_nodes)
        return all(int(each["status"]["allocatable"].get(RESOURCE, 0)) == self.gpu_count for each in nodes)

    # What people and bad days do.

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Apply an object, strictly."""
        self.up.kubectl("apply", "--validate=strict", "-f", "-", input_text=json.dumps(manifest))

    async def serve(self, name: str, replicas: int, *, gpu_count: int = 1) -> None:
        """Have so many replicas of a server."""
        await asyncio.to_thread(self.apply, inference_deployment(name, replicas, gpu_count=gpu_count))

    async def protect(self, name: str, min_available: int) -> None:
        """Give a server a disruption budget."""
        await asyncio.to_thread(self.apply, budget(name, min_available))

    async def set_pool(self, **spec: Any) -> None:
        """Change fields of the pool's spec."""
        path = f"/apis/swingbus.io/v1alpha1/capacitypools/{POOL}"
        await asyncio.to_thread(self.up.api.merge, path, {"spec": spec})

    async def kill_kubelet(self, number: int) -> str:
        """Kill a node's kubelet; its pods go on. Returns the node's name."""
        plan = self.up.real_nodes[number]
        await asyncio.to_thread(self.up.processes.end, f"kubelet-{plan.name}")
        return plan.name

    async def start_kubelet(self, number: int) -> None:
        """Start it again."""
        plan = self.up.real_nodes[number]
        await asyncio.to_thread(self.up.processes.restart, f"kubelet-{plan.name}")

    async def force_delete_one(self, node_name: str) -> str:
        """Take the object of a running server on a node away, whatever its kubelet says; return its name, empty where none runs."""
        for pod in await self.pods(CUSTOMERS):
            if pod["spec"].get("nodeName") == node_name and pod["status"].get("phase") == "Running":
                name = str(pod["metadata"]["name"])
                await asyncio.to_thread(self.up.api.delete, f"/api/v1/namespaces/{CUSTOMERS}/pods/{name}", grace_s=0)
                return name
        return ""

    async def pods(self, namespace_name: str) -> list[dict[str, Any]]:
        """Return the pods of a namespace."""
        answer = await asyncio.to_thread(self.up.api.get, f"/api/v1/namespaces/{namespace_name}/pods")
        items: list[dict[str, Any]] = answer["items"]
        return items

    async def pool(self) -> dict[str, Any]:
        """Return the pool."""
        return await asyncio.to_thread(self.up.api.get, f"/apis/swingbus.io/v1alpha1/capacitypools/{POOL}")

    async def close(self) -> None:
        """End the cluster; its logs stay beside the run's."""
        if self.cluster is None:
            return
        logs = self.cluster.layout.run / "logs"
        kept = self.folder.parent / f"{self.folder.name}-cluster-logs"
        shutil.rmtree(kept, ignore_errors=True)
        if logs.exists():
            await asyncio.to_thread(shutil.copytree, logs, kept, dirs_exist_ok=True)
        try:
            await asyncio.to_thread(take_down, self.cluster.layout, say=self.say)
        except SwingbusError as error:
            raise WrongState(f"the cluster could not be taken down: {error}; try `make cluster-down`") from error
