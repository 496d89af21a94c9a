"""What one bank claims, what one feeder has left, and which banks a meter measures alone.

Decides: A_b and a_b of one bank, the metered groups of a site. Refuses to know: limits, time, decisions. Invariant: a
claim falls only in `Account.settle` (evidence) and while isolated. `Account` is the ledger's own and is never handed out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swingbus_controller.domain.power.bank import BankSpec, BankState, ceiling_w
from swingbus_controller.domain.power.budget_events import GrantIssued
from swingbus_controller.domain.power.reports import BankReport, Marker
from swingbus_controller.domain.power.tree import PowerTree


@dataclass(frozen=True, slots=True, kw_only=True)
class BankView:
    """One bank as the ledger sees it now: for decisions, `bank show`, and tests."""

    spec: BankSpec
    state: BankState
    claim_w: float
    least_claim_w: float
    newest: GrantIssued | None
    newest_is_settled: bool
    is_adopted: bool
    is_lapsed: bool
    reported_w: float | None
    heard_s: float | None
    grant_over_by_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeederView:
    """I1 at one feeder: claims + uncontrolled + margin <= limit, in watts."""

    feeder: str
    limit_w: float
    claimed_w: float
    uncontrolled_w: float
    margin_w: float

    @property
    def headroom_w(self) -> float:
        """Watts left (negative: I1 is false)."""
        return self.limit_w - self.claimed_w - self.uncontrolled_w - self.margin_w


class Account:
    """A bank's claims (facts) and what was last heard of it (transient)."""

    __slots__ = (
        "answered_s",
        "ceiling_w",
        "doubt_w",
        "group",
        "group_factor",
        "has_own_grant",
        "has_settled",
        "heard_s",
        "is_adopted",
        "is_isolated",
        "is_settled",
        "is_unproven",
        "marker",
        "newest",
        "older_max_w",
        "older_min_w",
        "past_instances",
        "reported",
        "reported_w",
        "spec",
    )

    def __init__(self, spec: BankSpec, group: str | None, group_factor: float) -> None:
        self.spec = spec
        self.ceiling_w = ceiling_w(spec)
        self.group = group
        self.group_factor = group_factor
        # Facts. Of the grants older than the newest only the largest and the smallest matter, since a settlement
        # always names the newest and drops all the others together.
        self.newest: GrantIssued | None = None
        self.older_max_w: float | None = None
        self.older_min_w: float | None = None
        self.doubt_w: float | None = self.ceiling_w  # before any journal: it may draw anything
        self.is_settled = False
        self.is_adopted = False
        self.has_settled = False  # in the epoch in force
        self.has_own_grant = False  # a grant of the epoch in force
        self.reported_w: float | None = None
        self.is_unproven = True  # no term since an unproven journal has heard its agent: the journal may not know all
        self.is_isolated = False
        # Transient.
        self.reported: BankReport | None = None
        self.heard_s: float | None = None
        self.answered_s: float | None = None
        self.marker: Marker | None = None
        self.past_instances: tuple[str, ...] = ()

    def claim_w(self) -> float:
        """Return A_b without the group's reading."""
        if self.is_isolated:
            return 0.0
        claim_w = self.doubt_w or 0.0
        if self.newest is not None and self.newest.grant_w > claim_w:
            claim_w = self.newest.grant_w
        if self.older_max_w is not None and self.older_max_w > claim_w:
            claim_w = self.older_max_w
        return claim_w

    def least_claim_w(self) -> float:
        """Return a_b: the smallest grant that may be the one in force; 0 where nothing is known."""
        if self.is_adopted and not self.has_own_grant:
            return self.reported_w or 0.0
        if self.newest is None:
            return 0.0
        if self.older_min_w is not None and self.older_min_w < self.newest.grant_w:
            return self.older_min_w
        return self.newest.grant_w

    def add_grant(self, event: GrantIssued) -> None:
        last = self.newest
        if last is not None:
            self.older_max_w = max(last.grant_w, self.older_max_w or 0.0)
        if self.has_own_grant and last is not None:
            self.older_min_w = last.grant_w if self.older_min_w is None else min(last.grant_w, self.older_min_w)
        else:
            # Older epochs are fenced off by the adoption: of them only what the agent reported can be in force.
            self.older_min_w = self.reported_w
        self.newest = event
        self.has_own_grant = True
        self.is_settled = False
        self.marker = None

    def settle(self) -> None:
        self.older_max_w = None
        self.older_min_w = None
        self.doubt_w = None
        self.is_settled = True
        self.has_settled = True

    def begin_term(self) -> None:
        """Start a controller's term: facts of claims stay, all else must be heard anew."""
        self.is_adopted = False
        self.has_own_grant = False
        self.has_settled = False
        self.is_settled = False
        self.reported_w = None
        self.past_instances = ()
        self.reported = None
        self.heard_s = None
        self.answered_s = None
        self.marker = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """The banks below one feeder that share a metered group (or none).

    `members` pairs each with its loss factor to the feeder; `group_factor` is that of the group's meter (1 where the
    meter lies above the feeder: all of the group's excess may then be here).
    """

    members: tuple[tuple[Account, float], ...]
    group: str | None
    group_factor: float


def find_groups(tree: PowerTree, accounts: Iterable[Account]) -> dict[str, tuple[Account, ...]]:
    """Return the groups that power can settle: a meter below the root that measures just its own banks.

    Banks of any other meter get `group = None`: no other reading is ever subtracted, so theirs cannot be known.
    """
    members: dict[str, list[Account]] = {}
    for account in accounts:
        if account.group is not None:
            members.setdefault(account.group, []).append(account)
    groups: dict[str, tuple[Account, ...]] = {}
    for meter, inside in members.items():
        below = tree.subtree(meter)
        measures_others = any(other in below for other in members if other != meter)
        has_loads = any(tree.feeders[name].uncontrolled_max_w > 0.0 for name in below)
        if meter == tree.root or measures_others or has_loads:
            for account in inside:
                account.group = None
        else:
            groups[meter] = tuple(inside)
    return groups


def find_clusters(tree: PowerTree, accounts: Iterable[Account]) -> dict[str, tuple[Cluster, ...]]:
    """Return per feeder the banks below it, clustered by metered group."""
    everything = tuple(accounts)
    below: dict[str, tuple[Cluster, ...]] = {}
    for feeder in tree.feeders:
        inside = tree.subtree(feeder)
        members: dict[str | None, list[tuple[Account, float]]] = {}
        for account in everything:
            if account.spec.feeder in inside:
                factor = tree.loss_factor(account.spec.feeder, feeder)
                members.setdefault(account.group, []).append((account, factor))
        below[feeder] = tuple(
            Cluster(
                members=tuple(pairs),
                group=group,
                group_factor=tree.loss_factor(group, feeder) if group is not None and group in inside else 1.0,
            )
            for group, pairs in members.items()
        )
    return below
