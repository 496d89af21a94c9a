"""The report of a demo with pods: the demo's fields, and what became of pods."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from swingbus_sim.demo_kube.manifests import MINERS
from swingbus_sim.demo_kube.watching import PodLife, PodWatch

_POD_CALL = "pod_call_made"


def pod_calls(log: Path) -> list[dict[str, Any]]:
    """Return the calls that the controller's own log tells of, oldest first."""
    calls: list[dict[str, Any]] = []
    for line in log.read_text(errors="replace").splitlines():
        if _POD_CALL not in line or not line.startswith("{"):
            continue
        try:
            calls.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed process
    return calls


def pod_figures(
    flips: Iterable[Mapping[str, Any]], agents: Iterable[str], watch: PodWatch, calls: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what is counted of pods.

    Args:
        flips: rows of the demo's report; agents: whose banks run pods.
    """
    here = set(agents)
    moved = [flip for flip in flips if str(flip["bank"]).partition("/")[0] in here and not flip["is_cap"]]
    active = [flip for flip in moved if flip["outcome"] == "ACTIVE"]
    paths = Counter(f"{flip['from']}->{flip['to']} {flip['outcome']}" for flip in moved)
    evictions = Counter(str(call.get("answer")) for call in calls if call.get("call") == "EvictPod")
    miners = [life for life in watch.lives.values() if life.namespace == MINERS]
    servers = [life for life in watch.lives.values() if life.namespace != MINERS]
    reclaimed = sum(life.gpu_count for life in servers if life.bound_s is not None)
    killed = sum(life.gpu_count for life in miners if life.leaving_s is not None)
    waits = sorted(life.bound_s - life.made_s for life in servers if life.bound_s is not None)
    return {
        "flips_by_path": dict(sorted(paths.items())),
        "mode_flips_through_pods": len(active),
        "pods_mining_to_inference": sum(f["to"] == "INFERENCE" and f["from"] == "MINING" for f in active),
        "pods_inference_to_mining": sum(f["from"] == "INFERENCE" and f["to"] == "MINING" for f in active),
        "pods_into_inference": sum(f["to"] == "INFERENCE" for f in active),
        "pods_out_of_inference": sum(f["from"] == "INFERENCE" for f in active),
        "evictions": dict(sorted(evictions.items())),
        "pods_gone_while_alive": [
            {"pod": each.name, "node": each.node, "worked_on_s": round(each.working_after_s, 1)}
            for each in watch.force_deleted
        ],
        "miners_killed_per_gpu": round(killed / reclaimed, 2) if reclaimed else None,
        "reclaim_seconds": {"p50": _quantile(waits, 0.5), "p99": _quantile(waits, 0.99), "count": len(waits)},
        "gated_at_the_end": sorted(watch.gated),
        "pool_conditions": {name: sorted(words) for name, words in sorted(watch.conditions.items())},
        "pool_messages": watch.messages,
        "pods_seen": len(watch.lives),
    }


def _quantile(values: list[float], share: float) -> float | None:
    """Return the value below which that share of the values lies (nearest rank), None where there are none."""
    if not values:
        return None
    return round(values[min(len(values) - 1, int(share * len(values)))], 2)


def pod_bars(figures: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Return (promise, kept, figure) of what the demo promises about pods."""
    flips = figures["mode_flips_through_pods"]
    into, out = figures["pods_into_inference"], figures["pods_out_of_inference"]
    gone = figures["pods_gone_while_alive"]
    worked = [each["worked_on_s"] for each in gone]
    blocked = figures["evictions"].get("blocked", 0)
    return [
        ("at least 12 mode flips through pods", flips >= 12, str(flips)),
        ("at least 4 into inference", into >= 4, str(into)),
        ("at least 4 out of inference", out >= 4, str(out)),
        ("a force-deleted pod's GPU was worked on by a living process", any(s >= 5.0 for s in worked), f"{worked} s"),
        ("a disruption budget blocked an eviction", blocked >= 1, str(blocked)),
    ]


__all__ = ["PodLife", "pod_bars", "pod_calls", "pod_figures"]
