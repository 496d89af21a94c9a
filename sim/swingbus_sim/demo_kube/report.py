"""The report of a demo with pods: the demo's fields, and what became of pods."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from swingbus.fleet.v1alpha import fleet_pb2
from swingbus_sim.demo_kube.manifests import MINERS
from swingbus_sim.demo_kube.watching import PodLife, PodWatch

_BACK_WITHIN_S = 15.0


def logged(log: Path, event: str) -> list[dict[str, Any]]:
    """Return what the controller's own log tells of one kind of event, oldest first."""
    found: list[dict[str, Any]] = []
    for line in log.read_text(errors="replace").splitlines():
        if event not in line or not line.startswith("{"):
            continue
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed process
    return found


def controller_figures(
    lives: Sequence[tuple[str, str]],
    killed_s: float | None,
    events: Iterable[tuple[float, fleet_pb2.Event]],
    leases: Iterable[Mapping[str, Any]],
    *,
    unix_at_zero: float,
) -> dict[str, Any]:
    """Return what became of the controller's pods.

    It decides again when it has given out a grant and holds the lease that lets it move pods, both by its own word.

    Args:
        lives: (name, uid) of each pod that it was; killed_s: when one was killed, in seconds of the scenario.
        events: its record, oldest first; leases: `lease_acquired` of its log.
    """
    after_s = math.inf if killed_s is None else killed_s
    record = [(at_s, event) for at_s, event in events if at_s > after_s]
    came_up = [number for number, (_, event) in enumerate(record) if event.kind == "controller_came_up"]
    # The last: a kubelet that was quicker than the deletion would have started the killed container once more.
    granted = [at_s for at_s, event in record[came_up[-1] :] if event.kind == "grant_issued"] if came_up else []
    told = (datetime.fromisoformat(each["timestamp"]).timestamp() - unix_at_zero for each in leases)
    held = [at_s for at_s in told if at_s > after_s]
    return {
        "controller_pods": [{"pod": name, "uid": uid} for name, uid in lives],
        "controller_epoch": int(record[came_up[-1]][1].facts["epoch"]) if came_up else None,
        "controller_back_s": round(max(granted[0], held[0]) - after_s, 1) if granted and held else None,
    }


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
    names = [each["pod"] for each in figures["controller_pods"]]
    epoch, back_s = figures["controller_epoch"], figures["controller_back_s"]
    # A second term on one journal: it is the same volume.
    is_another = len(names) == 2 and epoch is not None and epoch > 1
    gone = figures["pods_gone_while_alive"]
    worked = [each["worked_on_s"] for each in gone]
    blocked = figures["evictions"].get("blocked", 0)
    return [
        ("at least 12 mode flips through pods", flips >= 12, str(flips)),
        ("at least 4 into inference", into >= 4, str(into)),
        ("at least 4 out of inference", out >= 4, str(out)),
        ("a force-deleted pod's GPU was worked on by a living process", any(s >= 5.0 for s in worked), f"{worked} s"),
        ("a disruption budget blocked an eviction", blocked >= 1, str(blocked)),
        (
            f"the controller's pod was killed, and another decided on its volume within {_BACK_WITHIN_S:.0f} s",
            is_another and back_s is not None and back_s <= _BACK_WITHIN_S,
            f"{back_s} s, term {epoch}, {', '.join(names)}",
        ),
    ]


__all__ = ["PodLife", "controller_figures", "logged", "pod_bars", "pod_figures"]
