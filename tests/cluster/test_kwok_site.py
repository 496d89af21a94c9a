"""What stands behind KWOK's nodes, on a real API server: processes follow pods late, and never because an object is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swingbus_sim.cluster.api import Api
from swingbus_sim.cluster.up import Cluster
from swingbus_sim.kwok_site.plan import SitePlan
from swingbus_sim.kwok_site.running import KwokSite
from tests.cluster.conftest import KWOK_NODES
from tests.cluster.pods import exists, make_namespace, make_pod, make_pod_spec

pytestmark = pytest.mark.cluster
MINERS = "kwok-site-miners"
NODE = "kwok-002"


@pytest.fixture(scope="module")
def miners(cluster: Cluster) -> Iterator[str]:
    """Return a namespace whose pods are miners."""
    yield make_namespace(cluster.api, MINERS)
    cluster.api.delete(f"/api/v1/namespaces/{MINERS}")


@asynccontextmanager
async def site(cluster: Cluster, folder: Path) -> AsyncIterator[KwokSite]:
    """Run the model behind the cluster's nodes."""
    nodes = KwokSite(SitePlan(node_count=KWOK_NODES, miner_namespace=MINERS), folder, kubeconfig=cluster.kubeconfig)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(nodes.run())
        try:
            await until(lambda: bool(nodes.status()["has_listed"]), "the pods are listed")
            yield nodes
        finally:
            nodes.stop()


async def until(so: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Wait in the loop until it is so."""
    try:
        async with asyncio.timeout(timeout_s):
            while not await asyncio.to_thread(so):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not so: {what}") from None


async def make(api: Api, name: str, *, gpu_count: int = 1) -> str:
    """Create a pod for one node; return its path."""
    spec = {**make_pod_spec(gated=False, gpu_count=gpu_count), "nodeSelector": {"kubernetes.io/hostname": NODE}}
    await asyncio.to_thread(api.create, f"/api/v1/namespaces/{MINERS}/pods", make_pod(name, spec))
    return f"/api/v1/namespaces/{MINERS}/pods/{name}"


def mining(nodes: KwokSite) -> int:
    """Return how many GPUs of the node have a miner's process."""
    return sum(gpu.tenant == "mining" for gpu in nodes.kubelets[NODE].server.gpus)


async def test_process_follows_its_pod_and_ends_before_kwok_lets_it_go(
    cluster: Cluster, miners: str, tmp_path: Path
) -> None:
    """A scheduled pod gets a GPU and, a moment later, a process; deleted, its process ends within the grace and its GPU comes free."""
    async with site(cluster, tmp_path) as nodes:
        path = await make(cluster.api, "one")
        await until(lambda: mining(nodes) == 1, "it works")

        await asyncio.to_thread(cluster.api.delete, path)

        await until(lambda: mining(nodes) == 0, "its process has ended")
        assert await asyncio.to_thread(exists, cluster.api, path)
        await until(lambda: not exists(cluster.api, path), "the pod is gone")
        await until(lambda: not any(nodes.kubelets[NODE].holders()), "its GPU is free")


async def test_force_deleted_pod_leaves_its_process_behind(cluster: Cluster, miners: str, tmp_path: Path) -> None:
    """The object is gone at once; the process draws on until its container has been ended."""
    async with site(cluster, tmp_path) as nodes:
        path = await make(cluster.api, "forced")
        await until(lambda: mining(nodes) == 1, "it works")
        nodes.inject("outlive", NODE, 3.0)

        await asyncio.to_thread(lambda: cluster.api.delete(path, grace_s=0))

        assert not await asyncio.to_thread(exists, cluster.api, path)
        assert mining(nodes) == 1
        await until(lambda: mining(nodes) == 0, "its process has ended", timeout_s=10.0)


async def test_pod_that_its_kubelet_refuses_fails_in_the_api(cluster: Cluster, miners: str, tmp_path: Path) -> None:
    """Bound past the scheduler's count, as after a race: the kubelet finds no GPU and says so in the API."""
    async with site(cluster, tmp_path) as nodes:
        full = await make(cluster.api, "full", gpu_count=8)
        await until(lambda: mining(nodes) == 8, "it works")
        spec = {**make_pod_spec(gated=False), "nodeName": NODE}
        path = f"/api/v1/namespaces/{MINERS}/pods/late"

        await asyncio.to_thread(cluster.api.create, f"/api/v1/namespaces/{MINERS}/pods", make_pod("late", spec))

        def failed() -> bool:
            status = cluster.api.get(path)["status"]
            return bool(status.get("phase") == "Failed" and status.get("reason") == "UnexpectedAdmissionError")

        await until(failed, "the kubelet's word is in the API")
        for each in (full, path):
            await asyncio.to_thread(cluster.api.delete, each)
        await until(lambda: mining(nodes) == 0, "its processes have ended")


async def test_pods_that_came_and_went_unseen_are_found_by_the_list(
    cluster: Cluster, miners: str, tmp_path: Path
) -> None:
    """A model that starts late finds what is bound; pods of the time before it are nobody's processes."""
    path = await make(cluster.api, "early")
    async with site(cluster, tmp_path) as nodes:
        await until(lambda: mining(nodes) == 1, "it works")
        await asyncio.to_thread(cluster.api.delete, path)
        await until(lambda: not any(nodes.kubelets[NODE].holders()), "its GPU is free")


async def test_sight_comes_back_after_the_api_server_was_killed(cluster_to_break: Cluster, tmp_path: Path) -> None:
    """Processes live on while nobody answers; what was deleted meanwhile ends, what came is started."""
    api, processes = cluster_to_break.api, cluster_to_break.processes
    await asyncio.to_thread(make_namespace, api, MINERS)
    pods = f"/api/v1/namespaces/{MINERS}/pods"
    spec = {**make_pod_spec(gated=False), "nodeName": "kwok-001"}
    nodes = KwokSite(SitePlan(node_count=1, miner_namespace=MINERS), tmp_path, kubeconfig=cluster_to_break.kubeconfig)
    server = nodes.servers[0]

    def at_work() -> set[str]:
        return {uid for gpu in server.gpus for uid in gpu.processes}

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(nodes.run())
        try:
            first = await asyncio.to_thread(api.create, pods, make_pod("first", spec))
            await until(lambda: at_work() == {first["metadata"]["uid"]}, "it works")

            await asyncio.to_thread(processes.end, "kube-apiserver")
            await until(lambda: bool(nodes.status()["watch_fault"]), "the watch is broken")
            assert at_work() == {first["metadata"]["uid"]}
            await asyncio.to_thread(processes.restart, "kube-apiserver")
            await until(api.is_ready, "the API server is back", timeout_s=60.0)
            await asyncio.to_thread(api.delete, f"{pods}/first")
            second = await asyncio.to_thread(api.create, pods, make_pod("second", spec))

            await until(lambda: at_work() == {second["metadata"]["uid"]}, "the second works alone", timeout_s=60.0)
            assert nodes.status()["watch_fault"] == ""
        finally:
            nodes.stop()
