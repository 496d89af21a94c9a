"""The ledger of watts: what every bank may claim, what every feeder has left, rebuilt from the journal alone.

Decides: claims A_b, least claims a_b, headroom, I1. Refuses to know: I/O, clocks, plans, money. Invariant: a bank's
claim is the largest of all its journaled grants not yet proven superseded; only `GroupSettled` (evidence) and
`BankIsolated` lower it. Time, silence, a reply, a low reading lower nothing.

How an engine uses it (events order: decide -> journal with fsync -> apply -> send):

    ledger = Ledger(tree=tree, banks=banks, settings=settings)
    for event in journal: ledger.apply(event)                     # replay, then start our term:
    journal(e := ControllerStarted(epoch=ledger.next_epoch(), instance=..., boot_id=..., trust=..., at_s=now_s))
    ledger.apply(e)
    on an agent's report: hearing = ledger.observe_report(report, now_s)   # transient, not journaled
        for e in decide_adoption(ledger, report, now_s): journal(e); ledger.apply(e)
        e = decide_regrant(ledger, bank, now_s);  if GrantIssued: journal(e); ledger.apply(e)
        answer: ledger.newest_grant(bank) (None: send Adopt) with ledger.marker, and ledger.note_answered(bank, now_s)
    on a meter window: ledger.observe_window(window, now_s); then guard(ledger, steps, now_s); then for each group
        e = decide_settle(ledger, group, now_s);  if GroupSettled: journal(e); ledger.apply(e)
    a plan: e = decide_grow(...) or decide_shrink(...);  if GrantIssued: journal(e); ledger.apply(e); send

State is mutable inside for speed (a site's guard runs on every meter sample); every change goes through `apply` (facts)
or an `observe_*` method (what a crash may forget), and what is handed out is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import assert_never

from swingbus.faults import InvalidInput, NotFound, WrongState
from swingbus_controller.domain.power.bank import BankSpec, BankState, largest_device_w
from swingbus_controller.domain.power.budget_events import (
    BankAdopted,
    BankIsolated,
    BankJoined,
    BudgetEvent,
    ControllerStarted,
    DisturbanceSeen,
    GrantIssued,
    GroupExceeded,
    GroupSettled,
    JournalDoubted,
    JournalTrust,
    LimitRemoved,
    LimitSet,
)
from swingbus_controller.domain.power.claims import Account, BankView, Cluster, FeederView, find_clusters, find_groups
from swingbus_controller.domain.power.evidence import MeterHistory
from swingbus_controller.domain.power.limits import Limit, lowest_limit_w
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.ramp import RampBucket
from swingbus_controller.domain.power.reports import BankReport, Marker, MeterWindow
from swingbus_controller.domain.power.settle import TOLERANCE_W, BankProof
from swingbus_controller.domain.power.tree import PowerTree
from swingbus_controller.domain.power.uncontrolled import margin_w

KEPT_BESIDE_SETTLING_S = 45.0


class Hearing(Enum):
    """What the ledger made of a report."""

    TAKEN = "taken"
    OLD = "old"  # repeated or overtaken: nothing changed
    FENCED = "fenced"  # the agent obeys a newer controller: stop, or begin a higher epoch with a lost journal


class Ledger:
    """All claims of one site."""

    def __init__(self, *, tree: PowerTree, banks: Iterable[BankSpec], settings: ProtocolSettings) -> None:
        self.tree = tree
        self.settings = settings
        self.epoch = 0
        self.instance = ""
        self.boot_id = ""
        self.trust = JournalTrust.LOST
        self.started_s = -math.inf
        self.disturbed_until_s = -math.inf
        self.marker: Marker = (0, 0)
        self.ramp = RampBucket(settings)
        self._accounts: dict[str, Account] = {}
        self._limits: dict[str, dict[str, Limit]] = {
            name: {limit.name: limit for limit in feeder.limits} for name, feeder in tree.feeders.items()
        }
        self._uncontrolled: dict[str, tuple[float, float]] = {}
        self._uncontrolled_max: dict[str, float] = {name: tree.uncontrolled_max_w(name) for name in tree.feeders}
        self._exceeded: dict[str, float] = {}
        self._disobeying: set[str] = set()
        specs = list(banks)
        # Evidence is a run of windows after the newest grant: older ones show nothing.
        self._keep_windows_s = max((spec.settle_min_s for spec in specs), default=0.0) + KEPT_BESIDE_SETTLING_S
        self.meters: dict[str, MeterHistory] = {
            name: MeterHistory(feeder.meter, self._keep_windows_s)
            for name, feeder in tree.feeders.items()
            if feeder.meter is not None
        }
        for spec in specs:
            if spec.name in self._accounts:
                raise InvalidInput(f"bank {spec.name!r} is given twice.", reason="BANK_TWICE")
            meter = tree.nearest_meter(spec.feeder)
            factor = 1.0 if meter is None else tree.loss_factor(spec.feeder, meter)
            self._accounts[spec.name] = Account(spec, meter, factor)
        self._groups = find_groups(tree, self._accounts.values())
        self._names = tuple(self._accounts)
        self._below = find_clusters(tree, self._accounts.values())
        self._margin_terms = {feeder: _margin_terms(clusters) for feeder, clusters in self._below.items()}
        # Sums of claims by feeder and by whether they are for growth: rounds ask for each many times between two events.
        self._sums_w: dict[tuple[str, bool], float] = {}

    # Facts.

    def apply(self, event: BudgetEvent) -> None:
        """Fold one journaled event in; raise `WrongState` for one that cannot follow what came before."""
        self._forget_sums(event)
        match event:
            case GrantIssued():
                self._apply_grant(event)
            case GroupSettled():
                self._apply_settled(event)
            case BankAdopted():
                account = self._account(event.bank)
                account.is_adopted = True
                account.is_unproven = False
                account.reported_w = event.reported_w
                account.is_settled = False
                if event.is_doubtful:
                    account.doubt_w = account.ceiling_w
            case GroupExceeded():
                self._exceeded[event.group] = max(self._exceeded.get(event.group, 0.0), event.upper_w)
                if event.lower_w > event.granted_w:
                    self._disobeying.add(event.group)
            case ControllerStarted():
                self._apply_start(event)
            case JournalDoubted():
                self.trust = JournalTrust.LOST
                for account in self._accounts.values():
                    if not account.is_adopted:
                        account.doubt_w = account.ceiling_w
            case LimitSet():
                self._limits_of(event.feeder)[event.limit.name] = event.limit
            case LimitRemoved():
                self._limits_of(event.feeder).pop(event.name, None)
            case DisturbanceSeen():
                self.disturbed_until_s = max(self.disturbed_until_s, event.until_s)
            case BankIsolated():
                self._account(event.bank).is_isolated = True
            case BankJoined():
                account = self._account(event.bank)
                account.is_isolated = False
                account.is_settled = False
                account.doubt_w = account.ceiling_w
            case _:
                assert_never(event)

    def _forget_sums(self, event: BudgetEvent) -> None:
        if isinstance(event, GrantIssued) and event.bank in self._accounts:
            for feeder, _ in self.tree.path(self._accounts[event.bank].spec.feeder):
                self._sums_w.pop((feeder, False), None)
                self._sums_w.pop((feeder, True), None)
        else:
            self._sums_w.clear()

    def _apply_grant(self, event: GrantIssued) -> None:
        account = self._account(event.bank)
        last = account.newest
        if last is not None and (event.epoch, event.generation) <= (last.epoch, last.generation):
            raise WrongState(
                f"grant {event.epoch}.{event.generation} of {event.bank} cannot follow "
                f"{last.epoch}.{last.generation}: two controllers share a journal, or it was edited.",
                reason="GRANT_OUT_OF_ORDER",
            )
        account.add_grant(event)
        self.ramp.spend(event.ramp_w, event.starts_count, event.at_s)

    def _apply_settled(self, event: GroupSettled) -> None:
        for grant in event.grants:
            account = self._account(grant.bank)
            newest = account.newest
            if newest is None or (newest.epoch, newest.generation) != (grant.epoch, grant.generation):
                raise WrongState(
                    f"{grant.bank} settled {grant.epoch}.{grant.generation}, which is not its newest grant.",
                    reason="SETTLED_OLD_GRANT",
                )
            account.settle()
        self._exceeded.pop(event.group, None)
        self._disobeying.discard(event.group)

    def _apply_start(self, event: ControllerStarted) -> None:
        if event.epoch <= self.epoch:
            raise WrongState(
                f"epoch {event.epoch} cannot follow epoch {self.epoch}: begin one above any seen.", reason="OLD_EPOCH"
            )
        if self.disturbed_until_s > -math.inf:
            # Times of the boot before mean nothing now; a disturbance is then as fresh as can be.
            is_same_axis = event.boot_id == self.boot_id
            until_s = self.disturbed_until_s if is_same_axis else event.at_s + self.settings.disturbance_s
            self.disturbed_until_s = until_s
        self.epoch = event.epoch
        self.instance = event.instance
        self.boot_id = event.boot_id
        self.trust = event.trust
        self.started_s = event.at_s
        self.marker = (event.epoch, 0)
        self.ramp = RampBucket(self.settings, started_s=event.at_s)
        self._uncontrolled.clear()
        for name, history in self.meters.items():
            self.meters[name] = MeterHistory(history.meter, self._keep_windows_s)
        for account in self._accounts.values():
            account.begin_term()
            if event.trust is not JournalTrust.CURRENT:
                account.is_unproven = True
            if event.trust is JournalTrust.LOST:
                account.doubt_w = account.ceiling_w

    # Observations: a crash may forget them.

    def observe_report(self, report: BankReport, now_s: float) -> Hearing:
        """Take in what an agent says of one bank; older reports of the same agent run change nothing."""
        account = self._account(report.bank)
        last = account.reported
        if last is not None and last.instance == report.instance and report.sequence <= last.sequence:
            return Hearing.OLD
        if report.instance in account.past_instances:
            return Hearing.OLD
        fence = (report.fence_epoch, report.fence_instance)
        if report.fence_epoch > self.epoch or (report.fence_epoch == self.epoch and fence[1] != self.instance):
            return Hearing.FENCED
        if last is not None and last.instance != report.instance:
            account.past_instances = (*account.past_instances[-7:], last.instance)
        account.reported = report
        account.heard_s = now_s
        newest = account.newest
        applied = report.applied
        if (
            account.marker is None
            and newest is not None
            and applied is not None
            and (applied.epoch, applied.generation) == (newest.epoch, newest.generation)
        ):
            # From here on, a reading under this marker can only have begun after Applied.
            self.marker = (self.epoch, self.marker[1] + 1)
            account.marker = self.marker
        return Hearing.TAKEN

    def observe_window(self, window: MeterWindow, now_s: float) -> bool:
        """Take in a meter window; False where it is implausible, repeated or out of order."""
        history = self.meters.get(window.feeder)
        return history is not None and history.add(window, now_s, self.settings)

    def observe_uncontrolled(self, feeder: str, uncontrolled_w: float, now_s: float) -> None:
        """Take in U at a feeder (`LoadWatch.take`); it counts for `meter_dead_s`, then U_max again."""
        self.tree.feeder(feeder)
        self._uncontrolled[feeder] = (uncontrolled_w, now_s)

    def note_answered(self, bank: str, now_s: float) -> None:
        """Remember that a renewal was answered: the grant may live until then + ttl, stretched."""
        self._account(bank).answered_s = now_s

    # Queries.

    def next_epoch(self) -> int:
        """Return the epoch that a controller starting from this journal begins."""
        return self.epoch + 1

    def next_generation(self, bank: str) -> int:
        """Return the generation of this bank's next grant under our epoch."""
        newest = self._account(bank).newest
        return newest.generation + 1 if newest is not None and newest.epoch == self.epoch else 1

    def newest_grant(self, bank: str) -> GrantIssued | None:
        """Return the grant to keep sending, None while our epoch has given none (send Adopt)."""
        newest = self._account(bank).newest
        return newest if newest is not None and newest.epoch == self.epoch else None

    def last_grant(self, bank: str) -> GrantIssued | None:
        """Return the newest grant of any epoch."""
        return self._account(bank).newest

    def is_settled(self, bank: str) -> bool:
        """Tell whether the newest grant is proven in this epoch."""
        return self._account(bank).is_settled

    def is_adopted(self, bank: str) -> bool:
        """Tell whether its agent has reported under our epoch."""
        return self._account(bank).is_adopted

    def is_unproven(self, bank: str) -> bool:
        """Tell whether its agent may hold what our journal does not know.

        A journal that continues an unproven one is no better than it, however current its own last record is: only the
        agent's report (`BankAdopted`) ends the doubt.
        """
        return self._account(bank).is_unproven

    def bank_names(self) -> tuple[str, ...]:
        """Return all banks in the order of the site file."""
        return self._names

    def groups(self) -> tuple[str, ...]:
        """Return the feeders whose own meter can settle the banks below it."""
        return tuple(self._groups)

    def group_of(self, bank: str) -> str | None:
        """Return the bank's metered group; None: it may shrink, but never settles by power."""
        return self._account(bank).group

    def group_banks(self, group: str) -> tuple[str, ...]:
        """Return the banks of a metered group."""
        return tuple(account.spec.name for account in self._groups.get(group, ()))

    def spec(self, bank: str) -> BankSpec:
        """Return a bank's specification."""
        return self._account(bank).spec

    def ceiling_w(self, bank: str) -> float:
        """Return C_b."""
        return self._account(bank).ceiling_w

    def report(self, bank: str) -> BankReport | None:
        """Return the last report heard in this term."""
        return self._account(bank).reported

    def claim_w(self, bank: str) -> float:
        """Return A_b from grants and doubt; what a group's reading adds is in `claimed_w` of its feeders."""
        return self._account(bank).claim_w()

    def least_claim_w(self, bank: str) -> float:
        """Return a_b."""
        return self._account(bank).least_claim_w()

    def wakeable_w(self, bank: str) -> float:
        """Return V_b = C_b - A_b: what may wake up by itself (0 when isolated)."""
        account = self._account(bank)
        return 0.0 if account.is_isolated else max(0.0, account.ceiling_w - account.claim_w())

    def is_live(self, bank: str, now_s: float) -> bool:
        """Tell whether its agent has reported within `dark_periods` periods."""
        return self._is_live(self._account(bank), now_s)

    def state(self, bank: str, now_s: float) -> BankState:
        """Return the bank's state; silence outranks adoption, disobedience outranks both settle states."""
        account = self._account(bank)
        if account.is_isolated:
            return BankState.ISOLATED
        if not self._is_live(account, now_s):
            # Just after a start nobody has had the time to report.
            grace_s = self.settings.dark_periods * self.settings.report_period_s
            is_starting = account.heard_s is None and now_s - self.started_s <= grace_s
            return BankState.ADOPTING if is_starting else BankState.DARK
        if account.group in self._disobeying:
            return BankState.DISOBEYING
        newest = account.newest
        if not account.is_adopted or newest is None or newest.epoch != self.epoch:
            return BankState.ADOPTING
        if account.is_settled:
            return BankState.HELD
        if account.doubt_w is not None or not account.has_settled:
            return BankState.ADOPTING
        older_w = account.older_max_w
        return BankState.SHRINKING if older_w is not None and older_w > newest.grant_w else BankState.GROWING

    def view(self, bank: str, now_s: float) -> BankView:
        """Return everything that is known of a bank."""
        account = self._account(bank)
        report = account.reported
        over_by_s = None
        if account.answered_s is not None:
            over_by_s = account.answered_s + self.settings.ttl_s * (1.0 + self.settings.stretch_ratio)
        return BankView(
            spec=account.spec,
            state=self.state(bank, now_s),
            claim_w=account.claim_w(),
            least_claim_w=account.least_claim_w(),
            newest=account.newest,
            newest_is_settled=account.is_settled,
            is_adopted=account.is_adopted,
            is_lapsed=report is not None and report.is_lapsed,
            reported_w=account.reported_w if report is None else report.reported_w,
            heard_s=account.heard_s,
            grant_over_by_s=over_by_s,
        )

    def limits(self, feeder: str) -> tuple[Limit, ...]:
        """Return all limits set on a feeder, in force or not."""
        return tuple(self._limits_of(feeder).values())

    def limit_w(self, feeder: str, now_s: float) -> float:
        """Return the lowest limit in force now or within the reaction time; infinity where none is set."""
        return lowest_limit_w(self._limits_of(feeder).values(), now_s, self.settings.reaction_s)

    def uncontrolled_w(self, feeder: str, now_s: float) -> float:
        """Return U at a feeder: as observed while fresh, else U_max."""
        seen = self._uncontrolled.get(feeder)
        if seen is None or now_s - seen[1] > self.settings.meter_dead_s:
            return self._uncontrolled_max[feeder]
        return min(self._uncontrolled_max[feeder], seen[0])

    def margin_w(self, feeder: str, limit_w: float) -> float:
        """Return R at a feeder for its limit in force."""
        largest_w, sleepers_count = self._margin_terms[feeder]
        return margin_w(
            limit_w=limit_w,
            largest_device_w=largest_w,
            software_sleepers_count=sleepers_count,
            settings=self.settings,
        )

    def claimed_w(self, feeder: str, *, for_growth: bool = False, targets: Mapping[str, float] | None = None) -> float:
        """Return the sum of (1 + losses) A_b at a feeder; a group that exceeds counts at its reading.

        With `targets` (watts per bank), the same sum as if those were the claims.
        """
        if targets is not None:
            return self._sum_w(feeder, for_growth, targets)
        known_w = self._sums_w.get((feeder, for_growth))
        if known_w is None:
            known_w = self._sums_w[(feeder, for_growth)] = self._sum_w(feeder, for_growth, None)
        return known_w

    def beyond_w(self, feeder: str) -> float:
        """Return what groups below a feeder draw beyond their claims: the part of `claimed_w` that no bank's claim is."""
        groups = ((c.group, c.group_factor) for c in self._below[feeder] if c.group is not None)
        return sum(self._excess_w(group, None) * factor for group, factor in groups if group in self._exceeded)

    def _sum_w(self, feeder: str, for_growth: bool, targets: Mapping[str, float] | None) -> float:
        total_w = 0.0
        for cluster in self._below[feeder]:
            cluster_w = 0.0
            for account, loss in cluster.members:
                if targets is not None:
                    cluster_w += loss * targets[account.spec.name]
                else:
                    cluster_w += loss * (self._growth_claim_w(account) if for_growth else account.claim_w())
            if cluster.group is not None and cluster.group in self._exceeded:
                cluster_w += self._excess_w(cluster.group, targets) * cluster.group_factor
            total_w += cluster_w
        return total_w

    def feeder_view(self, feeder: str, now_s: float, *, for_growth: bool = False) -> FeederView:
        """Return the terms of I1 at one feeder."""
        limit_w = lowest_limit_w(self._limits_of(feeder).values(), now_s, self.settings.reaction_s)
        return FeederView(
            feeder=feeder,
            limit_w=limit_w,
            claimed_w=self.claimed_w(feeder, for_growth=for_growth),
            uncontrolled_w=self.uncontrolled_w(feeder, now_s),
            margin_w=self.margin_w(feeder, limit_w),
        )

    def headroom_w(self, feeder: str, now_s: float) -> float:
        """Return the limit less claims, U and R (negative: I1 is false here)."""
        return self.feeder_view(feeder, now_s).headroom_w

    def i1_holds(self, now_s: float) -> bool:
        """Tell whether I1 is true at every feeder."""
        return not self.excesses(now_s)

    def excesses(self, now_s: float) -> dict[str, float]:
        """Return the watts by which I1 is false, per feeder where it is."""
        excesses: dict[str, float] = {}
        for feeder, limits in self._limits.items():
            if limits:
                headroom_w = self.headroom_w(feeder, now_s)
                if headroom_w < -TOLERANCE_W:
                    excesses[feeder] = -headroom_w
        return excesses

    def has_excess(self, feeder: str, now_s: float) -> bool:
        """Tell whether I1 is false at this feeder."""
        return self.headroom_w(feeder, now_s) < -TOLERANCE_W

    def path_holds(self, bank: str, now_s: float, *, more_w: float = 0.0, for_growth: bool = True) -> FeederView | None:
        """Return None where I1 is true above a bank with `more_w` added to it, else the first feeder where it is not."""
        for feeder, loss in self.tree.path(self._account(bank).spec.feeder):
            if self._limits[feeder]:
                view = self.feeder_view(feeder, now_s, for_growth=for_growth)
                if view.headroom_w < more_w * loss - TOLERANCE_W:
                    return view
        return None

    def exceeded_w(self, group: str) -> float | None:
        """Return the reading that a disobeying group counts at, None where it obeys."""
        return self._exceeded.get(group)

    def is_group_open(self, group: str) -> bool:
        """Tell whether something of a group is to be proven: a grant of one of its banks, or that it obeys again."""
        return group in self._exceeded or not all(account.is_settled for account in self._groups[group])

    def group_claim_w(self, group: str) -> float:
        """Return what the group's grants may draw at its meter (without what a reading showed beyond)."""
        return sum(account.claim_w() * account.group_factor for account in self._groups[group])

    def proofs(self, group: str) -> Sequence[BankProof]:
        """Return what `settle` needs of each bank in a group."""
        return tuple(self._proof(account) for account in self._groups.get(group, ()))

    # Inner.

    def _proof(self, account: Account) -> BankProof:
        report = account.reported
        newest = account.newest
        is_ours = newest is not None and newest.epoch == self.epoch
        return BankProof(
            bank=account.spec.name,
            agent=account.spec.agent,
            epoch=self.epoch,
            generation=newest.generation if newest is not None and is_ours else 0,
            grant_w=newest.grant_w if newest is not None and is_ours else 0.0,
            factor=account.group_factor,
            settle_min_s=account.spec.settle_min_s,
            is_adopted=account.is_adopted,
            confirmed=None if report is None else (report.grant_epoch, report.grant_generation),
            applied=None if report is None else report.applied,
            applied_boot_id="" if report is None else report.boot_id,
            marker=account.marker,
        )

    def _growth_claim_w(self, account: Account) -> float:
        """Return what a bank counts at when somebody else wants to grow.

        One that has not reported under our epoch may hold a grant that an old journal does not know of.
        """
        claim_w = account.claim_w()
        if account.is_unproven and not account.is_isolated:
            return max(claim_w, account.ceiling_w)
        return claim_w

    def _excess_w(self, group: str, targets: Mapping[str, float] | None) -> float:
        """Return what a group's reading adds to its claims (or targets), at its meter."""
        members = self._groups[group]
        if targets is None:
            granted_w = sum(account.claim_w() * account.group_factor for account in members)
        else:
            granted_w = sum(targets[account.spec.name] * account.group_factor for account in members)
        return max(0.0, self._exceeded[group] - granted_w)

    def _is_live(self, account: Account, now_s: float) -> bool:
        silent_s = self.settings.dark_periods * self.settings.report_period_s
        return account.heard_s is not None and now_s - account.heard_s <= silent_s

    def _limits_of(self, feeder: str) -> dict[str, Limit]:
        self.tree.feeder(feeder)
        return self._limits[feeder]

    def _account(self, bank: str) -> Account:
        try:
            return self._accounts[bank]
        except KeyError:
            raise NotFound(
                f"no bank {bank!r}; the site has {', '.join(sorted(self._accounts))}.", reason="NO_SUCH_BANK"
            ) from None


def _margin_terms(clusters: Iterable[Cluster]) -> tuple[float, int]:
    """Return the largest single device (watts at the feeder) and the count that sleep by software only."""
    largest_w = 0.0
    sleepers_count = 0
    for cluster in clusters:
        for account, factor in cluster.members:
            largest_w = max(largest_w, largest_device_w(account.spec) * factor)
            if account.spec.sleeps_by_software_only:
                sleepers_count += account.spec.device_count
    return largest_w, sleepers_count
