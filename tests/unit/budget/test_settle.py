"""What counts as evidence, and each reason why something does not."""

from __future__ import annotations

from dataclasses import replace

from swingbus_controller.domain.power.budget_events import (
    ControllerStarted,
    GrantIssued,
    GroupSettled,
    JournalTrust,
    from_record,
    to_record,
)
from swingbus_controller.domain.power.decisions import decide_settle, decide_shrink, disturbance
from swingbus_controller.domain.power.settle import NotSettled, SettleReason
from tests.unit.budget.site import SiteDriver

HELD = {"a": 100.0, "b": 100.0, "c": 100.0}


def shrinking_site() -> SiteDriver:
    """Return a site where bank `a` was just cut from 100 W to 60 W."""
    site = SiteDriver()
    site.hold(HELD)
    event = decide_shrink(site.ledger, "a", 60.0, site.now_s)
    assert isinstance(event, GrantIssued)
    site.ledger.apply(event)
    return site


def reason(site: SiteDriver, group: str = "c1") -> SettleReason | None:
    """Return why the group does not settle now, None where it does."""
    decision = decide_settle(site.ledger, group, site.now_s)
    return decision.reason if isinstance(decision, NotSettled) else None


def test_three_fitting_windows_after_applied_settle_and_are_kept() -> None:
    """The event names the grants it proves and the windows it rests on; then the old claim goes."""
    site = shrinking_site()
    site.confirm("a")
    site.measure("c1", 55.0)
    event = decide_settle(site.ledger, "c1", site.now_s)
    assert isinstance(event, GroupSettled)
    assert len(event.windows) == 3
    assert all(window.upper_w <= 60.0 for window in event.windows)
    assert from_record(to_record(event)) == event
    site.ledger.apply(event)
    assert site.ledger.claim_w("a") == 60.0
    assert reason(site) is SettleReason.NOTHING_OPEN


def test_a_receipt_is_not_evidence() -> None:
    """Confirmed but not read back: NotApplied; not even confirmed: InFlight."""
    site = shrinking_site()
    site.measure("c1", 55.0)
    assert reason(site) is SettleReason.IN_FLIGHT
    grant = site.ledger.newest_grant("a")
    assert grant is not None
    site.hear(site.report("a", grant=(grant.epoch, grant.generation, grant.grant_w)))
    site.measure("c1", 55.0)
    assert reason(site) is SettleReason.NOT_APPLIED


def test_a_low_draw_is_not_evidence() -> None:
    """A pool loss makes any reading fit; without Applied it frees nothing."""
    site = shrinking_site()
    site.measure("c1", 20.0, times=10)
    assert reason(site) is SettleReason.IN_FLIGHT


def test_windows_from_before_applied_do_not_count() -> None:
    """Three windows, then Applied, then one: only the last one is after the cause."""
    site = shrinking_site()
    site.measure("c1", 55.0)
    site.confirm("a")
    assert reason(site) is SettleReason.TOO_FEW_WINDOWS
    site.measure("c1", 55.0, times=1)
    decision = decide_settle(site.ledger, "c1", site.now_s)
    assert isinstance(decision, NotSettled)
    assert len(decision.windows) == 1


def test_two_windows_or_a_short_span_are_too_few() -> None:
    """Both the number and the seconds are needed."""
    site = shrinking_site()
    site.confirm("a")
    site.measure("c1", 55.0, times=2)
    assert reason(site) is SettleReason.TOO_FEW_WINDOWS
    quick = shrinking_site()
    quick.confirm("a")
    for _ in range(3):
        quick.ledger.observe_window(quick.window("c1", 55.0, length_s=1.0), quick.now_s)
    assert reason(quick) is SettleReason.TOO_FEW_WINDOWS


def test_another_boots_clock_is_never_compared() -> None:
    """The agent rebooted after Applied: its windows count on another clock and need a marker."""
    site = shrinking_site()
    site.confirm("a")
    for _ in range(3):
        window = replace(site.window("c1", 55.0), boot_id="a-boot-2", marker=None)
        site.ledger.observe_window(window, site.now_s)
    assert reason(site) is SettleReason.TOO_FEW_WINDOWS


def test_a_meter_read_by_another_agent_needs_the_marker() -> None:
    """c2's meter is read by b: for bank c only a marker issued after its Applied proves the order."""
    site = SiteDriver()
    site.hold(HELD)
    event = decide_shrink(site.ledger, "c", 60.0, site.now_s)
    assert isinstance(event, GrantIssued)
    site.ledger.apply(event)
    before = site.ledger.marker
    site.confirm("c")
    for _ in range(3):
        site.ledger.observe_window(replace(site.window("c2", 140.0), marker=before), site.now_s)
    assert reason(site, "c2") is SettleReason.TOO_FEW_WINDOWS
    site.measure("c2", 140.0)
    assert reason(site, "c2") is None


def test_a_marker_of_an_earlier_term_proves_nothing() -> None:
    """A big number of the epoch before is not later than ours."""
    site = SiteDriver()
    site.hold(HELD)
    site.ledger.apply(
        ControllerStarted(epoch=2, instance="two", boot_id="boot", trust=JournalTrust.CURRENT, at_s=site.now_s)
    )
    assert site.ledger.marker == (2, 0)


def test_a_reading_above_the_sum_of_grants_refuses() -> None:
    """The sum of the group's own grants, nobody else's headroom."""
    site = shrinking_site()
    site.confirm("a")
    site.measure("c1", 62.0)
    assert reason(site) is SettleReason.ABOVE_GRANT


def test_an_overshoot_starts_the_count_anew() -> None:
    """Two fitting windows, one above, two fitting: still too few."""
    site = shrinking_site()
    site.confirm("a")
    for watts in (55.0, 55.0, 70.0, 55.0, 55.0):
        site.measure("c1", watts, times=1)
    assert reason(site) is SettleReason.TOO_FEW_WINDOWS


def test_unheld_devices_count_at_their_ceiling() -> None:
    """Applied with more counted watts than the grant is not held."""
    site = shrinking_site()
    grant = site.ledger.newest_grant("a")
    assert grant is not None
    report = site.report("a", grant=(grant.epoch, grant.generation, 60.0), applied=True)
    assert report.applied is not None
    site.hear(replace(report, applied=replace(report.applied, counted_w=90.0, unheld_count=1)))
    assert reason(site) is SettleReason.NOT_HELD


def test_identical_readings_are_a_frozen_meter() -> None:
    """Three times the same is not a measurement, even with energy moving."""
    site = shrinking_site()
    site.confirm("a")
    for _ in range(4):
        window = site.window("c1", 55.0)
        site.ledger.observe_window(replace(window, mean_w=55.0), site.now_s)
    assert reason(site) in (SettleReason.METER_FROZEN, SettleReason.METER_SILENT)


def test_an_energy_counter_that_stands_still_is_no_evidence() -> None:
    """Energy and power must tell the same story."""
    site = shrinking_site()
    site.confirm("a")
    for _ in range(3):
        window = site.window("c1", 55.0)
        site.ledger.observe_window(replace(window, energy_end_j=(window.energy_start_j or 0.0) + 20.0), site.now_s)
    assert reason(site) is SettleReason.METER_DISAGREES


def test_swapped_words_are_not_even_a_reading() -> None:
    """P far from V x I x pf is dropped, and with it silence grows."""
    site = shrinking_site()
    site.confirm("a")
    assert not site.ledger.observe_window(replace(site.window("c1", 55.0), product_w=55_000.0), site.now_s)


def test_a_disturbance_suspends_evidence() -> None:
    """During it, and for windows that began in it."""
    site = shrinking_site()
    site.confirm("a")
    site.ledger.apply(disturbance(site.ledger, "sag", site.now_s))
    site.measure("c1", 55.0)
    assert reason(site) is SettleReason.DISTURBANCE
    site.now_s += 60.0
    site.confirm("a")
    assert reason(site) is not None
    site.measure("c1", 55.0)
    assert reason(site) is None


def test_a_group_under_the_sites_meter_only_never_settles() -> None:
    """Its banks may shrink, the reason says why they stay claimed."""
    site = SiteDriver()
    decision = decide_settle(site.ledger, "grid", site.now_s)
    assert isinstance(decision, NotSettled)
    assert decision.reason is SettleReason.NO_METER
