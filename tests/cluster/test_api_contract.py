"""The contract suite of the Kubernetes API on a real API server: what the fake says in tests is what the real one does."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from swingbus_sim.cluster.up import Cluster
from tests.cluster.etcd import Etcd
from tests.contract import test_kubernetes_api as suite
from tests.contract.test_kubernetes_api import Rig, on_cluster

pytestmark = pytest.mark.cluster
# Every test of the suite is collected here again, with the fixture below.
globals().update({name: test for name, test in vars(suite).items() if name.startswith("test_")})


@pytest.fixture
async def rig(cluster_with_pools: Cluster) -> AsyncIterator[Rig]:
    """Return a namespace on the real API server, in place of the fake."""
    async with on_cluster(cluster_with_pools.kubeconfig) as made:
        made.compact = Etcd(cluster_with_pools).compact
        yield made
