"""What the real API server enforces on the kinds that we write: gates, schemas, budgets, evictions."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from tests.fakes.api_server.store import Json, Place, Refusal, Store

# The CapacityPool schema as far as tests need it: a dict lists its fields, None stands for anything.
_ANYTHING: Json = {"*": None}
_POOL_SCHEMA: Json = {
    "apiVersion": None,
    "kind": None,
    "metadata": _ANYTHING,
    "spec": {
        "site": None,
        "container": None,
        "nodeSelector": _ANYTHING,
        "resource": None,
        "caps": {"mining": None, "inference": None},
        "mining": _ANYTHING,
        "inference": _ANYTHING,
        "timing": _ANYTHING,
        "mode": None,
    },
    "status": {
        "observedGeneration": None,
        "epoch": None,
        "gpus": dict.fromkeys(("total", "inference", "mining", "standby", "flipping", "unknown")),
        "waiting": {"pods": None, "gpus": None, "oldest": None},
        "watts": {"limit": None, "granted": None, "reserved": None},
        "conditions": None,
    },
}


def check_fields(plural: str, body: Json, *, is_strict: bool, is_patch: bool = False) -> Json:
    """Return a pool without fields that its schema lacks; a strict writer is told of them instead."""
    if plural != "capacitypools":
        return body
    unknown: list[str] = []
    pruned = _prune(body, _POOL_SCHEMA, "", unknown)
    if unknown and is_strict:
        listed = ", ".join(f'unknown field "{name}"' for name in unknown)
        said = f"strict decoding error: {listed}"
        if is_patch:  # the real server quotes the whole object before it comes to the point
            raise Refusal(
                422, "Invalid", f' "" is invalid: patch: Invalid value: {json.dumps(json.dumps(body))}: {said}'
            )
        raise Refusal(
            400, "BadRequest", f'CapacityPool in version "v1alpha1" cannot be handled as a CapacityPool: {said}'
        )
    return dict(pruned)


def _prune(value: Any, schema: Any, path: str, unknown: list[str]) -> Any:
    if schema is None or "*" in schema or not isinstance(value, dict):
        return value
    kept = {}
    for name, inner in value.items():
        if name in schema:
            kept[name] = _prune(inner, schema[name], f"{path}{name}.", unknown)
        else:
            unknown.append(f"{path}{name}")
    return kept


def check_new_pod(pod: Json) -> None:
    """Refuse a gated pod that names its node."""
    spec = pod.setdefault("spec", {})
    pod.setdefault("status", {"phase": "Pending"})
    if spec.get("schedulingGates") and spec.get("nodeName"):
        raise _invalid("pods", "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared")


def check_pod_change(before: Json, after: Json) -> None:
    """Gates only go; a node selector only grows, and only while gated; nothing else of a spec changes."""
    old, new = copy.deepcopy(before["spec"]), copy.deepcopy(after["spec"])
    old_gates, new_gates = old.pop("schedulingGates", []), new.pop("schedulingGates", [])
    if any(gate not in old_gates for gate in new_gates):
        raise _invalid("pods", "spec.schedulingGates: Forbidden: only deletion is allowed")
    old_selector, new_selector = old.pop("nodeSelector", {}), new.pop("nodeSelector", {})
    grows = all(new_selector.get(key) == value for key, value in old_selector.items())
    if new_selector != old_selector and not (old_gates and grows):
        raise _invalid("pods", "spec.nodeSelector: Invalid value: only additions are allowed, and only while gated")
    if old != new:
        raise _invalid(
            "pods", "spec: Forbidden: pod updates may not change fields other than image, gates, tolerations"
        )


def delete(store: Store, place: Place, options: Json) -> Json:
    """Delete as asked: a pod on a node ends gracefully, one without a node goes at once."""
    wanted = options.get("preconditions") or {}
    store.check_preconditions(place, wanted.get("uid"), wanted.get("resourceVersion"))
    current = store.get(place)
    grace_s = options.get("gracePeriodSeconds", 30)
    if place[0] == "pods" and current["spec"].get("nodeName") and grace_s > 0:
        return store.mark_deleting(place, grace_s)
    return store.remove(place)


def evict(store: Store, place: Place, body: Json) -> None:
    """Evict a pod if its budget allows."""
    pod = store.get(place)
    if pod["status"].get("phase") not in ("Pending", "Succeeded", "Failed"):
        budgets = [
            budget
            for budget in store.select("poddisruptionbudgets", place[1])
            if _selects(budget["spec"].get("selector"), pod["metadata"].get("labels") or {})
        ]
        if len(budgets) > 1:
            raise Refusal(
                500,
                "InternalError",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )
        for budget in budgets:
            _spend(store, budget)
    delete(store, place, body.get("deleteOptions") or {})


def _spend(store: Store, budget: Json) -> None:
    name, status = budget["metadata"]["name"], budget["status"]
    wait_s = budget["metadata"].get("annotations", {}).get("fake/retry-after")
    if status["disruptionsAllowed"] <= 0:
        cause = (
            f"The disruption budget {name} needs {status['desiredHealthy']} healthy pods "
            f"and has {status['currentHealthy']} currently"
        )
        raise Refusal(
            429,
            "TooManyRequests",
            "Cannot evict pod as it would violate the pod's disruption budget.",
            details={"causes": [{"reason": "DisruptionBudget", "message": cause}]},
            retry_after_s=int(wait_s) if wait_s else None,
        )


def count_budgets(store: Store) -> None:
    """Bring every budget's status up to date, as the disruption controller does a moment later."""
    for budget in store.select("poddisruptionbudgets", ""):
        meta, spec = budget["metadata"], budget["spec"]
        pods = [
            pod
            for pod in store.select("pods", meta["namespace"])
            if _selects(spec.get("selector"), pod["metadata"].get("labels") or {})
        ]
        healthy = sum(
            "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
            for pod in pods
        )
        if "minAvailable" in spec:
            desired = _share(spec["minAvailable"], len(pods))
        else:
            desired = max(0, len(pods) - _share(spec.get("maxUnavailable", 0), len(pods)))
        budget["status"] = {
            "observedGeneration": meta["generation"],
            "expectedPods": len(pods),
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": max(0, healthy - desired),
        }
        store.update(("poddisruptionbudgets", meta["namespace"], meta["name"]), budget)


def _share(amount: int | str, total: int) -> int:
    return math.ceil(int(amount.rstrip("%")) * total / 100) if isinstance(amount, str) else amount


def _selects(selector: Json | None, labels: dict[str, str]) -> bool:
    if selector is None:
        return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _invalid(plural: str, message: str) -> Refusal:
    return Refusal(422, "Invalid", f"{plural} is invalid: {message}")
