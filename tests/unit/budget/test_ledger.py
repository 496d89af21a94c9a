"""Claims, growth, shrink and adoption in the ledger."""

from __future__ import annotations

import pytest

from swingbus.faults import WrongState
from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.power.budget import Hearing, Ledger
from swingbus_controller.domain.power.budget_events import (
    BankIsolated,
    BankJoined,
    ControllerStarted,
    GrantIssued,
    GrantKind,
    JournalDoubted,
    JournalTrust,
    LimitRemoved,
    LimitSet,
)
from swingbus_controller.domain.power.decisions import (
    GrowthConditions,
    Refusal,
    RefusalReason,
    decide_adoption,
    decide_grow,
    decide_regrant,
    decide_shrink,
    disturbance,
)
from swingbus_controller.domain.power.limits import Limit
from tests.unit.budget.site import SETTINGS, SiteDriver

HELD = {"a": 100.0, "b": 100.0, "c": 100.0}
PLAN = GrowthConditions()


def grow(site: SiteDriver, bank: str, watts: float) -> GrantIssued | Refusal:
    """Ask for growth now."""
    return decide_grow(site.ledger, bank, watts, PLAN, site.now_s)


def held_site(**parts: float) -> SiteDriver:
    """Return a site whose three banks are HELD at 100 W."""
    site = SiteDriver(**parts)  # type: ignore[arg-type]  # only floats are passed
    site.hold(HELD)
    return site


def test_without_a_journal_every_bank_counts_at_its_ceiling() -> None:
    """What nobody remembers may draw anything."""
    site = SiteDriver()
    assert site.ledger.claimed_w("grid") == 3 * 520.0
    assert site.ledger.excesses(site.now_s) == {"grid": 560.0}


def test_adopted_regranted_and_settled_banks_are_held() -> None:
    """Only after evidence does the ceiling leave the claim."""
    site = held_site()
    assert site.ledger.state("a", site.now_s) is BankState.HELD
    assert site.ledger.claimed_w("grid") == 300.0
    assert site.ledger.i1_holds(site.now_s)


def test_growth_counts_before_it_is_sent() -> None:
    """The claim is the new grant as soon as the event is applied; a second growth waits for evidence."""
    site = held_site()
    event = grow(site, "a", 400.0)
    assert isinstance(event, GrantIssued)
    site.ledger.apply(event)
    assert site.ledger.claim_w("a") == 400.0
    assert site.ledger.least_claim_w("a") == 100.0
    assert site.ledger.state("a", site.now_s) is BankState.GROWING
    again = grow(site, "a", 450.0)
    assert isinstance(again, Refusal)
    assert again.reason is RefusalReason.NOT_HELD


def test_growth_beyond_a_feeder_says_which_and_how_far() -> None:
    """The refusal carries the feeder and the missing watts, losses included."""
    site = held_site(grid_w=500.0, losses_ratio=0.05)
    refused = grow(site, "a", 300.0)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.NO_HEADROOM
    assert refused.feeder == "grid"
    assert refused.short_w == pytest.approx(500.0 * 1.05 - 500.0)


def test_uncontrolled_load_counts_at_its_rating_until_seen() -> None:
    """U_max without a live site meter; less only while an observation is fresh."""
    site = held_site(uncontrolled_w=200.0)
    assert site.ledger.headroom_w("grid", site.now_s) == 500.0
    site.ledger.observe_uncontrolled("grid", 50.0, site.now_s)
    assert site.ledger.headroom_w("grid", site.now_s) == 650.0
    assert site.ledger.headroom_w("grid", site.now_s + 16.0) == 500.0


def test_growth_refused_for_what_the_ledger_cannot_know() -> None:
    """Lock-outs and unproven cooling refuse before anything is counted."""
    site = held_site()
    for conditions, reason in (
        (GrowthConditions(is_locked_out=True), RefusalReason.LOCKED_OUT),
        (GrowthConditions(is_cooling_proven=False), RefusalReason.COOLING_NOT_PROVEN),
    ):
        refused = decide_grow(site.ledger, "a", 200.0, conditions, site.now_s)
        assert isinstance(refused, Refusal)
        assert refused.reason is reason


def test_growth_refused_after_a_disturbance_until_it_is_over() -> None:
    """60 s of no growth, and the refusal says how long."""
    site = held_site()
    site.ledger.apply(disturbance(site.ledger, "sag", site.now_s))
    refused = grow(site, "a", 200.0)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.DISTURBANCE
    assert refused.wait_s == 60.0


def test_growth_refused_when_the_group_meter_is_silent() -> None:
    """No meter, no growth; the agent still reports."""
    site = held_site()
    site.now_s += 16.0
    site.confirm("a", "b", "c")
    refused = grow(site, "a", 200.0)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.METER_SILENT


def test_growth_beyond_the_ceiling_is_refused() -> None:
    """Nobody is granted what it could never draw."""
    site = held_site()
    refused = grow(site, "a", 521.0)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.ABOVE_CEILING


def test_a_cut_while_over_the_limit_goes_below_the_least_claim() -> None:
    """With 100 W and 400 W both possible, a cut to 200 W could be a raise."""
    site = held_site()
    event = grow(site, "a", 400.0)
    assert isinstance(event, GrantIssued)
    site.ledger.apply(event)
    site.ledger.apply(LimitSet(feeder="grid", limit=Limit(name="event", limit_w=350.0, source="t"), at_s=site.now_s))
    refused = decide_shrink(site.ledger, "a", 200.0, site.now_s, kind=GrantKind.SAFETY)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.ABOVE_LEAST_CLAIM
    assert refused.short_w == 100.0
    allowed = decide_shrink(site.ledger, "a", 100.0, site.now_s, kind=GrantKind.SAFETY)
    assert isinstance(allowed, GrantIssued)
    site.ledger.apply(allowed)
    assert site.ledger.claim_w("a") == 400.0
    assert site.ledger.state("a", site.now_s) is BankState.SHRINKING


def test_a_shrink_frees_nothing_until_evidence() -> None:
    """Claim and headroom stay through any time and any silence."""
    site = held_site()
    event = decide_shrink(site.ledger, "a", 50.0, site.now_s)
    assert isinstance(event, GrantIssued)
    site.ledger.apply(event)
    site.now_s += 1e6
    assert site.ledger.claim_w("a") == 100.0
    assert site.ledger.state("a", site.now_s) is BankState.DARK


def test_silence_makes_a_bank_dark_and_keeps_its_claim() -> None:
    """Three missed periods; what may wake up is the ceiling less the claim."""
    site = held_site()
    assert site.ledger.state("a", site.now_s + 3.5) is BankState.DARK
    assert site.ledger.claim_w("a") == 100.0
    assert site.ledger.wakeable_w("a") == 420.0


def test_an_isolated_bank_claims_nothing_and_its_ceiling_afterwards() -> None:
    """Only a proven open supply lowers the ceiling; joined again it may draw anything."""
    site = held_site()
    site.ledger.apply(BankIsolated(bank="a", at_s=site.now_s))
    assert site.ledger.claim_w("a") == 0.0
    assert site.ledger.state("a", site.now_s) is BankState.ISOLATED
    site.ledger.apply(BankJoined(bank="a", at_s=site.now_s))
    assert site.ledger.claim_w("a") == 520.0


def start(ledger: Ledger, epoch: int, trust: JournalTrust, now_s: float) -> None:
    """Begin a new controller's term."""
    ledger.apply(ControllerStarted(epoch=epoch, instance="two", boot_id="boot", trust=trust, at_s=now_s))


def test_a_restart_keeps_claims_and_needs_adoption() -> None:
    """Claims are the journal's; nobody is HELD before its own evidence in the new term."""
    site = held_site()
    start(site.ledger, 2, JournalTrust.CURRENT, site.now_s)
    assert site.ledger.claimed_w("grid") == 300.0
    assert site.ledger.state("a", site.now_s) is BankState.ADOPTING
    refused = decide_shrink(site.ledger, "a", 50.0, site.now_s)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.NOT_ADOPTED


def test_an_unproven_journal_counts_silent_banks_at_their_ceiling_for_growth() -> None:
    """It may be an old copy: what it says may do for a cut, not for somebody else's growth."""
    site = held_site()
    start(site.ledger, 2, JournalTrust.UNPROVEN, site.now_s)
    assert site.ledger.claimed_w("grid") == 300.0
    assert site.ledger.claimed_w("grid", for_growth=True) == 3 * 520.0


def test_an_agent_that_shows_a_newer_grant_proves_the_journal_old() -> None:
    """Everyone who has not reported yet then counts at the ceiling, the witness too."""
    site = held_site()
    start(site.ledger, 2, JournalTrust.UNPROVEN, site.now_s)
    site.ledger.observe_report(site.report("a", grant=(1, 9, 300.0)), site.now_s)
    events = decide_adoption(site.ledger, "a", site.now_s)
    assert isinstance(events[0], JournalDoubted)
    for event in events:
        site.ledger.apply(event)
    assert [site.ledger.claim_w(bank) for bank in "abc"] == [520.0, 520.0, 520.0]


def test_regrant_after_a_restart_is_what_was_reported() -> None:
    """A living grant comes back unchanged under our epoch, even while I1 is false."""
    site = held_site()
    start(site.ledger, 2, JournalTrust.LOST, site.now_s)
    site.hear(site.report("a", grant=(1, 1, 100.0)))
    event = decide_regrant(site.ledger, "a", site.now_s)
    assert isinstance(event, GrantIssued)
    assert (event.epoch, event.generation, event.grant_w) == (2, 1, 100.0)


def test_regrant_after_a_lapse_restores_only_while_i1_holds() -> None:
    """With the limit exceeded it stays at what it has fallen to."""
    site = held_site()
    site.hear(site.report("a", grant=(1, 1, 100.0), reported_w=50.0, is_lapsed=True))
    restored = decide_regrant(site.ledger, "a", site.now_s)
    assert isinstance(restored, GrantIssued)
    assert restored.grant_w == 100.0
    site.ledger.apply(LimitSet(feeder="grid", limit=Limit(name="e", limit_w=200.0, source="t"), at_s=site.now_s))
    fallen = decide_regrant(site.ledger, "a", site.now_s)
    assert isinstance(fallen, GrantIssued)
    assert fallen.grant_w == 50.0


def test_a_report_under_a_newer_epoch_says_that_we_are_outdated() -> None:
    """Fenced off: stop, or start above it trusting nothing; a repeat changes nothing."""
    site = held_site()
    report = site.report("a", grant=(1, 1, 100.0))
    assert site.ledger.observe_report(report, site.now_s) is Hearing.TAKEN
    assert site.ledger.observe_report(report, site.now_s) is Hearing.OLD
    start(site.ledger, 2, JournalTrust.CURRENT, site.now_s)
    other = SiteDriver()
    assert other.ledger.observe_report(site.report("a", grant=(1, 1, 100.0)), other.now_s) is Hearing.FENCED


def test_a_report_of_an_earlier_run_is_old_once_a_later_one_was_heard() -> None:
    """A delayed report of the run before cannot bring back what the agent has forgotten."""
    site = held_site()
    late = site.report("a", grant=(1, 1, 100.0))
    site.hear(site.report("a", is_lost=True, is_lapsed=True, instance="a/2"))
    assert site.ledger.observe_report(late, site.now_s) is Hearing.OLD


def test_two_controllers_in_one_journal_are_found_out() -> None:
    """A grant or an epoch out of order is refused, not folded in."""
    site = held_site()
    grant = site.ledger.newest_grant("a")
    assert grant is not None
    with pytest.raises(WrongState):
        site.ledger.apply(grant)
    with pytest.raises(WrongState):
        start(site.ledger, 1, JournalTrust.CURRENT, site.now_s)


def test_limits_can_be_replaced_and_removed() -> None:
    """Same name replaces; the lowest in force counts."""
    site = held_site()
    for watts in (800.0, 700.0):
        site.ledger.apply(LimitSet(feeder="grid", limit=Limit(name="e", limit_w=watts, source="t"), at_s=0.0))
    assert site.ledger.limit_w("grid", site.now_s) == 700.0
    site.ledger.apply(LimitRemoved(feeder="grid", name="e", at_s=0.0))
    assert site.ledger.limit_w("grid", site.now_s) == 1000.0


def test_the_grant_is_believed_to_live_a_little_longer_than_its_ttl() -> None:
    """From the answer, stretched by 0.1 %; it is shown, and frees nothing."""
    site = held_site()
    site.ledger.note_answered("a", 200.0)
    assert site.ledger.view("a", site.now_s).grant_over_by_s == pytest.approx(200.0 + SETTINGS.ttl_s * 1.001)
