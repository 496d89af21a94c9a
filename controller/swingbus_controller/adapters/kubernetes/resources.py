"""Which kinds we touch and where the API server keeps them.

Decides URL paths. Refuses to know hosts and headers. Invariant: every part of a path is escaped, so that no name can leave its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
_METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind at its address. `api_version` is as objects carry it: `v1`, `policy/v1`."""

    api_version: str
    kind: str
    plural: str
    is_namespaced: bool = True

    @property
    def group(self) -> str:
        """Return the API group, empty for the core."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of a collection (no name), an object or its subresource."""
        parts = ["apis" if self.group else "api", *self.api_version.split("/")]
        if namespace and self.is_namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(quote(part, safe="") for part in parts)


PODS = Resource(api_version="v1", kind="Pod", plural="pods")
NAMESPACES = Resource(api_version="v1", kind="Namespace", plural="namespaces", is_namespaced=False)
POD_TEMPLATES = Resource(api_version="v1", kind="PodTemplate", plural="podtemplates")
SECRETS = Resource(api_version="v1", kind="Secret", plural="secrets")
NODES = Resource(api_version="v1", kind="Node", plural="nodes", is_namespaced=False)
DISRUPTION_BUDGETS = Resource(api_version="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets")
LEASES = Resource(api_version="coordination.k8s.io/v1", kind="Lease", plural="leases")
EVENTS = Resource(api_version="events.k8s.io/v1", kind="Event", plural="events")
CAPACITY_POOLS = Resource(
    api_version="swingbus.io/v1alpha1", kind="CapacityPool", plural="capacitypools", is_namespaced=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall:
    """One request, in the words of RBAC: they are what an operator needs when it is refused.

    Args:
        verb: get, list, watch, create, update, patch or delete.
        body: what is sent as JSON; a list for a JSON patch.
    """

    verb: str
    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = JSON

    @property
    def method(self) -> str:
        return _METHODS[self.verb]

    @property
    def target(self) -> str:
        """Return path and query."""
        path = self.resource.path(self.namespace, self.name, self.subresource)
        return f"{path}?{urlencode(self.query)}" if self.query else path

    @property
    def what(self) -> str:
        """Return the call as people say it: `patch pods/status "a" in namespace "b"`."""
        plural = f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural
        if self.resource.group:
            plural = f"{plural}.{self.resource.group}"
        named = f' "{self.name}"' if self.name else ""
        placed = f' in namespace "{self.namespace}"' if self.namespace else ""
        return f"{self.verb} {plural}{named}{placed}"

    @property
    def facts(self) -> dict[str, str]:
        """Return the call as metadata of a fault."""
        facts = {
            "verb": self.verb,
            "resource": f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural,
            "group": self.resource.group,
            "namespace": self.namespace,
            "name": self.name,
        }
        return {key: value for key, value in facts.items() if value}
