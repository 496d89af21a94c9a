"""A scheduler and kubelets for the fake API server, as far as callers notice: pods are bound, run, leave after a moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.fakes.api_server import rules
from tests.fakes.api_server.store import Json, Store

_MOMENTS_TO_LEAVE = 8


@dataclass
class Nodes:
    """Nodes of one store; `tick` lets a moment pass on all of them."""

    store: Store
    names: tuple[str, ...]
    _leaving: dict[str, int] = field(default_factory=dict)

    def tick(self) -> None:
        """Bind who may be bound, start who was bound, take away who was told to leave a while ago."""
        for pod in self.store.select("pods", ""):
            meta, spec = pod["metadata"], pod["spec"]
            place = ("pods", meta["namespace"], meta["name"])
            if "deletionTimestamp" in meta:
                told = self._leaving[meta["uid"]] = self._leaving.get(meta["uid"], 0) + 1
                if told > _MOMENTS_TO_LEAVE:
                    self.store.remove(place)
            elif not spec.get("nodeName"):
                node = next(
                    (name for name in self.names if not spec.get("schedulingGates") and _may_go(spec, name)), ""
                )
                if node:
                    spec["nodeName"] = node
                    self.store.update(place, pod)
            elif pod["status"].get("phase") == "Pending":
                pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
                self.store.update(place, pod)
        rules.count_budgets(self.store)


def _may_go(spec: Json, node: str) -> bool:
    affinity: Any = spec.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    fields = [match for term in terms for match in term.get("matchFields", [])]
    wanted = (spec.get("nodeSelector") or {}).get("kubernetes.io/hostname", node)
    return bool(wanted == node) and all(node in match["values"] for match in fields)
