"""The three changes of tenants on the site, each from its cause to what has to be so at its end, and the steps that it has.

A flow is asked three things: come to where it begins (nothing strikes then), begin, and judge that it ended once: one miner left or came,
one pod was let go or evicted, and the pool says why things are as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from swingbus_sim.demo_kube.manifests import CUSTOMERS
from tests.cluster.kills.site import ALL, WEB, KillSite

ALL_IS_WELL = {
    "Ready": "True",
    "WithinLimit": "True",
    "DemandServed": "True",
    "DrainBlocked": "False",
    "AgentsReporting": "True",
    "GateEnforced": "True",
}


def uid_of(pod: dict[str, Any]) -> str:
    """Return which life of a pod it is."""
    return str(pod["metadata"]["uid"])


@dataclass(slots=True)
class Flow:
    """What the flows have in common."""

    name: ClassVar[str]
    steps: ClassVar[tuple[str, ...]]
    serving_before: ClassVar[int]
    site: KillSite
    miners_before: set[str] = field(default_factory=set)
    revision_before: int = 0

    async def come_to_start(self) -> None:
        """Bring the site to where the flow begins, whatever was before."""
        site = self.site
        site.pay_for_inference(pays=True)
        replicas = {pod["metadata"]["name"] for pod in await site.ready(WEB)}
        if len(replicas) != self.serving_before:
            await site.serve(WEB, self.serving_before)
        elif not replicas:
            await site.pods.serve(WEB, 0)
        await site.at_rest(serving=self.serving_before)
        self.miners_before = {uid_of(pod) for pod in await site.miners()}
        assert len(self.miners_before) == ALL - self.serving_before
        self.revision_before = site.revision()

    async def begin(self) -> None:
        """Let happen what the flow comes of."""
        raise NotImplementedError

    async def judge(self) -> None:
        """Wait for its end and assert that it is the right one."""
        raise NotImplementedError

    async def miners(self) -> set[str]:
        """Return the miners that there are now."""
        return {uid_of(pod) for pod in await self.site.miners()}


@dataclass(slots=True)
class ToInference(Flow):
    """A gated pod comes: one miner leaves for it, and that one only; it is let go and neither evicted nor made again."""

    name = "to-inference"
    steps = (
        "flip_planned",
        "grant_grow",
        "flip_draining",
        "DeleteMiner",
        "flip_released",
        "flip_starting",
        "LiftGate",
        "flip_starting_2",
        "flip_verifying",
        "flip_active",
    )
    serving_before = 0
    chosen: str = ""

    async def begin(self) -> None:
        await self.site.pods.serve(WEB, 1)

        async def has_come() -> bool:
            return len(await self.site.pods.pods(CUSTOMERS)) == 1

        await self.site.until(has_come, "the pod was made")
        (pod,) = await self.site.pods.pods(CUSTOMERS)
        self.chosen = uid_of(pod)

    async def judge(self) -> None:
        await self.site.at_rest(serving=1)
        left = await self.miners()
        assert left < self.miners_before and len(left) == ALL - 1, await self.site.explain()
        (pod,) = await self.site.pods.pods(CUSTOMERS)
        assert uid_of(pod) == self.chosen, "another pod serves than the one that came"
        assert [each["restartCount"] for each in pod["status"]["containerStatuses"]] == [0]
        await self.site.says(ALL_IS_WELL)


@dataclass(slots=True)
class ByScaleDown(Flow):
    """The owner takes the pod away: one miner comes in its place, the seven others live on."""

    name = "by-scale-down"
    steps = (
        "flip_draining",
        "flip_released",
        "flip_starting",
        "MakeMiner",
        "flip_verifying",
        "flip_active",
        "grant_shrink",
    )
    serving_before = 1

    async def begin(self) -> None:
        await self.site.pods.serve(WEB, 0)

    async def judge(self) -> None:
        await self.site.at_rest(serving=0)
        there = await self.miners()
        assert self.miners_before < there and len(there) == ALL, await self.site.explain()
        assert not await self.site.pods.pods(CUSTOMERS)
        await self.site.says(ALL_IS_WELL)


@dataclass(slots=True)
class ByEviction(Flow):
    """Inference pays no more: the pod is evicted once, its one successor waits behind the gate, one miner comes."""

    name = "by-eviction"
    steps = (
        "flip_draining",
        "EvictPod",
        "flip_released",
        "flip_starting",
        "MakeMiner",
        "flip_verifying",
        "flip_active",
        "grant_shrink",
    )
    serving_before = 1
    seen_before: frozenset[str] = frozenset()

    async def begin(self) -> None:
        self.seen_before = frozenset(self.site.customers_seen) | {uid_of(p) for p in await self.site.ready(WEB)}
        self.site.pay_for_inference(pays=False)

    async def judge(self) -> None:
        await self.site.at_rest(serving=0, waiting=1)
        there = await self.miners()
        assert self.miners_before < there and len(there) == ALL, await self.site.explain()
        (waits,) = await self.site.pods.pods(CUSTOMERS)
        assert self.site.customers_seen - self.seen_before == {uid_of(waits)}, "somebody was evicted more than once"
        await self.site.says(ALL_IS_WELL | {"DemandServed": "False"}, reason=("DemandServed", "NotWorth"))


FLOWS: tuple[type[Flow], ...] = (ToInference, ByScaleDown, ByEviction)
