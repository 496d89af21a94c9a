"""Protection: who exceeds is named, cuts are no raises, silence gives nothing."""

from __future__ import annotations

from swingbus_controller.domain.power.bank import BankState
from swingbus_controller.domain.power.budget_events import (
    ControllerStarted,
    GrantIssued,
    GroupExceeded,
    JournalTrust,
    LimitSet,
)
from swingbus_controller.domain.power.decisions import GrowthConditions, decide_grow
from swingbus_controller.domain.power.guard import ShedStep, exceeded_groups, guard
from swingbus_controller.domain.power.limits import Limit
from tests.unit.budget.site import SiteDriver

HELD = {"a": 100.0, "b": 100.0, "c": 100.0}
STEPS = [ShedStep(bank=bank, to_w=30.0) for bank in ("b", "a", "c")]


def limited_site(watts: float) -> SiteDriver:
    """Return a HELD site whose grid limit was just lowered."""
    site = SiteDriver()
    site.hold(HELD)
    site.confirm("a", "b", "c")
    site.ledger.apply(LimitSet(feeder="grid", limit=Limit(name="e", limit_w=watts, source="t"), at_s=site.now_s))
    return site


def cuts(site: SiteDriver) -> dict[str, float]:
    """Return what guard would cut now."""
    return {grant.bank: grant.grant_w for grant in guard(site.ledger, STEPS, site.now_s).grants}


def test_nothing_is_cut_while_i1_holds() -> None:
    """Guard is silent within the limit."""
    assert cuts(limited_site(300.0)) == {}


def test_cuts_follow_the_callers_order_and_stop_when_enough() -> None:
    """b down to its floor first, then a for the rest; c is left alone."""
    assert cuts(limited_site(200.0)) == {"b": 30.0, "a": 70.0}


def test_what_no_step_can_free_is_told() -> None:
    """The rest is reported in watts at the feeder."""
    plan = guard(limited_site(50.0).ledger, STEPS, limited_site(50.0).now_s)
    assert plan.unmet_w == {"grid": 40.0}


def test_cuts_on_their_way_are_not_asked_for_twice() -> None:
    """Once journaled, the same excess asks nobody else."""
    site = limited_site(200.0)
    for grant in guard(site.ledger, STEPS, site.now_s).grants:
        site.ledger.apply(grant)
    assert cuts(site) == {}
    assert not site.ledger.i1_holds(site.now_s)


def test_a_straggler_no_longer_counts_as_coming() -> None:
    """After the deadline others give what it has not proven."""
    site = limited_site(200.0)
    for grant in guard(site.ledger, STEPS, site.now_s).grants:
        site.ledger.apply(grant)
    site.now_s += 31.0
    site.confirm("a", "b", "c")
    assert cuts(site) == {"c": 30.0}


def test_a_dark_bank_gives_nothing() -> None:
    """What a silent agent was told is not coming: the others give."""
    site = limited_site(200.0)
    site.now_s += 10.0
    site.confirm("a", "c")
    assert cuts(site) == {"a": 30.0, "c": 70.0}


def test_whole_steps_are_cut() -> None:
    """A small excess costs one device, not a new grant for every watt."""
    site = limited_site(295.0)
    (grant,) = guard(site.ledger, [ShedStep(bank="b", to_w=30.0, step_w=20.0)], site.now_s).grants
    assert grant.grant_w == 80.0


def test_a_growth_that_may_not_have_arrived_is_taken_back_first() -> None:
    """While I1 is false nothing may rise any more."""
    site = SiteDriver()
    site.hold(HELD)
    site.confirm("a", "b", "c")
    event = decide_grow(site.ledger, "c", 500.0, GrowthConditions(), site.now_s)
    assert isinstance(event, GrantIssued)
    site.ledger.apply(event)
    site.ledger.apply(LimitSet(feeder="grid", limit=Limit(name="e", limit_w=690.0, source="t"), at_s=site.now_s))
    assert cuts(site) == {"c": 100.0}


def test_a_group_that_draws_too_much_counts_at_its_reading_until_it_settles() -> None:
    """Its banks are DISOBEYING, the feeder above carries the excess, a silent meter changes nothing."""
    site = limited_site(400.0)
    site.measure("c1", 150.0, times=1)
    (event,) = exceeded_groups(site.ledger, site.now_s)
    assert event.group == "c1"
    site.ledger.apply(event)
    site.confirm("a", "b", "c")
    assert site.ledger.state("a", site.now_s) is BankState.DISOBEYING
    assert site.ledger.claimed_w("grid") == 200.0 + event.upper_w
    site.now_s += 1000.0
    assert site.ledger.claimed_w("grid") == 200.0 + event.upper_w
    site.prove(HELD)
    assert site.ledger.claimed_w("grid") == 300.0


def test_a_reading_within_the_meters_error_names_nobody() -> None:
    """Its upper bound counts, but only a lower bound above the grants is disobedience."""
    site = limited_site(400.0)
    site.measure("c1", 100.0, times=1)
    (event,) = exceeded_groups(site.ledger, site.now_s)
    assert isinstance(event, GroupExceeded)
    site.ledger.apply(event)
    site.confirm("a")
    assert site.ledger.state("a", site.now_s) is BankState.HELD


def test_paper_excess_after_a_start_sheds_nothing_while_meters_are_live() -> None:
    """Our own ignorance is not a reason to stop machines that the meters show within the limit."""
    site = SiteDriver()
    site.hold(HELD)
    site.ledger.apply(
        ControllerStarted(epoch=2, instance="two", boot_id="boot", trust=JournalTrust.LOST, at_s=site.now_s)
    )
    for bank in "abc":
        site.hear(site.report(bank, grant=(1, 1, 100.0)))
    assert not site.ledger.i1_holds(site.now_s)
    site.measure("c1", 90.0, times=1)
    site.measure("c2", 180.0, times=1)
    site.confirm_adopted()
    assert cuts(site) == {}
    site.now_s += 61.0
    site.confirm_adopted()
    assert guard(site.ledger, STEPS, site.now_s).unmet_w["grid"] > 0.0
