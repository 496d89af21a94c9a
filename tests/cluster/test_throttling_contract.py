"""The suite of throttled and failing writes on a real API server, behind a proxy that refuses in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_sim.cluster.up import Cluster
from tests.contract import test_kubernetes_throttling as suite
from tests.contract.test_kubernetes_api import on_cluster
from tests.contract.test_kubernetes_throttling import Site, make_site
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.proxy import FaultProxy

pytestmark = pytest.mark.cluster
# Every test of the suite is collected here again, with the fixture below.
globals().update({name: test for name, test in vars(suite).items() if name.startswith("test_")})


@pytest.fixture
async def site(cluster_with_pools: Cluster, tmp_path: Path) -> AsyncIterator[Site]:
    """Return the real API server behind the proxy, in place of the fake."""
    kubeconfig = cluster_with_pools.kubeconfig
    async with (
        on_cluster(kubeconfig) as rig,
        FaultProxy(tmp_path, write_certificates(tmp_path), kubeconfig) as proxy,
    ):
        (tmp_path / "token").write_text("none is asked for")
        host, _, port = proxy.url.removeprefix("https://").partition(":")
        access = load_in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}, tmp_path)
        async with ApiConnection(access) as api:
            yield await make_site(rig, api, proxy.faults)
