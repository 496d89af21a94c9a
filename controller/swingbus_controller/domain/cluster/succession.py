"""Who takes the place of a pod that a flip brings and that leaves before the flip has ended.

A workload makes the replacement of a pod when it sees it go, and we may see either first. Decides who is next and how long the place is
kept for somebody who is not there yet. Refuses to know flips and watts. Invariants: an heir waits behind our gate alone, fits the node
and is promised to nobody; a place is kept for at most `KEPT_S`, and only where somebody would make the pod again and it may fare better.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from swingbus_controller.domain.cluster.facts import ClusterNode, ClusterPod, PodRef, why_not_on
from swingbus_controller.domain.cluster.leaving import KEPT_S


@dataclass(slots=True)
class Brought:
    """Pods that flips bring: as they were last seen to come, and since when they come no more. Forgotten at a restart."""

    seen: dict[PodRef, ClusterPod] = field(default_factory=dict)
    lost_s: dict[PodRef, float] = field(default_factory=dict)

    def note(self, pod: ClusterPod) -> None:
        """Take a pod that is still coming."""
        self.seen[pod.ref] = pod

    def note_lost(self, ref: PodRef, now_s: float) -> None:
        """Take that a pod comes no more."""
        self.lost_s.setdefault(ref, now_s)

    def forget_others(self, refs: Collection[PodRef]) -> None:
        """Forget pods that no flip brings any more."""
        self.seen = {ref: pod for ref, pod in self.seen.items() if ref in refs}
        self.lost_s = {ref: at_s for ref, at_s in self.lost_s.items() if ref in refs}

    def may_be_followed(self, ref: PodRef, now_s: float) -> bool:
        """Tell whether the replacement of a lost pod may still be on its way to us."""
        gone = self.seen.get(ref)
        return gone is not None and _is_made_again(gone) and now_s - self.lost_s.get(ref, now_s) < KEPT_S


def find_heir(
    gone: ClusterPod | None,
    need_count: int,
    node: ClusterNode,
    line: Iterable[ClusterPod],
    unbound: Iterable[ClusterPod],
) -> ClusterPod | None:
    """Return who takes the place of a pod, first in line first, None where nobody does.

    Args:
        gone: the pod as it was last seen, None where nobody remembers it.
        need_count: GPUs that flips bring it to.
        line: pods that may come to the node; unbound: pods that are bound nowhere, those that came a moment ago among them.
            Of both, without those that a flip brings already.
    """
    # A pod that had some of its places already is followed by one of its own size, which takes those too.
    sizes = [need_count] if gone is None else [gone.gpu_count, need_count]
    found = {pod.ref: pod for pod in line if pod.is_waiting and pod.gpu_count in sizes}
    if gone is not None and _is_made_again(gone):
        # Made again a moment ago, so in no line yet; what held of its like holds of it.
        found |= {
            pod.ref: pod
            for pod in unbound
            if pod.owner_uid == gone.owner_uid
            and (pod.gpu_count, pod.gang, pod.queue) == (gone.gpu_count, "", "")
            and pod.is_waiting
            and not why_not_on(pod, node)
        }
    return min(found.values(), key=lambda pod: (sizes.index(pod.gpu_count), pod.rank), default=None)


def _is_made_again(gone: ClusterPod) -> bool:
    """Tell whether a pod's replacement may have its place; where the scheduler found none for the one, it finds none for its like."""
    return bool(gone.owner_uid) and not gone.is_under_way


def what_became(pod: ClusterPod | None) -> str:
    """Tell why a pod comes no more."""
    if pod is None:
        return "is gone"
    if pod.is_over:
        return f"is over: {pod.failure or 'it ended'}"
    if pod.is_leaving:
        return f"leaves{f' ({pod.disruption})' if pod.disruption else ''}"
    return f"went to node {pod.node}"
