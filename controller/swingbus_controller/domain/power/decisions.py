"""Decisions of the ledger: each is an event to journal, or a refusal that says which feeder and how many watts short.

Decides: may this bank grow, how far may it be cut, what is a returning agent granted, what has settled. Refuses to
know: plans and money (the caller wants watts, we say yes or no). Invariant: no event returned here can make I1 false;
while I1 is false none of them can raise any bank above the least it may hold.

Pure: nothing is changed; the caller journals the event (fsync), applies it, then sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.power.budget import Ledger
from swingbus_controller.domain.power.budget_events import (
    BankAdopted,
    DisturbanceSeen,
    GrantIssued,
    GrantKind,
    GroupSettled,
    JournalDoubted,
    JournalTrust,
)
from swingbus_controller.domain.power.settle import TOLERANCE_W, NotSettled, SettleReason, settle

COVERING = "covers what is there"  # the reason of a grant by `decide_cover`; others tell it by this


class RefusalReason(Enum):
    """Why a grant was not given; stable words."""

    NOT_HELD = "NotHeld"  # growth only from HELD
    NOT_ADOPTED = "NotAdopted"  # its agent has not reported under our epoch
    DISTURBANCE = "Disturbance"
    LOCKED_OUT = "LockedOut"
    COOLING_NOT_PROVEN = "CoolingNotProven"
    METER_SILENT = "MeterSilent"
    NO_HEADROOM = "NoHeadroom"
    RAMP = "Ramp"
    ABOVE_CEILING = "AboveCeiling"
    ABOVE_LEAST_CLAIM = "AboveLeastClaim"  # while I1 is false a cut above this may be a raise
    NOT_A_GROWTH = "NotAGrowth"
    NOT_A_SHRINK = "NotAShrink"
    NOT_DUE = "NotDue"  # nothing to regrant
    ISOLATED = "Isolated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An expected "no": a result, not a fault.

    Attributes:
        short_w: watts missing at `feeder`, or watts above what would be allowed.
        wait_s: when it is worth asking again; None where time alone changes nothing.
    """

    bank: str
    reason: RefusalReason
    detail: str
    feeder: str | None = None
    short_w: float | None = None
    wait_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthConditions:
    """What the ledger cannot know itself about a growth.

    Attributes:
        starts_count: devices that will start (inrush).
        is_cooling_proven: airflow or coolant was shown to run first.
        is_locked_out: somebody's hands are inside.
        reason: for the record.
    """

    starts_count: int = 0
    is_cooling_proven: bool = True
    is_locked_out: bool = False
    reason: str = "plan"


def decide_grow(
    ledger: Ledger, bank: str, watts: float, conditions: GrowthConditions, now_s: float
) -> GrantIssued | Refusal:
    """Return a higher grant for a HELD bank, or why not: I1 after the growth at every feeder above, I5, no disturbance."""
    state = ledger.state(bank, now_s)
    newest = ledger.newest_grant(bank)
    if state is not BankState.HELD or newest is None:
        return Refusal(bank=bank, reason=RefusalReason.NOT_HELD, detail=f"{bank} is {state.value}")
    if conditions.is_locked_out:
        return Refusal(bank=bank, reason=RefusalReason.LOCKED_OUT, detail=f"{bank} is locked out")
    if not conditions.is_cooling_proven:
        return Refusal(bank=bank, reason=RefusalReason.COOLING_NOT_PROVEN, detail="cooling is not proven running")
    more_w = watts - ledger.claim_w(bank)
    if more_w <= 0.0:
        return Refusal(bank=bank, reason=RefusalReason.NOT_A_GROWTH, detail=f"{bank} has {newest.grant_w:.0f} W")
    ceiling_w = ledger.ceiling_w(bank)
    if watts > ceiling_w + TOLERANCE_W:
        over_w = watts - ceiling_w
        detail = f"{bank} can never draw more than {ceiling_w:.0f} W"
        return Refusal(bank=bank, reason=RefusalReason.ABOVE_CEILING, detail=detail, short_w=over_w)
    refusal = _refuse_raise(ledger, bank, more_w, more_w, conditions.starts_count, now_s)
    if refusal is not None:
        return refusal
    return _grant(
        ledger, bank, watts, GrantKind.GROW, conditions.reason, now_s, ramp_w=more_w, starts=conditions.starts_count
    )


def decide_shrink(
    ledger: Ledger, bank: str, watts: float, now_s: float, *, kind: GrantKind = GrantKind.SHRINK, reason: str = "plan"
) -> GrantIssued | Refusal:
    """Return a lower grant, or why not; `kind` SAFETY skips the ramp.

    While I1 is false anywhere above the bank (counting silent banks as growth does), only down to the least it may
    hold: its agent may never have seen the higher grants, and a cut to between the two would be a raise.
    """
    state = ledger.state(bank, now_s)
    if state is BankState.ISOLATED:
        return Refusal(bank=bank, reason=RefusalReason.ISOLATED, detail=f"{bank} is isolated: nothing to shrink")
    bound_w = shrink_bound_w(ledger, bank, now_s)
    if bound_w is None:
        detail = f"{bank} has not reported under epoch {ledger.epoch}"
        return Refusal(bank=bank, reason=RefusalReason.NOT_ADOPTED, detail=detail)
    newest = ledger.newest_grant(bank)
    if newest is not None and watts >= newest.grant_w:
        return Refusal(
            bank=bank, reason=RefusalReason.NOT_A_SHRINK, detail=f"{bank}'s newest grant is {newest.grant_w:.0f} W"
        )
    if watts > bound_w + TOLERANCE_W:
        return Refusal(
            bank=bank,
            reason=RefusalReason.ABOVE_LEAST_CLAIM,
            detail=f"{bank} may hold as little as {bound_w:.0f} W: a cut to {watts:.0f} W could raise it",
            short_w=watts - bound_w,
        )
    moved_w = 0.0
    if kind is GrantKind.SHRINK:
        moved_w = ledger.claim_w(bank) - watts
        wait_s = ledger.ramp.wait_s(moved_w, 0, now_s)
        if wait_s > 0.0:
            return _ramp_refusal(bank, moved_w, wait_s)
    return _grant(ledger, bank, watts, kind, reason, now_s, ramp_w=moved_w)


def shrink_bound_w(ledger: Ledger, bank: str, now_s: float) -> float | None:
    """Return the highest grant that is surely no raise; None where the agent has not reported under our epoch.

    With I1 true above the bank, any watts within its claim will do.
    """
    report = ledger.report(bank)
    if not ledger.is_adopted(bank):
        return None
    if ledger.path_holds(bank, now_s) is None and ledger.newest_grant(bank) is not None:
        return ledger.claim_w(bank)
    bound_w = ledger.least_claim_w(bank)
    if report is not None and report.is_lapsed:
        # It has already fallen to its safe share: renewing the grant it had would be a raise.
        bound_w = min(bound_w, report.reported_w if report.reported_w is not None else 0.0)
    return bound_w


def decide_adoption(ledger: Ledger, bank: str, now_s: float) -> tuple[JournalDoubted | BankAdopted, ...]:
    """Return what to journal once an agent has reported a bank under our epoch; nothing where that is done or not yet.

    An agent that shows a grant newer than our journal proves the journal old; one that lost its memory may hold
    anything, unless the journal is proven current.
    """
    report = ledger.report(bank)
    if report is None or ledger.is_adopted(bank) or report.reported_w is None:
        return ()
    if (report.fence_epoch, report.fence_instance) != (ledger.epoch, ledger.instance):
        return ()
    shown, known = _shown_and_known(ledger, bank)
    is_newer = shown > known
    is_doubtful = is_newer or (report.is_lost and ledger.is_unproven(bank))
    adopted = BankAdopted(
        bank=bank,
        reported_w=report.reported_w,
        is_doubtful=is_doubtful,
        agent_instance=report.instance,
        at_s=now_s,
    )
    if is_newer and ledger.trust is not JournalTrust.LOST:
        reason = f"{bank} holds grant {shown[0]}.{shown[1]}, the journal ends at {known[0]}.{known[1]}"
        return JournalDoubted(at_s=now_s, reason=reason), adopted
    return (adopted,)


def shows_newer_grant(ledger: Ledger, bank: str) -> bool:
    """Tell whether the agent holds a grant that the journal does not know: the journal is older than what runs there."""
    shown, known = _shown_and_known(ledger, bank)
    return shown > known


def _shown_and_known(ledger: Ledger, bank: str) -> tuple[tuple[int, int], tuple[int, int]]:
    report, last = ledger.report(bank), ledger.last_grant(bank)
    shown = (0, 0) if report is None else (report.grant_epoch, report.grant_generation)
    return shown, (0, 0) if last is None else (last.epoch, last.generation)


def decide_regrant(ledger: Ledger, bank: str, now_s: float) -> GrantIssued | Refusal:
    """Return the grant that brings an adopted, lapsed or forgetful agent back, without claiming more.

    Under a new epoch: what the agent reported. After a lapse or a loss of memory: its newest grant again if I1 holds
    and the ramp allows (it is a restoration), else what it has fallen to.
    """
    report = ledger.report(bank)
    if report is None or not ledger.is_adopted(bank) or report.reported_w is None:
        return Refusal(bank=bank, reason=RefusalReason.NOT_ADOPTED, detail=f"{bank} has not reported under our epoch")
    if (report.fence_epoch, report.fence_instance) != (ledger.epoch, ledger.instance):
        return Refusal(bank=bank, reason=RefusalReason.NOT_ADOPTED, detail=f"{bank} obeys another epoch")
    newest = ledger.newest_grant(bank)
    fallen_w = min(report.reported_w, ledger.claim_w(bank))
    if newest is not None:
        shown = (report.grant_epoch, report.grant_generation)
        has_newest = shown == (newest.epoch, newest.generation)
        # A newer grant in flight will lift the lapse by itself; an agent without memory takes only its own.
        # One that has it not after all this time has refused it: it was decided before the lapse was heard of, and lies there for ever.
        was_refused = (
            shown < (newest.epoch, newest.generation)
            and now_s - newest.at_s > ledger.settings.shed_deadline_s
            and ledger.state(bank, now_s) is not BankState.DARK
        )
        is_forgotten = report.is_lost and newest.for_instance != report.instance
        is_due = report.is_lapsed and (has_newest or is_forgotten or was_refused)
        if not is_due:
            return Refusal(bank=bank, reason=RefusalReason.NOT_DUE, detail=f"{bank} has a living grant")
        wanted_w = newest.grant_w
    else:
        wanted_w = fallen_w if report.grant_w is None else min(report.grant_w, ledger.claim_w(bank))
    if not report.is_lapsed:
        # Exactly what it holds already: no raise, whatever I1 says.
        return _grant(ledger, bank, fallen_w, GrantKind.REGRANT, "adopted", now_s)
    back_w = wanted_w - fallen_w
    if back_w > 0.0 and _refuse_raise(ledger, bank, 0.0, back_w, 0, now_s) is None:
        return _grant(ledger, bank, wanted_w, GrantKind.REGRANT, "restored", now_s, ramp_w=back_w)
    bound_w = min(fallen_w, ledger.least_claim_w(bank)) if newest is not None else fallen_w
    return _grant(ledger, bank, bound_w, GrantKind.REGRANT, "fallen", now_s)


def decide_cover(ledger: Ledger, bank: str, watts: float, now_s: float, *, reason: str) -> GrantIssued | Refusal:
    """Return a grant above the newest but within what the bank counts at anyway, or why not.

    A cut that cannot be proven (a machine ignores it, a lapsed agent fell further than anybody asked) keeps its old claim for
    ever: nothing settles, nobody else can use the watts. With I1 true as counted, granting up to that claim authorises nothing that
    the limits do not already hold, and lets evidence come (docs/adr/0002).
    """
    view = ledger.view(bank, now_s)
    newest = ledger.newest_grant(bank)
    if newest is None or not view.is_adopted or view.is_lapsed:
        return Refusal(bank=bank, reason=RefusalReason.NOT_ADOPTED, detail=f"{bank} holds no living grant of our epoch")
    if view.state in (BankState.DARK, BankState.ISOLATED):
        return Refusal(bank=bank, reason=RefusalReason.NOT_HELD, detail=f"{bank} is {view.state.value}")
    bound_w = ledger.claim_w(bank)
    group = ledger.group_of(bank)
    exceeded_w = None if group is None else ledger.exceeded_w(group)
    if group is not None and exceeded_w is not None and ledger.group_banks(group) == (bank,):
        bound_w = max(bound_w, exceeded_w / ledger.tree.loss_factor(ledger.spec(bank).feeder, group))
    if watts <= newest.grant_w:
        detail = f"{bank} has {newest.grant_w:.0f} W"
        return Refusal(bank=bank, reason=RefusalReason.NOT_A_GROWTH, detail=detail)
    if watts > bound_w + TOLERANCE_W:
        detail = f"{bank} counts at {bound_w:.0f} W: more than that is growth"
        return Refusal(bank=bank, reason=RefusalReason.ABOVE_LEAST_CLAIM, detail=detail, short_w=watts - bound_w)
    refusal = _refuse_raise(ledger, bank, 0.0, watts - newest.grant_w, 0, now_s)
    if refusal is not None:
        return refusal
    return _grant(ledger, bank, watts, GrantKind.REGRANT, reason, now_s, ramp_w=watts - newest.grant_w)


def decide_settle(ledger: Ledger, group: str, now_s: float) -> GroupSettled | NotSettled:
    """Return the settlement of a metered group if its evidence suffices, else the reason why not."""
    banks = ledger.group_banks(group)
    if banks and not ledger.is_group_open(group):
        return NotSettled(group=group, reason=SettleReason.NOTHING_OPEN, detail="every newest grant is proven")
    return settle(
        group=group,
        proofs=ledger.proofs(group),
        history=ledger.meters[group] if banks else None,
        disturbed_until_s=ledger.disturbed_until_s,
        settings=ledger.settings,
        now_s=now_s,
    )


def disturbance(ledger: Ledger, reason: str, now_s: float) -> DisturbanceSeen:
    """Return the event of a blip seen now (voltage outside 0.9 to 1.1 pu, or at least three uptime resets)."""
    return DisturbanceSeen(until_s=now_s + ledger.settings.disturbance_s, reason=reason, at_s=now_s)


def _refuse_raise(
    ledger: Ledger, bank: str, more_w: float, moved_w: float, starts_count: int, now_s: float
) -> Refusal | None:
    """Return why a bank may not be given `more_w` beyond its claim (or any move upward), None where it may."""
    if now_s < ledger.disturbed_until_s:
        wait_s = ledger.disturbed_until_s - now_s
        detail = f"no growth for {wait_s:.0f} s after a disturbance"
        return Refusal(bank=bank, reason=RefusalReason.DISTURBANCE, detail=detail, wait_s=wait_s)
    group = ledger.group_of(bank)
    if group is not None and not ledger.meters[group].is_live(now_s, ledger.settings):
        return Refusal(
            bank=bank, reason=RefusalReason.METER_SILENT, detail=f"the meter of {group} is silent", feeder=group
        )
    tight = ledger.path_holds(bank, now_s, more_w=more_w)
    if tight is not None:
        loss = ledger.tree.loss_factor(ledger.spec(bank).feeder, tight.feeder)
        short_w = more_w * loss - tight.headroom_w
        detail = (
            f"{tight.feeder} is full: limit {tight.limit_w:.0f} W, claimed {tight.claimed_w:.0f} W, "
            f"uncontrolled {tight.uncontrolled_w:.0f} W, margin {tight.margin_w:.0f} W"
        )
        return Refusal(bank=bank, reason=RefusalReason.NO_HEADROOM, detail=detail, feeder=tight.feeder, short_w=short_w)
    wait_s = ledger.ramp.wait_s(moved_w, starts_count, now_s)
    return _ramp_refusal(bank, moved_w, wait_s) if wait_s > 0.0 else None


def _ramp_refusal(bank: str, moved_w: float, wait_s: float) -> Refusal:
    if wait_s == math.inf:
        detail = f"{moved_w:.0f} W never fit one ramp window: move less at a time"
        return Refusal(bank=bank, reason=RefusalReason.RAMP, detail=detail, short_w=moved_w)
    detail = f"the ramp has room for {moved_w:.0f} W in {wait_s:.0f} s"
    return Refusal(bank=bank, reason=RefusalReason.RAMP, detail=detail, wait_s=wait_s)


def _grant(
    ledger: Ledger,
    bank: str,
    watts: float,
    kind: GrantKind,
    reason: str,
    now_s: float,
    *,
    ramp_w: float = 0.0,
    starts: int = 0,
) -> GrantIssued:
    report = ledger.report(bank)
    return GrantIssued(
        bank=bank,
        epoch=ledger.epoch,
        generation=ledger.next_generation(bank),
        grant_w=watts,
        kind=kind,
        for_instance="" if report is None else report.instance,
        reason=reason,
        starts_count=starts,
        ramp_w=ramp_w,
        at_s=now_s,
    )
