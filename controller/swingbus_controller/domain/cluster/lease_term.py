"""Who may write: the rules of a lease that several programs compete for.

Decides what to do about a lease as it was last read. Refuses to compare clocks of two machines: another's lease is over when *we* saw it
unchanged for its whole duration. Invariant: a holder stops writing (`renew_within_s`) before anybody else may take over (`duration_s`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from swingbus.faults import InvalidInput

_FOREIGN_DURATION_AT_MOST_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """Args:
    duration_s: how long others wait after the last renewal that they saw.
    renew_within_s: how long after the start of its last good renewal a holder may write.
    retry_s: between two tries.
    """

    duration_s: float = 15.0
    renew_within_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.renew_within_s < self.duration_s:
            raise InvalidInput(
                f"lease terms {self.retry_s:g} / {self.renew_within_s:g} / {self.duration_s:g} s do not fit: "
                "retry must be shorter than renew, and renew shorter than duration",
                reason="BAD_LEASE_TERMS",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLease:
    """A lease as read.

    Args:
        mark: whatever changes with every renewal.
        since_s: our clock when we first saw this mark.
    """

    holder: str
    mark: str
    duration_s: float
    since_s: float


class LeaseMove(StrEnum):
    """What to do now."""

    RENEW = "renew"
    TAKE = "take"
    WAIT = "wait"


def see(before: SeenLease | None, *, holder: str, mark: str, duration_s: float, now_s: float) -> SeenLease:
    """Return what is known after reading the lease again."""
    if before is not None and (before.holder, before.mark) == (holder, mark):
        return before
    return SeenLease(holder=holder, mark=mark, duration_s=min(duration_s, _FOREIGN_DURATION_AT_MOST_S), since_s=now_s)


def move(seen: SeenLease, *, me: str, terms: LeaseTerms, now_s: float) -> LeaseMove:
    """Return what to do about a lease.

    >>> lease = SeenLease(holder="other", mark="7", duration_s=15, since_s=100)
    >>> [move(lease, me="we", terms=LeaseTerms(), now_s=now_s).value for now_s in (114, 116)]
    ['wait', 'take']
    """
    if seen.holder == me:
        return LeaseMove.RENEW
    if not seen.holder:
        return LeaseMove.TAKE
    # One that tells a shorter duration than ours may be wrong about it; waiting longer is always safe.
    over_at_s = seen.since_s + max(seen.duration_s, terms.duration_s)
    return LeaseMove.TAKE if now_s > over_at_s else LeaseMove.WAIT
