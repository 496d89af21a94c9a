"""The clusters of the contract suite that need nothing but this process, and short ways to look at one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.domain.cluster.facts import HOSTNAME_LABEL, ClusterNode, ClusterPod, Pool
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.nodes import Nodes
from tests.fakes.api_server.server import FakeApiServer
from tests.fakes.cluster_api_rig import ApiRig, CountingApi
from tests.fakes.cluster_rigs import (
    ENROLLED,
    POOL_LABELS,
    TEMPLATE,
    ClusterRig,
    VirtualRig,
    until,
)
from tests.fakes.kube_rig import connected

HERE = ("virtual", "double")


@asynccontextmanager
async def cluster_here(which: str, folder: Path) -> AsyncIterator[ClusterRig]:
    """Return the fake in virtual time, or the adapter over the API server's double."""
    if which == "virtual":
        yield VirtualRig()
        return
    async with (
        FakeApiServer(folder, write_certificates(folder)) as server,
        connected(server) as admin,
        connected(server) as ours,
    ):
        made = on_double(server, admin, ours)
        async with made.running():
            yield made


def on_double(server: FakeApiServer, admin: ApiConnection, ours: ApiConnection) -> ApiRig:
    """Return two nodes and two namespaces on the double."""
    nodes = Nodes(server.store, ("n1", "n2"))
    for name in nodes.names:
        status = {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        server.make("nodes", "", name, metadata={"labels": {HOSTNAME_LABEL: name, **POOL_LABELS}}, status=status)
    for name in ("customers", "miners"):
        server.make("namespaces", "", name, metadata={"labels": ENROLLED})

    async def moment() -> None:
        nodes.tick()
        await asyncio.sleep(0.05)

    return ApiRig(
        admin,
        CountingApi(ours),
        server.faults,
        "customers",
        "miners",
        ("n1", "n2"),
        moment,
        lambda name, fields: server.make("podtemplates", "miners", name, **fields),
    )


def node_of(rig: ClusterRig, number: int = 0) -> ClusterNode:
    return rig.cluster.state.nodes[rig.nodes[number]]


def pool_of(rig: ClusterRig, template: str = TEMPLATE) -> Pool:
    return replace(rig.cluster.state.pools[rig.pool_name], miner_template=template)


def assert_indexed(rig: ClusterRig) -> None:
    """Every index says the same as the collection of pods."""
    state = rig.cluster.state
    pods = list(state.pods.values())
    assert {p.ref for p in state.unbound()} == {p.ref for p in pods if not p.node}
    for node in {*rig.nodes, *(p.node or p.aimed_at for p in pods)} - {""}:
        assert {p.ref for p in state.pods_on(node)} == {p.ref for p in pods if (p.node or p.aimed_at) == node}


def now(rig: ClusterRig, pod: ClusterPod) -> ClusterPod:
    """Return a life as it is now."""
    found = rig.cluster.state.pod(pod.ref)
    assert found is not None, f"{pod.ref} is gone"
    return found


def miners(rig: ClusterRig) -> list[ClusterPod]:
    return [pod for pod in rig.cluster.state.pods.values() if pod.namespace == rig.miner_namespace]


def is_gone(rig: ClusterRig, pod: ClusterPod) -> Callable[[], bool]:
    return lambda: rig.cluster.state.pod(pod.ref) is None


async def run_pod(rig: ClusterRig, name: str, *, labels: dict[str, str] | None = None) -> ClusterPod:
    """Return a pod that works on a node."""
    pod = await rig.make_pod(name, gates=(), labels=labels, node=rig.nodes[0])
    await until(rig, lambda: now(rig, pod).is_ready)
    return now(rig, pod)
