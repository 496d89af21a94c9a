"""The contract suite of a cluster on a real API server, behind a proxy that refuses in its place: real scheduler, KWOK's nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.adapters.kubernetes.resources import MERGE_PATCH, NAMESPACES, ApiCall
from swingbus_sim.cluster.up import Cluster
from tests.contract import test_cluster, test_cluster_calls
from tests.contract.test_kubernetes_api import on_cluster
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.proxy import FaultProxy
from tests.fakes.cluster_api_rig import ApiRig, CountingApi
from tests.fakes.cluster_rigs import ENROLLED

pytestmark = pytest.mark.cluster
# Every test of both halves is collected here again, with the fixture below.
for _half in (test_cluster, test_cluster_calls):
    globals().update({name: test for name, test in vars(_half).items() if name.startswith("test_")})
_CLASSES = "/apis/scheduling.k8s.io/v1/priorityclasses"
_NODES = ("kwok-001", "kwok-002")


async def _moment() -> None:
    await asyncio.sleep(0.15)


@pytest.fixture(scope="module")
def priority_class(cluster: Cluster) -> Iterator[str]:
    """Return a priority class below that of anybody else."""
    body = {"metadata": {"name": "contract-miner"}, "value": -1000, "preemptionPolicy": "Never"}
    cluster.api.create(_CLASSES, {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", **body})
    yield "contract-miner"
    cluster.api.delete(f"{_CLASSES}/contract-miner")


@pytest.fixture
async def rig(cluster_with_pools: Cluster, priority_class: str, tmp_path: Path) -> AsyncIterator[ApiRig]:
    """Return two namespaces and two of KWOK's nodes on the real API server, in place of the double."""
    kubeconfig = cluster_with_pools.kubeconfig
    async with (
        on_cluster(kubeconfig) as customers,
        on_cluster(kubeconfig) as miners,
        FaultProxy(tmp_path, write_certificates(tmp_path), kubeconfig) as proxy,
    ):
        for name in (customers.namespace, miners.namespace):
            body = {"metadata": {"labels": ENROLLED}}
            call = ApiCall(verb="patch", resource=NAMESPACES, name=name, content_type=MERGE_PATCH, body=body)
            assert (await customers.api.call(call)).is_ok
        (tmp_path / "token").write_text("none is asked for")
        host, _, port = proxy.url.removeprefix("https://").partition(":")
        access = load_in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}, tmp_path)
        async with ApiConnection(access) as ours:
            made = ApiRig(
                customers.api,
                CountingApi(ours),
                proxy.faults,
                customers.namespace,
                miners.namespace,
                _NODES,
                _moment,
                priority_class=priority_class,
                has_classes=True,
            )
            async with made.running():
                yield made
