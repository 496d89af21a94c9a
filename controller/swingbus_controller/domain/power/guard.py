"""Protection on every meter sample: name who draws too much, and cut until I1 is true again.

Decides: which reductions follow at once from the ledger and the newest readings. Refuses to know: plans, prices, ramps.
Invariant: it only ever reduces; each cut goes through `decide_shrink`, so while I1 is false none can be a raise.

    for event in exceeded_groups(ledger, now_s): journal(event); ledger.apply(event)
    plan = guard(ledger, steps, now_s)          # steps: the caller's order of giving way
    for event in plan.grants: journal(event); ledger.apply(event)
    send; report plan.unmet_w
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.power.budget import Ledger
from swingbus_controller.domain.power.budget_events import GrantIssued, GrantKind, GroupExceeded
from swingbus_controller.domain.power.claims import FeederView
from swingbus_controller.domain.power.decisions import decide_shrink, shrink_bound_w
from swingbus_controller.domain.power.settle import TOLERANCE_W


@dataclass(frozen=True, slots=True, kw_only=True)
class ShedStep:
    """One bank may be cut to `to_w` (watts at its feeder) before the next step's bank is touched.

    The caller orders them: mining worst J/TH first, then spot GPUs, then reserved GPUs to their capped floor; the same
    bank may come again later with a lower `to_w`. `step_w` is what one device frees: cuts are whole steps, so that a
    drifting excess does not journal a new grant every second.
    """

    bank: str
    to_w: float
    step_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPlan:
    """The reductions to journal and send, and the watts per feeder that no step could free."""

    grants: tuple[GrantIssued, ...] = ()
    unmet_w: dict[str, float] = field(default_factory=dict)


def exceeded_groups(ledger: Ledger, now_s: float) -> tuple[GroupExceeded, ...]:
    """Return the groups whose newest plausible reading is above everything they were ever granted.

    Each jumps to the reading's upper bound and stays there until it settles; a meter that falls silent changes nothing.
    """
    events: list[GroupExceeded] = []
    for group in ledger.groups():
        upper_w = ledger.meters[group].upper_w()
        lower_w = ledger.meters[group].lower_w()
        if upper_w is None or lower_w is None:
            continue
        granted_w = ledger.group_claim_w(group)
        known_w = ledger.exceeded_w(group) or 0.0
        if upper_w > max(granted_w, known_w) + TOLERANCE_W:
            events.append(GroupExceeded(group=group, upper_w=upper_w, lower_w=lower_w, granted_w=granted_w, at_s=now_s))
    return tuple(events)


def exceeded_feeders(ledger: Ledger, now_s: float) -> tuple[str, ...]:
    """Return the feeders with a limit that is below what counts or what is read there: where there is none, nothing is to be cut."""
    return tuple(
        name
        for name in ledger.tree.feeders
        if ledger.limits(name) and (ledger.has_excess(name, now_s) or _overload_w(ledger, name, now_s))
    )


def guard(ledger: Ledger, steps: Sequence[ShedStep], now_s: float) -> GuardPlan:
    """Return the cuts that make I1 true once they are in force; nothing where it is true."""
    shed = _Shed(ledger, now_s)
    unmet_w: dict[str, float] = {}
    for feeder in sorted(exceeded_feeders(ledger, now_s), key=lambda n: -len(ledger.tree.path(n))):
        inside = ledger.tree.subtree(feeder)
        for bank in ledger.bank_names():
            if ledger.spec(bank).feeder in inside:
                shed.withdraw(bank)
        if _is_paper_only(ledger, feeder, now_s):
            continue
        for step in steps:
            need_w = shed.need_w(feeder)
            if need_w <= TOLERANCE_W:
                break
            if ledger.spec(step.bank).feeder in inside:
                shed.cut(step, need_w / ledger.tree.loss_factor(ledger.spec(step.bank).feeder, feeder))
        need_w = shed.need_w(feeder)
        if need_w > TOLERANCE_W:
            unmet_w[feeder] = need_w
    return GuardPlan(grants=shed.grants(), unmet_w=unmet_w)


class _Shed:
    """What every bank will claim once the cuts so far are in force."""

    def __init__(self, ledger: Ledger, now_s: float) -> None:
        self._ledger = ledger
        self._now_s = now_s
        self._targets: dict[str, float] = {}
        self._cuts: dict[str, float] = {}
        self._answering: dict[str, bool] = {}
        self._bounds: dict[str, float | None] = {}
        self._terms: dict[str, tuple[FeederView, float]] = {}
        for bank in ledger.bank_names():
            newest = ledger.newest_grant(bank)
            state = ledger.state(bank, now_s)
            is_late = (
                newest is not None
                and not ledger.is_settled(bank)
                and newest.grant_w < ledger.claim_w(bank)
                and now_s - newest.at_s > ledger.settings.shed_deadline_s
            )
            # What a silent or stubborn bank was told to give is not counted as coming: others give instead.
            answers = newest is not None and state not in (BankState.DARK, BankState.ISOLATED) and not is_late
            self._answering[bank] = answers
            self._targets[bank] = newest.grant_w if answers and newest is not None else ledger.claim_w(bank)

    def need_w(self, feeder: str) -> float:
        """Return the watts still to be freed at a feeder after the cuts so far."""
        terms = self._terms.get(feeder)
        if terms is None:
            terms = self._ledger.feeder_view(feeder, self._now_s), _overload_w(self._ledger, feeder, self._now_s)
            self._terms[feeder] = terms
        view, overload_w = terms
        target_w = self._ledger.claimed_w(feeder, targets=self._targets)
        paper_w = target_w + view.uncontrolled_w + view.margin_w - view.limit_w
        # What the meter shows above the limit is not paper: cuts on their way count against it.
        return max(paper_w, overload_w - (view.claimed_w - target_w)) if overload_w > 0.0 else paper_w

    def withdraw(self, bank: str) -> None:
        """Take back a raise that may not have arrived yet: while I1 is false nothing may rise any more."""
        bound_w = self._bound_w(bank)
        newest = self._ledger.newest_grant(bank)
        if bound_w is not None and newest is not None and bound_w < min(newest.grant_w, self._cut_or_inf(bank)):
            self._set(bank, bound_w)

    def cut(self, step: ShedStep, need_w: float) -> None:
        """Cut one bank by up to `need_w` (watts at its own feeder), not below the step's floor."""
        bank = step.bank
        bound_w = self._bound_w(bank)
        newest = self._ledger.newest_grant(bank)
        if bound_w is None or newest is None or not self._answering[bank]:
            return
        here_w = min(self._targets[bank], bound_w)
        freed_w = need_w if step.step_w <= 0.0 else math.ceil(need_w / step.step_w - 1e-9) * step.step_w
        there_w = min(here_w, max(step.to_w, here_w - freed_w))
        if there_w < min(newest.grant_w, self._cut_or_inf(bank)) - TOLERANCE_W:
            self._set(bank, there_w)

    def grants(self) -> tuple[GrantIssued, ...]:
        """Return one grant per bank that was cut."""
        grants: list[GrantIssued] = []
        for bank, watts in self._cuts.items():
            decision = decide_shrink(
                self._ledger, bank, watts, self._now_s, kind=GrantKind.SAFETY, reason="limit exceeded"
            )
            if isinstance(decision, GrantIssued):
                grants.append(decision)
        return tuple(grants)

    def _bound_w(self, bank: str) -> float | None:
        if bank not in self._bounds:
            self._bounds[bank] = shrink_bound_w(self._ledger, bank, self._now_s)
        return self._bounds[bank]

    def _cut_or_inf(self, bank: str) -> float:
        return self._cuts.get(bank, math.inf)

    def _set(self, bank: str, watts: float) -> None:
        self._cuts[bank] = watts
        if self._answering[bank]:
            self._targets[bank] = watts


def _overload_w(ledger: Ledger, feeder: str, now_s: float) -> float:
    """Return by how much a live meter reads above the limit in force, 0 otherwise."""
    history = ledger.meters.get(feeder)
    if history is None or not history.windows or not history.is_live(now_s, ledger.settings):
        return 0.0
    return max(0.0, history.windows[-1].mean_w - ledger.limit_w(feeder, now_s))


def _is_paper_only(ledger: Ledger, feeder: str, now_s: float) -> bool:
    """Tell whether, just after a start, live meters show that only our own ignorance exceeds the limit.

    What we have granted ourselves since is no ignorance: if that alone exceeds, it is cut.
    """
    if now_s - ledger.started_s > ledger.settings.adopt_grace_s:
        return False
    grants = {bank: ledger.newest_grant(bank) for bank in ledger.bank_names()}
    own_w = {bank: 0.0 if grant is None else grant.grant_w for bank, grant in grants.items()}
    view = ledger.feeder_view(feeder, now_s)
    if ledger.claimed_w(feeder, targets=own_w) + view.uncontrolled_w + view.margin_w > view.limit_w + TOLERANCE_W:
        return False
    upper_w = metered_upper_w(ledger, feeder, now_s)
    if upper_w is None:
        # Meters need a moment to be heard after a start; until then nothing is known that was not true before it.
        return now_s - ledger.started_s <= ledger.settings.meter_dead_s
    return upper_w <= ledger.limit_w(feeder, now_s)


def metered_upper_w(ledger: Ledger, feeder: str, now_s: float) -> float | None:
    """Return the most a feeder can be carrying by live meters: its own, else those of all groups below it plus U."""
    own = ledger.meters.get(feeder)
    if own is not None and own.is_live(now_s, ledger.settings):
        return own.upper_w()
    inside = ledger.tree.subtree(feeder)
    total_w = ledger.uncontrolled_w(feeder, now_s)
    groups: set[str] = set()
    for bank in ledger.bank_names():
        if ledger.spec(bank).feeder in inside:
            group = ledger.group_of(bank)
            if group is None or group not in inside:
                return None
            groups.add(group)
    for group in groups:
        upper_w = ledger.meters[group].upper_w()
        if upper_w is None or not ledger.meters[group].is_live(now_s, ledger.settings):
            return None
        total_w += upper_w * ledger.tree.loss_factor(group, feeder)
    return total_w
