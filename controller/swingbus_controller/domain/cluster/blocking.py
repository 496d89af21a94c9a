"""Who could not be moved: pods that a disruption budget keeps, nodes that rejected pods. Forgotten at a restart, and learned again.

Decides when trying is given up and how long a node rests. Refuses to know calls. Invariant: a rest grows with rejections and is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from swingbus_controller.domain.cluster.facts import OnBlocked, PodRef, Pool
from swingbus_controller.domain.cluster.state import ClusterState

# A pod that a budget kept is not chosen again for this long: its owner has to act.
_CHOSEN_AGAIN_S = 600.0
_REST_BASE_S, _REST_LONGEST_S = 10.0, 600.0
REJECTIONS_UNTIL_FAILED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A pod that a disruption budget keeps."""

    since_s: float
    last_s: float
    budget: str
    detail: str
    is_for_ever: bool = False  # two budgets select it: the Eviction API never takes it
    why_not_deleted: str = ""  # its pool overrules the budget, and the API server did not let us


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A node that could not start what was sent there, so many times in a row."""

    count: int
    last_s: float
    reason: str
    pods: frozenset[PodRef] = frozenset()

    @property
    def rests_until_s(self) -> float:
        """Return until when nothing is sent there."""
        return self.last_s + min(_REST_LONGEST_S, _REST_BASE_S * 2.0 ** (self.count - 1))


@dataclass(slots=True)
class Blockings:
    """All of them, by pod and by bank."""

    blocked: dict[PodRef, Blocked] = field(default_factory=dict)
    rejected: dict[str, Rejected] = field(default_factory=dict)

    def note_blocked(self, ref: PodRef, *, budget: str, detail: str, now_s: float, is_for_ever: bool = False) -> None:
        """Take a budget's no."""
        known = self.blocked.get(ref)
        since_s = now_s if known is None else known.since_s
        self.blocked[ref] = Blocked(
            since_s=since_s, last_s=now_s, budget=budget, detail=detail, is_for_ever=is_for_ever
        )

    def note_not_deleted(self, ref: PodRef, why: str, now_s: float) -> None:
        """Take that a pod may not be deleted over its budget: it is kept still."""
        if ref in self.blocked:
            self.blocked[ref] = replace(self.blocked[ref], last_s=now_s, why_not_deleted=why)

    def note_rejected(self, bank: str, ref: PodRef, reason: str, now_s: float) -> None:
        """Take that a pod failed on its node; the same pod counts once."""
        known = self.rejected.get(bank)
        if known is None:
            self.rejected[bank] = Rejected(count=1, last_s=now_s, reason=reason, pods=frozenset({ref}))
        elif ref not in known.pods:
            self.rejected[bank] = replace(
                known, count=known.count + 1, last_s=now_s, reason=reason, pods=known.pods | {ref}
            )

    def note_started(self, bank: str) -> None:
        """Take that a pod of a bank has become ready: earlier rejections are forgotten."""
        self.rejected.pop(bank, None)

    def forget_gone(self, cluster: ClusterState) -> None:
        """Forget pods that are no more."""
        for ref in [ref for ref in self.blocked if cluster.pod(ref) is None]:
            del self.blocked[ref]

    def is_blocked(self, ref: PodRef, now_s: float) -> bool:
        """Tell whether a pod is better not chosen to leave."""
        known = self.blocked.get(ref)
        return known is not None and now_s - known.last_s < _CHOSEN_AGAIN_S

    def is_resting(self, bank: str, now_s: float) -> bool:
        """Tell whether nothing is to be sent to a bank now."""
        known = self.rejected.get(bank)
        return known is not None and now_s < known.rests_until_s

    def is_past_deadline(self, ref: PodRef, pool: Pool, now_s: float) -> bool:
        """Tell whether a pod was kept by its budget until the eviction's deadline.

        One that is never taken need not be asked that long. But where its pool overrules the budget its owner has that time.
        """
        known = self.blocked.get(ref)
        if known is None:
            return False
        if known.is_for_ever and pool.on_blocked is not OnBlocked.DELETE:
            return True
        return now_s - known.since_s >= pool.evict_deadline_s

    def why_given_up(self, ref: PodRef, pool: Pool, now_s: float) -> str:
        """Return why a pod is left where it is, empty while it is still asked to leave."""
        if pool.on_blocked is not OnBlocked.CAP or not self.is_past_deadline(ref, pool, now_s):
            return ""
        return f"pod {ref} stays: {self.blocked[ref].detail}"
