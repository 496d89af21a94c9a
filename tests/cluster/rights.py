"""What a service account may do, and what it asked for by the API server's own record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swingbus_sim.cluster.api import Api
from tests.benchmarks.kube.resting import audit_events

_RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource of one role. `namespace` is empty for a role of the whole cluster."""

    role: str
    namespace: str
    resource: str
    verb: str
    name: str = ""


@dataclass(frozen=True)
class Request:
    """What was asked for, and whether it was refused for want of a right."""

    namespace: str
    resource: str
    verb: str
    name: str
    is_forbidden: bool


def granted(api: Api, namespace: str, account: str) -> Iterator[Right]:
    """Yield what roles allow a service account."""
    bindings = api.get(f"{_RBAC}/clusterrolebindings")["items"] + api.get(f"{_RBAC}/rolebindings")["items"]
    for binding in bindings:
        subjects = [(s.get("namespace"), s["name"]) for s in binding.get("subjects", [])]
        if (namespace, account) not in subjects:
            continue
        where, role = binding["metadata"].get("namespace", ""), binding["roleRef"]["name"]
        path = f"{_RBAC}/namespaces/{where}/roles/{role}" if where else f"{_RBAC}/clusterroles/{role}"
        yield from rights_of(api.get(path)["rules"], role, where)


def rights_of(rules: Iterable[dict[str, Any]], role: str, namespace: str) -> Iterator[Right]:
    """Yield what a role's rules allow, one by one."""
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                full = f"{group}/{resource}".lstrip("/")
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames", [""]):
                        yield Right(role, namespace, full, verb, name)


def asked(log: Path, *, after_bytes: int = 0) -> set[Request]:
    """Return what the audit log says, all of it or what came after its first bytes."""
    found: set[Request] = set()
    for event in audit_events(log.read_bytes()[after_bytes:].decode().splitlines(keepends=True)):
        target = event.get("objectRef")
        if target is None:
            continue  # discovery, which everybody may ask for
        resource = "/".join(filter(None, (target.get("apiGroup"), target["resource"], target.get("subresource"))))
        is_forbidden = event.get("responseStatus", {}).get("code") == 403
        found.add(Request(target.get("namespace", ""), resource, event["verb"], target.get("name", ""), is_forbidden))
    return found


def covers(right: Right, request: Request) -> bool:
    """Tell whether a right allows a request."""
    is_where = right.namespace in ("", request.namespace)
    is_what = (right.resource, right.verb) == (request.resource, request.verb)
    return is_where and is_what and right.name in ("", request.name)
