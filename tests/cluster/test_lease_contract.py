"""The contract suite of leases on a real API server, as a service account with the least role, behind a proxy that makes the faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection
from swingbus_controller.adapters.kubernetes.resources import MERGE_PATCH, ApiCall, Resource
from swingbus_sim.cluster.up import Cluster
from tests.contract import test_kubernetes_leases as suite
from tests.contract.test_kubernetes_api import Rig, on_cluster
from tests.contract.test_kubernetes_leases import LeaseRig
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.proxy import FaultProxy

pytestmark = pytest.mark.cluster
# Every test of the suite is collected here again, with the fixture below.
globals().update({name: test for name, test in vars(suite).items() if name.startswith("test_")})
_RBAC = "rbac.authorization.k8s.io"
_ACCOUNTS = Resource(api_version="v1", kind="ServiceAccount", plural="serviceaccounts")
_ROLES = Resource(api_version=f"{_RBAC}/v1", kind="Role", plural="roles")
_BINDINGS = Resource(api_version=f"{_RBAC}/v1", kind="RoleBinding", plural="rolebindings")
_HOLDER = "lease-holder"


@pytest.fixture
async def rig(cluster: Cluster, tmp_path: Path) -> AsyncIterator[LeaseRig]:
    """Return a namespace with a lease's contenders, in place of the fake."""
    certificates = write_certificates(tmp_path)
    async with (
        on_cluster(cluster.kubeconfig) as made,
        FaultProxy(tmp_path, certificates, cluster.kubeconfig, is_passing_tokens=True) as proxy,
    ):
        await _make_role(made)
        (tmp_path / "token").write_text(await _token(made))
        host, _, port = proxy.url.removeprefix("https://").partition(":")

        @asynccontextmanager
        async def connect() -> AsyncIterator[ApiConnection]:
            environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
            async with ApiConnection(load_in_cluster(environ, tmp_path)) as api:
                yield api

        async def forbid() -> None:
            await _grant(made, ["get", "create"])

        async def allow() -> None:
            await _grant(made, ["get", "create", "update"])

        yield LeaseRig(made.namespace, proxy.faults, made.api, connect, forbid, allow)


def _rules(verbs: list[str]) -> list[dict[str, Any]]:
    return [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs}]


async def _make_role(made: Rig) -> None:
    meta = {"name": _HOLDER, "namespace": made.namespace}
    await made.make(_ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
    body = {"apiVersion": f"{_RBAC}/v1", "metadata": meta}
    await made.make(_ROLES, {**body, "kind": "Role", "rules": _rules(["get", "create", "update"])})
    subject = {"kind": "ServiceAccount", **meta}
    role = {"apiGroup": _RBAC, "kind": "Role", "name": _HOLDER}
    await made.make(_BINDINGS, {**body, "kind": "RoleBinding", "subjects": [subject], "roleRef": role})
    await asyncio.sleep(0.5)  # the authorizer learns of it by a watch of its own


async def _token(made: Rig) -> str:
    ask = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    call = ApiCall(
        verb="create",
        resource=_ACCOUNTS,
        namespace=made.namespace,
        name=_HOLDER,
        subresource="token",
        body=ask,
    )
    answer = await made.api.call(call)
    assert answer.code == 201, answer.body
    return str(json.loads(answer.body)["status"]["token"])


async def _grant(made: Rig, verbs: list[str]) -> None:
    call = ApiCall(
        verb="patch",
        resource=_ROLES,
        namespace=made.namespace,
        name=_HOLDER,
        content_type=MERGE_PATCH,
        body={"rules": _rules(verbs)},
    )
    assert (await made.api.call(call)).is_ok
