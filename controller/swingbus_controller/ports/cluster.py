"""What the part that decides needs of a cluster: a copy of what is there, and the calls that move pods.

A call's answer is never evidence: what became of it is seen in the copy, and in what the agents report.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod, PodRef, Pool
from swingbus_controller.domain.cluster.pool_words import PoolWords, Story
from swingbus_controller.domain.cluster.state import ClusterState


class CallAnswer(StrEnum):
    """What came of a call."""

    TAKEN = "taken"  # the API server took it, or had taken it before
    GONE = "gone"  # the life that was meant is over
    STALE = "stale"  # it has changed since it was looked at: decide again
    BLOCKED = "blocked"  # a disruption budget says no, for now
    REFUSED = "refused"  # as it is it can never succeed


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """An answer.

    Attributes:
        detail: for people.
        budget: the disruption budget that blocks, empty where several do or none is named; needed_count, healthy_count: what it counted.
        retry_after_s: what the server asked for.
        is_for_ever: BLOCKED by several budgets at once: the Eviction API never takes such a pod.
        is_overruled: the budget said no, and the pod was deleted all the same, as its pool says.
    """

    answer: CallAnswer
    detail: str = ""
    budget: str = ""
    needed_count: int | None = None
    healthy_count: int | None = None
    retry_after_s: float | None = None
    is_for_ever: bool = False
    is_overruled: bool = False


class PodCalls(Protocol):
    """One call each, safe to send again. Raises WrongState without a permit, OverBudget where the server asks to wait (nothing was
    sent), and another SwingbusError where nobody knows what became of it.
    """

    async def delete_pod(self, pod: PodRef, *, grace_s: int | None) -> CallOutcome:
        """Ask for a deletion; without `grace_s` the pod has the time to end that it asked for itself."""
        ...

    async def evict_pod(self, pod: PodRef, *, only_revision: str = "") -> CallOutcome:
        """Ask for an eviction; `only_revision` makes it hold only for the state that was looked at."""
        ...

    async def lift_gate(self, pod: ClusterPod, node: ClusterNode, pool: Pool, *, flip: str) -> CallOutcome:
        """Take our gate away, narrow the pod to the node and mark it, in one step or not at all."""
        ...

    async def make_miner(self, pool: Pool, node: ClusterNode, *, slot: int, gpu_count: int, flip: str) -> CallOutcome:
        """Create the miner of a slot from the pool's template."""
        ...

    async def write_pool(self, pool: Pool, words: PoolWords) -> CallOutcome:
        """Replace a pool's status."""
        ...

    async def tell(self, story: Story) -> CallOutcome:
        """Post an event, once however often it is sent."""
        ...


class Cluster(Protocol):
    """A cluster: what is there, and who may write."""

    @property
    def state(self) -> ClusterState: ...

    @property
    def calls(self) -> PodCalls: ...

    def may_write_s(self) -> float:
        """Return for how many seconds from now this controller may write; 0 or less: not at all."""
        ...

    async def wait_changed(self) -> None:
        """Return when the copy has changed since the last return."""
        ...
