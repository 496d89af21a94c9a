"""Properties of the ledger and the governor over arbitrary stories."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_agent.domain.governor import GovernedBank, Governor, GovernorSettings
from swingbus_agent.domain.grant import BankGrant, Desired, SafeShareStep
from swingbus_controller.domain.power.budget import Ledger
from swingbus_controller.domain.power.budget_events import BudgetEvent, GrantIssued, GrantKind, from_record, to_record
from swingbus_controller.domain.power.decisions import GrowthConditions, decide_cover, decide_grow, decide_shrink
from swingbus_controller.domain.power.protocol import ProtocolSettings
from swingbus_controller.domain.power.ramp import RampBucket
from swingbus_controller.domain.power.settle import TOLERANCE_W
from swingbus_controller.domain.power.uncontrolled import UncontrolledLoad
from tests.prove.world import World
from tests.unit.budget.site import SETTINGS, SiteDriver, make_bank, make_tree

WATTS = st.floats(min_value=30.0, max_value=600.0)
STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["grow", "shrink", "safety", "settle"]), WATTS), max_size=25
)


def site_with(limit_w: float) -> SiteDriver:
    """Return a site held at 50 W a bank under a limit that leaves room for them."""
    site = SiteDriver(grid_w=limit_w)
    site.hold({"a": 50.0, "b": 50.0, "c": 50.0})
    return site


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, limit_w=st.floats(min_value=160.0, max_value=1500.0))
def test_no_decision_makes_i1_false(steps: list[tuple[str, str, float]], limit_w: float) -> None:
    """Whatever is asked in whatever order, claims stay within the limit once they are."""
    site = site_with(limit_w)
    assert site.ledger.i1_holds(site.now_s)
    for bank, act, watts in steps:
        site.confirm("a", "b", "c")
        if act == "settle":
            drawn_w = {name: site.ledger.newest_grant(name) for name in "abc"}
            site.prove({name: grant.grant_w if grant else 0.0 for name, grant in drawn_w.items()})
        else:
            decision = (
                decide_grow(site.ledger, bank, watts, GrowthConditions(), site.now_s)
                if act == "grow"
                else decide_shrink(
                    site.ledger,
                    bank,
                    watts,
                    site.now_s,
                    kind=GrantKind.SAFETY if act == "safety" else GrantKind.SHRINK,
                )
            )
            if isinstance(decision, GrantIssued):
                site.ledger.apply(decision)
        assert site.ledger.claimed_w("grid") <= limit_w + TOLERANCE_W


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(min_value=0, max_value=100_000))
def test_replaying_the_journal_gives_the_live_ledger(seed: int) -> None:
    """Through JSON and back, every claim, limit and epoch is the same: a crash forgets observations only."""
    world = World(seed)
    world.run()
    if world.engine is None:
        return
    live = world.engine.ledger
    replayed = Ledger(tree=live.tree, banks=[live.spec(bank) for bank in live.bank_names()], settings=live.settings)
    for event in world.journal:
        record: dict[str, Any] = json.loads(json.dumps(to_record(event)))
        replayed.apply(from_record(record))
    assert replayed.epoch == live.epoch
    assert replayed.trust == live.trust
    for bank in live.bank_names():
        assert replayed.claim_w(bank) == live.claim_w(bank)
        assert replayed.least_claim_w(bank) == live.least_claim_w(bank)
        assert replayed.newest_grant(bank) == live.newest_grant(bank)
        assert replayed.is_settled(bank) == live.is_settled(bank)
    for feeder in live.tree.feeders:
        assert replayed.claimed_w(feeder) == live.claimed_w(feeder)
        assert replayed.limits(feeder) == live.limits(feeder)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, after_s=st.floats(min_value=0.0, max_value=1e7))
def test_time_alone_changes_no_claim(steps: list[tuple[str, str, float]], after_s: float) -> None:
    """Claims are the same after any silence."""
    site = site_with(1000.0)
    for bank, _, watts in steps:
        site.confirm("a", "b", "c")
        decision = decide_grow(site.ledger, bank, watts, GrowthConditions(), site.now_s)
        if isinstance(decision, GrantIssued):
            site.ledger.apply(decision)
    before = [site.ledger.claim_w(bank) for bank in "abc"]
    for bank in "abc":
        site.ledger.view(bank, site.now_s + after_s)
        site.ledger.state(bank, site.now_s + after_s)
    assert [site.ledger.claim_w(bank) for bank in "abc"] == before


@settings(max_examples=60, deadline=None)
@given(watts=st.lists(WATTS, min_size=1, max_size=12), settle_at=st.integers(min_value=0, max_value=11))
def test_a_settlement_only_lowers_claims_and_never_below_the_newest_grant(watts: list[float], settle_at: int) -> None:
    """Evidence drops older grants; the newest one stays claimed in full."""
    site = site_with(2000.0)
    for index, target_w in enumerate(watts):
        site.confirm("a", "b", "c")
        before_w = site.ledger.claim_w("a")
        decision = decide_shrink(site.ledger, "a", min(target_w, before_w), site.now_s, kind=GrantKind.SAFETY)
        if isinstance(decision, GrantIssued):
            site.ledger.apply(decision)
            assert site.ledger.claim_w("a") == before_w
        if index == settle_at:
            newest = site.ledger.newest_grant("a")
            assert newest is not None
            site.prove({"a": newest.grant_w, "b": 50.0, "c": 50.0})
            assert newest.grant_w == site.ledger.claim_w("a") <= before_w


GOVERNOR_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "grant", "old grant", "renew", "restart", "reboot", "forget"]),
        st.floats(min_value=0.0, max_value=200.0),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(steps=GOVERNOR_STEPS, share_w=st.floats(min_value=0.0, max_value=300.0))
def test_without_a_new_grant_an_allowance_never_rises(steps: list[tuple[str, float]], share_w: float) -> None:
    """Time, renewals, restarts, reboots and a rising safe share: none of them raises anything."""
    shape = GovernedBank(
        name="b",
        devices=("d",),
        device_ceiling_w=100.0,
        safe_share_w=share_w,
        schedule=(SafeShareStep(from_s=500.0, watts=share_w * 2.0),),
    )
    now_s, run, generation, boot = 1.0, 0, 0, 0
    disk = None
    governor = None
    newest_w = 0.0
    last_raise_w = 0.0
    for act, amount in [("restart", 0.0), *steps]:
        if act == "wait":
            now_s += amount
        elif act in ("restart", "reboot", "forget"):
            run += 1
            disk = None if act == "forget" else disk
            if act == "reboot":
                boot += 1
                now_s = 1.0
            governor = Governor(
                settings=GovernorSettings(),
                banks=(shape,),
                durable=disk,
                boot_id=str(boot),
                instance=str(run),
                now_s=now_s,
            )
            if act == "forget":
                last_raise_w = 0.0
        assert governor is not None
        if act in ("grant", "old grant", "renew") and (generation or act == "grant"):
            is_new = act == "grant"
            generation += is_new
            newest_w = amount if is_new else newest_w
            shown = generation if act != "old grant" else generation - 1
            outcome = governor.receive(
                Desired(
                    epoch=1,
                    controller_instance="c",
                    ticket=governor.issue_ticket(now_s),
                    ttl_s=120.0,
                    grants=(
                        BankGrant(
                            bank="b",
                            generation=shown,
                            grant_w=newest_w if act != "old grant" else 999.0,
                            for_instance=str(run) if is_new else "",
                        ),
                    ),
                ),
                now_s,
            )
            if outcome.persist is not None:
                disk = outcome.persist
                governor.confirm(disk, now_s)
            if is_new:
                last_raise_w = amount
        allowance = governor.allowance("b", now_s)
        if allowance.may_raise:
            assert allowance.watts <= last_raise_w
        report = governor.report("b", now_s)
        if report.grant_w is not None:
            assert allowance.watts <= report.grant_w


@settings(max_examples=80, deadline=None)
@given(
    moves=st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 700.0)), max_size=40),
    window_s=st.floats(5.0, 60.0),
    rate=st.floats(1.0, 50.0),
)
def test_planned_moves_keep_the_ramp_in_every_window(
    moves: list[tuple[float, float]], window_s: float, rate: float
) -> None:
    """In any window of the set length no more than rate x window moves, wherever the window begins."""
    bucket = RampBucket(ProtocolSettings(ramp_rate_w_per_s=rate, ramp_window_s=window_s))
    now_s = 0.0
    spent: list[tuple[float, float]] = []
    for pause_s, watts in moves:
        now_s += pause_s
        wait_s = bucket.wait_s(watts, 0, now_s)
        if wait_s == 0.0:
            bucket.spend(watts, 0, now_s)
            spent.append((now_s, watts))
        elif wait_s < 1e9:
            assert bucket.wait_s(watts, 0, now_s + wait_s + 1e-6) == 0.0
    for begin_s, _ in spent:
        inside = sum(watts for at_s, watts in spent if begin_s <= at_s < begin_s + window_s - 1e-6)
        assert inside <= rate * window_s * (1.0 + 1e-6)


@settings(max_examples=60, deadline=None)
@given(seen=st.lists(st.floats(0.0, 500.0), min_size=95, max_size=130), max_w=st.floats(10.0, 1000.0))
def test_uncontrolled_load_is_never_below_what_was_seen(seen: list[float], max_w: float) -> None:
    """With a full history U covers every sample of the window, up to its rating; after silence it is the rating."""
    load = UncontrolledLoad(max_w=max_w, step_w=5.0)
    for index, watts in enumerate(seen):
        load.add(meter_upper_w=watts + 50.0, banks_lower_w=50.0, now_s=10.0 * index, settings=SETTINGS)
    now_s = 10.0 * (len(seen) - 1)
    assert load.watts(now_s, SETTINGS) >= min(max_w, max(seen[-90:])) - 1e-9
    assert load.watts(now_s + 16.0, SETTINGS) == max_w


def test_every_budget_event_survives_its_record() -> None:
    """All events of one history, through JSON: equal to themselves."""
    world = World(5)
    world.run()
    assert world.journal
    for event in world.journal:
        again: BudgetEvent = from_record(json.loads(json.dumps(to_record(event))))
        assert again == event


def test_an_empty_ledger_of_the_small_site_claims_its_ceilings() -> None:
    """Before any journal everything may draw anything."""
    ledger = Ledger(tree=make_tree(), banks=[make_bank("a")], settings=SETTINGS)
    assert ledger.claim_w("a") == ledger.ceiling_w("a")


@settings(max_examples=60, deadline=None)
@given(
    steps=STEPS, limit_w=st.floats(min_value=160.0, max_value=1500.0), covers=st.lists(WATTS, min_size=1, max_size=5)
)
def test_cover_leaves_every_claim_as_it_was(
    steps: list[tuple[str, str, float]], limit_w: float, covers: list[float]
) -> None:
    """A covering grant raises no claim and breaks no limit, whatever came before it (ADR 0002)."""
    site = site_with(limit_w)
    covered = 0
    for bank, act, watts in steps:
        site.confirm("a", "b", "c")
        decision = (
            decide_grow(site.ledger, bank, watts, GrowthConditions(), site.now_s)
            if act == "grow"
            else decide_shrink(site.ledger, bank, watts, site.now_s, kind=GrantKind.SAFETY)
        )
        if isinstance(decision, GrantIssued):
            site.ledger.apply(decision)
        site.confirm("a", "b", "c")
        for cover_w in covers:
            before = {name: site.ledger.claim_w(name) for name in "abc"}
            held_before = site.ledger.i1_holds(site.now_s)
            cover = decide_cover(site.ledger, bank, cover_w, site.now_s, reason="property")
            if isinstance(cover, GrantIssued):
                site.ledger.apply(cover)
                covered += 1
                assert {name: site.ledger.claim_w(name) for name in "abc"} == before
                assert held_before
                assert site.ledger.i1_holds(site.now_s)


def test_cover_of_an_unproven_cut_is_given_within_the_claim_and_refused_above_it() -> None:
    """A cut that nobody proved may be taken back up to what still counts, and not a watt further."""
    site = site_with(1500.0)
    grow = decide_grow(site.ledger, "a", 400.0, GrowthConditions(), site.now_s)
    assert isinstance(grow, GrantIssued)
    site.ledger.apply(grow)
    cut = decide_shrink(site.ledger, "a", 60.0, site.now_s, kind=GrantKind.SAFETY)
    assert isinstance(cut, GrantIssued)
    site.ledger.apply(cut)
    site.confirm("a", "b", "c")

    within = decide_cover(site.ledger, "a", 390.0, site.now_s, reason="test")
    above = decide_cover(site.ledger, "a", 410.0, site.now_s, reason="test")

    assert isinstance(within, GrantIssued)
    assert within.grant_w == 390.0
    assert not isinstance(above, GrantIssued)
