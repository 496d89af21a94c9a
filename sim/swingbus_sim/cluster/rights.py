"""The cluster's own users and what each may do: the API server's usual roles, and three that it has no role for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swingbus_sim.cluster import kwok
from swingbus_sim.cluster.api import Api

DNS_USER = "swingbus:dns"
_ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
_BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


def grant(api: Api) -> None:
    """Give KWOK, DNS and the API server's kubelet client what they need; a repeat changes nothing."""
    _role(api, kwok.KWOK_USER, kwok.rules())
    read = ["get", "list", "watch"]
    _role(
        api,
        DNS_USER,
        (
            {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": read},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
        ),
    )
    _bind(api, user="swingbus:kubelet-client", role="system:kubelet-api-admin")


def _role(api: Api, user: str, rules: Sequence[dict[str, Any]]) -> None:
    body = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": user}}
    api.ensure(_ROLES, {**body, "rules": list(rules)})
    _bind(api, user=user, role=user)


def _bind(api: Api, *, user: str, role: str) -> None:
    api.ensure(
        _BINDINGS,
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        },
    )
