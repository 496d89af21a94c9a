"""Sees the demo's pods as a platform team does, and the GPUs as the simulator knows them: what the report counts of pods.

Looks twice a second. Decides nothing; figures that need the controller's own record come from its flips.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swingbus.faults import SwingbusError
from swingbus_sim.demo_kube.manifests import CUSTOMERS, MINERS
from swingbus_sim.demo_kube.pods import PodSide
from swingbus_sim.nvml.shelf import Shelf

_LOOK_S = 0.5
GATE = "swingbus.io/power"


@dataclass(slots=True)
class PodLife:
    """One pod as it was seen: Unix-free, in scenario seconds."""

    name: str
    namespace: str
    gpu_count: int
    made_s: float
    bound_s: float | None = None
    ready_s: float | None = None
    leaving_s: float | None = None
    gone_s: float | None = None
    node: str = ""


@dataclass(slots=True)
class ForceDeleted:
    """A pod whose object was taken away while its process lived."""

    name: str
    node: str
    at_s: float
    working_after_s: float = 0.0  # how long its GPUs were still worked on
    lifted_meanwhile: list[str] = field(default_factory=list)


class PodWatch:
    """Follows the pods of one run."""

    def __init__(self, pods: PodSide, *, shelves: Path, now: Callable[[], float]) -> None:
        self._pods = pods
        self._shelves = shelves
        self._now = now
        self.lives: dict[str, PodLife] = {}
        self.force_deleted: list[ForceDeleted] = []
        self.conditions: dict[str, set[str]] = {}
        self.messages: dict[str, str] = {}
        self.gated: set[str] = set()
        self.failures = Counter[str]()

    def note_force_deleted(self, name: str, node: str) -> None:
        """Watch what becomes of the GPUs of a pod that the API has forgotten."""
        self.force_deleted.append(ForceDeleted(name, node, self._now()))

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except SwingbusError as error:
                self.failures[type(error).__name__] += 1
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Look once."""
        now_s = self._now()
        there: set[str] = set()
        gated: set[str] = set()
        for namespace in (CUSTOMERS, MINERS):
            for pod in await self._pods.pods(namespace):
                uid = pod["metadata"]["uid"]
                there.add(uid)
                self._see(uid, namespace, pod, now_s)
                if any(gate["name"] == GATE for gate in pod["spec"].get("schedulingGates", [])):
                    gated.add(pod["metadata"]["name"])
        self.gated = gated
        for uid, life in self.lives.items():
            if uid not in there and life.gone_s is None:
                life.gone_s = now_s
        for each in self.force_deleted:
            if await asyncio.to_thread(self.working_count, each.node) > self._living_gpu_count(each.node):
                each.working_after_s = now_s - each.at_s
        pool = await self._pods.pool()
        for condition in pool.get("status", {}).get("conditions", []):
            word = f"{condition['status']}/{condition['reason']}"
            self.conditions.setdefault(condition["type"], set()).add(word)
            self.messages[f"{condition['type']}/{condition['reason']}"] = condition.get("message", "")

    def _see(self, uid: str, namespace: str, pod: dict[str, Any], now_s: float) -> None:
        life = self.lives.get(uid)
        if life is None:
            limits = pod["spec"]["containers"][0].get("resources", {}).get("limits", {})
            count = int(limits.get("nvidia.com/gpu", 0))
            life = self.lives[uid] = PodLife(pod["metadata"]["name"], namespace, count, now_s)
        if life.bound_s is None and pod["spec"].get("nodeName"):
            life.bound_s, life.node = now_s, pod["spec"]["nodeName"]
        conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
        if life.ready_s is None and conditions.get("Ready") == "True":
            life.ready_s = now_s
        if life.leaving_s is None and pod["metadata"].get("deletionTimestamp"):
            life.leaving_s = now_s

    def _living_gpu_count(self, node: str) -> int:
        return sum(life.gpu_count for life in self.lives.values() if life.node == node and life.gone_s is None)

    def working_count(self, node: str) -> int:
        """Return how many of a node's GPUs somebody works on, by the simulator's own word."""
        plans = [plan.name for plan in self._pods.up.real_nodes]
        shelf = Shelf(self._shelves / self._pods.hosts[plans.index(node)])
        return len({process.gpu for process in shelf.processes()})
