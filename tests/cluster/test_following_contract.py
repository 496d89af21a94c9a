"""The suite of following through bad days on a real API server: as a service account with the least role, behind a proxy that goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from swingbus_controller.adapters.kubernetes.resources import (
    CAPACITY_POOLS,
    MERGE_PATCH,
    NAMESPACES,
    NODES,
    PODS,
    ApiCall,
    Resource,
)
from swingbus_sim.cluster.up import Cluster
from tests.contract import test_kubernetes_following as suite
from tests.contract.test_kubernetes_api import Rig, on_cluster
from tests.contract.test_kubernetes_following import FollowRig
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.proxy import FaultProxy
from tests.fakes.kube_rig import GATE, pod_body

pytestmark = pytest.mark.cluster
# Every test of the suite is collected here again, with the fixture below.
globals().update({name: test for name, test in vars(suite).items() if name.startswith("test_")})
_RBAC = "rbac.authorization.k8s.io"
_ROLES = Resource(api_version=f"{_RBAC}/v1", kind="ClusterRole", plural="clusterroles", is_namespaced=False)
_BINDINGS = Resource(
    api_version=f"{_RBAC}/v1", kind="ClusterRoleBinding", plural="clusterrolebindings", is_namespaced=False
)
_ACCOUNTS = Resource(api_version="v1", kind="ServiceAccount", plural="serviceaccounts")
_FOLLOWED = {resource.plural: resource for resource in (PODS, NODES, CAPACITY_POOLS, NAMESPACES)}


class Role:
    """What a service account of one namespace may follow."""

    def __init__(self, made: Rig) -> None:
        self._made, self.name = made, f"{made.namespace}-follower"
        self._kinds = set(_FOLLOWED)

    async def make(self) -> str:
        """Return the account's token; the role is there."""
        account = {"kind": "ServiceAccount", "name": "follower", "namespace": self._made.namespace}
        meta = {"name": account["name"], "namespace": account["namespace"]}
        await self._made.make(_ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        body: dict[str, Any] = {"apiVersion": f"{_RBAC}/v1", "metadata": {"name": self.name}}
        role = {"apiGroup": _RBAC, "kind": "ClusterRole", "name": self.name}
        await self._made.make(_ROLES, {**body, "kind": "ClusterRole", "rules": self._rules()}, is_namespaced=False)
        bound = {**body, "kind": "ClusterRoleBinding", "subjects": [account], "roleRef": role}
        await self._made.make(_BINDINGS, bound, is_namespaced=False)
        call = ApiCall(
            verb="create",
            resource=_ACCOUNTS,
            namespace=self._made.namespace,
            name="follower",
            subresource="token",
            body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
        )
        answer = await self._made.api.call(call)
        assert answer.code == 201, answer.body
        await asyncio.sleep(0.5)  # the authorizer learns of a role by a watch of its own
        return str(json.loads(answer.body)["status"]["token"])

    async def change(self, *, without: str = "", again: str = "") -> None:
        """Take a kind away, or give it back."""
        self._kinds = (self._kinds - {without}) | ({again} if again else set())
        body = {"rules": self._rules()}
        call = ApiCall(verb="patch", resource=_ROLES, name=self.name, content_type=MERGE_PATCH, body=body)
        assert (await self._made.api.call(call)).is_ok
        await asyncio.sleep(0.5)

    async def drop(self) -> None:
        """Take it all away."""
        for resource in (_BINDINGS, _ROLES):
            await self._made.api.call(ApiCall(verb="delete", resource=resource, name=self.name))

    def _rules(self) -> list[dict[str, Any]]:
        return [
            {"apiGroups": [_FOLLOWED[kind].group], "resources": [kind], "verbs": ["list", "watch"]}
            for kind in sorted(self._kinds)
        ]


@pytest.fixture
async def rig(cluster_with_pools: Cluster, tmp_path: Path) -> AsyncIterator[FollowRig]:
    """Return the real API server behind the proxy, in place of the double."""
    kubeconfig, certificates = cluster_with_pools.kubeconfig, write_certificates(tmp_path)
    async with (
        on_cluster(kubeconfig) as made,
        FaultProxy(tmp_path, certificates, kubeconfig, is_passing_tokens=True) as proxy,
    ):
        labels = {"metadata": {"labels": {"swingbus.io/power-gate": "enabled"}}}
        enrol = ApiCall(verb="patch", resource=NAMESPACES, name=made.namespace, content_type=MERGE_PATCH, body=labels)
        assert (await made.api.call(enrol)).is_ok
        pool, role, ports = await made.make_pool(), Role(made), list[int]()

        async def make_pod(name: str) -> None:
            body = pod_body(name, gates=(GATE,))
            body["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
            await made.make(PODS, body)

        async def drop_pod(name: str) -> None:
            call = ApiCall(verb="delete", resource=PODS, namespace=made.namespace, name=name)
            assert (await made.api.call(call)).is_ok

        async def forbid(kind: str) -> None:
            await role.change(without=kind)

        async def allow(kind: str) -> None:
            await role.change(again=kind)

        async def go_away() -> None:
            ports.append(await proxy.stop())

        async def come_back() -> None:
            await proxy.start(ports.pop())

        folder = tmp_path / "account"
        folder.mkdir()
        (folder / "token").write_text(await role.make())
        (folder / "ca.crt").write_bytes(proxy.ca_path.read_bytes())
        host, _, port = proxy.url.removeprefix("https://").partition(":")
        environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        await make_pod("there")
        try:
            yield FollowRig(
                (environ, folder),
                made.namespace,
                forbid,
                allow,
                go_away,
                come_back,
                proxy.end_watches,
                make_pod,
                drop_pod,
            )
        finally:
            await role.drop()
            await made.api.call(ApiCall(verb="delete", resource=CAPACITY_POOLS, name=pool.metadata.name))
