"""The one witness of all contenders: when each pod was first seen bound, told to end, gone; from one watch, on one clock.

The clock is CLOCK_BOOTTIME, as in the nodes' own events, so that a pod's bind, its process and its miner's end compare.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swingbus_sim.cluster.up import Cluster
from swingbus_sim.kwok_site.watching import ApiAddress, PodWatch


def now_s() -> float:
    """Return CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True, kw_only=True)
class Seen:
    """One life of a pod; None is "not yet"."""

    uid: str
    namespace: str
    name: str
    bound_s: float | None = None
    node: str = ""
    ending_s: float | None = None
    gone_s: float | None = None
    reason: str = ""  # why it was disrupted, as Kubernetes says it


class Witness:
    """Watches every pod until it is closed."""

    def __init__(self, cluster: Cluster) -> None:
        self._lock = threading.Lock()
        self._pods: dict[str, Seen] = {}
        self._listed = threading.Event()
        self._watch = PodWatch(
            ApiAddress(cluster.kubeconfig), field_selector="", listed=self._take_list, changed=self._take
        )
        self._watch.start()

    def close(self) -> None:
        """End."""
        self._watch.close()

    @property
    def break_count(self) -> int:
        """How often the watch broke: its times from then on are too late."""
        return self._watch.break_count

    def pods(self, namespace: str) -> list[Seen]:
        """Return every life of every pod of a namespace, also those that are over."""
        with self._lock:
            return [seen for seen in self._pods.values() if seen.namespace == namespace]

    def find(self, uid: str) -> Seen | None:
        """Return one by its uid."""
        with self._lock:
            return self._pods.get(uid)

    def _take_list(self, pods: list[dict[str, Any]]) -> None:
        for pod in pods:
            self._take("LISTED", pod)
        listed = {pod["metadata"]["uid"] for pod in pods}
        at_s = now_s()
        with self._lock:
            for seen in self._pods.values():
                if seen.uid not in listed and seen.gone_s is None:
                    seen.gone_s = at_s

    def _take(self, kind: str, pod: dict[str, Any]) -> None:
        at_s = now_s()
        metadata = pod["metadata"]
        with self._lock:
            seen = self._pods.get(metadata["uid"])
            if seen is None:
                seen = self._pods[metadata["uid"]] = Seen(
                    uid=metadata["uid"], namespace=metadata["namespace"], name=metadata["name"]
                )
            node = pod["spec"].get("nodeName", "")
            if node and seen.bound_s is None:
                seen.bound_s, seen.node = at_s, node
            if "deletionTimestamp" in metadata and seen.ending_s is None:
                seen.ending_s = at_s
            if kind == "DELETED" and seen.gone_s is None:
                seen.gone_s = at_s
                seen.ending_s = at_s if seen.ending_s is None else seen.ending_s
            for condition in pod.get("status", {}).get("conditions", []):
                if condition["type"] == "DisruptionTarget":
                    seen.reason = condition.get("reason", "")


@dataclass(slots=True, kw_only=True)
class Process:
    """When a pod's process began and ended on its GPU, by the physical model; None is "not yet"."""

    uid: str
    tenant: str
    started_s: float | None = None
    ended_s: float | None = None
    was_refused: bool = False


def read_processes(events: Path) -> dict[str, Process]:
    """Return every pod's process by uid, from the nodes' events."""
    found: dict[str, Process] = {}
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        process = found.setdefault(event["uid"], Process(uid=event["uid"], tenant=event["tenant"]))
        match event["what"]:
            case "started":
                process.started_s, process.ended_s = event["at_s"], None
            case "ended":
                process.ended_s = event["at_s"]
            case "refused":
                process.was_refused = True
    return found
