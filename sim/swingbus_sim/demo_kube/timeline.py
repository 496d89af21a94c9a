"""What happens to the pods of the demo's cluster, and when: a platform team at work, and an unlucky day.

Seconds are the scenario's; what the site suffers (a price spike, a curtailment, a blip, a killed controller) is in the scenario.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from swingbus_sim.demo.story import Run
from swingbus_sim.demo_kube.pods import PodSide
from swingbus_sim.demo_kube.watching import PodWatch

CHAT, LARGE = "chat", "large"
KUBELET_GONE_S = 25.0
DRAIN_WAITS_S = 20.0
DRAIN_LEAST_S, DRAIN_LONGEST_S = 12.0, 40.0
_BLOCKED = "True/BudgetKeepsPods"


@dataclass(slots=True)
class Timeline:
    """Plays once."""

    run: Run
    pods: PodSide
    watch: PodWatch
    force_deleted: list[str] = field(default_factory=list)

    async def play(self) -> None:
        """Do everything at its time, then wait to be cancelled."""
        acts: tuple[tuple[float, Callable[[], Awaitable[None]]], ...] = (
            (50.0, lambda: self._serve(CHAT, 6)),
            (80.0, lambda: self._serve(CHAT, 2)),
            (104.0, lambda: self._serve(LARGE, 1)),
            (118.0, lambda: self._serve(CHAT, 8)),
            (138.0, self._drain),
            (162.0, lambda: self._serve(CHAT, 10)),
            (212.0, self._lose_kubelet),
            (240.0, lambda: self._serve(CHAT, 4)),
            (266.0, lambda: self._serve(CHAT, 9)),
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.watch.run())
            for at_s, act in acts:
                await asyncio.sleep(max(0.0, at_s - self.run.now()))
                await act()
            await asyncio.sleep(self.run.scenario.duration_s)

    async def _serve(self, name: str, replicas: int) -> None:
        self.run.note(f"{name}: {replicas} replicas are wanted")
        await self.pods.serve(name, replicas, gpu_count=4 if name == LARGE else 1)

    async def _lose_kubelet(self) -> None:
        """A kubelet dies with its pods alive; somebody force-deletes one of them, whose process works on."""
        node = await self.pods.kill_kubelet(0)
        self.run.note(f"kubelet of {node} killed; its pods go on")
        name = await self.pods.force_delete_one(node)
        if name:
            self.force_deleted.append(name)
            self.watch.note_force_deleted(name, node)
            self.run.note(f"pod {name} force-deleted: the API forgets it, its process works on")
        await asyncio.sleep(KUBELET_GONE_S)
        await self.pods.start_kubelet(0)
        self.run.note(f"kubelet of {node} is back")

    async def _drain(self) -> None:
        """Work on the pool: one workload may leave, the other's budget lets nobody go; it relents when the pool has said who is kept.

        Nobody is evicted from a workload of which pods wait: so not before all of them were let go, or a while has passed.
        """
        await self._until(lambda: not any(name.startswith(f"{CHAT}-") for name in self.watch.gated), DRAIN_WAITS_S)
        await self.pods.protect(CHAT, 8)
        await self.pods.set_pool(mode="Drain")
        self.run.note("the pool is drained for work on it; the budget of chat lets none of its 8 go")
        await asyncio.sleep(DRAIN_LEAST_S)
        await self._until(
            lambda: _BLOCKED in self.watch.conditions.get("DrainBlocked", ()), DRAIN_LONGEST_S - DRAIN_LEAST_S
        )
        await self.pods.protect(CHAT, 2)
        await self.pods.set_pool(mode="Auto")
        self.run.note("the pool works again; of chat 2 must stay")

    async def _until(self, so: Callable[[], bool], longest_s: float) -> None:
        """Look every half second until it is so, but no longer than that."""
        for _ in range(round(longest_s / 0.5)):
            if so():
                break
            await asyncio.sleep(0.5)
