"""Demand of pods that leave: whether somebody comes in their place is known only a moment later.

A workload makes the replacement of a pod that was deleted when it sees it go. For that moment the place is kept: giving it to a miner at
once would push two tenants about for nothing. Decides how long. Refuses to know why a pod leaves. Invariant: a place is kept for at most
`KEPT_S`, and not beside a pod that waits in its stead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from swingbus_controller.domain.cluster.facts import ClusterPod, PodRef

KEPT_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A pod that was seen to leave."""

    bank: str
    owner_uid: str
    gpu_count: int
    since_s: float


@dataclass(slots=True)
class Leaving:
    """Pods that left not long ago, by life."""

    left: dict[PodRef, Left] = field(default_factory=dict)

    def note(self, bank: str, pods: Iterable[ClusterPod], now_s: float) -> None:
        """Take in a bank's pods: those that leave and that somebody would make again."""
        for pod in pods:
            if pod.is_leaving and pod.owner_uid and pod.ref not in self.left:
                self.left[pod.ref] = Left(bank=bank, owner_uid=pod.owner_uid, gpu_count=pod.gpu_count, since_s=now_s)

    def kept_counts(self, waiting_by_owner: Mapping[str, int], there: Iterable[PodRef], now_s: float) -> Counter[str]:
        """Return by bank the GPUs that are kept for who may come in place of a pod that left.

        Args:
            waiting_by_owner: waiting pods of each owner: each of them takes the place of one that left.
            there: pods that are still there: while they are, they are remembered, so that each is kept for once.
        """
        known = set(there)
        replaced = Counter(waiting_by_owner)
        kept: Counter[str] = Counter()
        for ref, each in list(self.left.items()):
            if now_s - each.since_s >= KEPT_S:
                if ref not in known:
                    del self.left[ref]
            elif replaced[each.owner_uid] > 0:
                replaced[each.owner_uid] -= 1
            else:
                kept[each.bank] += each.gpu_count
        return kept
