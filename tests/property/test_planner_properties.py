"""What a plan and its admission must never do, over random sites."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from swingbus_controller.domain.flips.admission import admit
from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.packing import EPSILON_W, Headroom
from swingbus_controller.domain.planning.plan import (
    PLANNABLE,
    Availability,
    BankView,
    FirmNeed,
    Holding,
    Plan,
    PlanView,
    Reason,
    Transit,
)
from swingbus_controller.domain.planning.planner import bank_claim_w, dwell_left_s, plan
from swingbus_controller.domain.planning.points import DeviceKind, Mode
from tests.unit.planner.sites import H100, NOW_S, POLICY, S19J, S21, make_market, make_view

T = TypeVar("T")
ages = st.sampled_from((5.0, 100.0, 899.0, 900.0, 5000.0))
prices = st.one_of(st.none(), st.sampled_from((-20.0, 0.0, 30.0, 60.0, 63.0, 66.0, 110.0, 900.0)))


@st.composite
def banks(draw: st.DrawFn, name: str) -> BankView:
    """Return any bank: kind, state, ages, open flips, pins."""
    is_gpu = draw(st.booleans())
    points = H100 if is_gpu else draw(st.sampled_from((S19J, S21)))
    unit = draw(st.sampled_from((1, 4, 8))) if is_gpu else 1
    holdings = []
    number = 0
    for point in points:
        for _ in range(draw(st.integers(0, 2))):
            units = draw(st.integers(0, 6))
            ids = tuple(f"{name}/u{number + i}" for i in range(units)) if is_gpu else ()
            number += units
            holdings.append(Holding(point=point.name, count=units * unit, since_s=NOW_S - draw(ages), unit_ids=ids))
    transits = []
    if draw(st.booleans()):
        origin, aim = draw(st.permutations(points))[:2]
        transits.append(
            Transit(
                flip=f"flips/{name}", from_point=origin.name, to_point=aim.name, count=unit, unit_ids=(f"{name}/x",)
            )
        )
    return BankView(
        bank=name, feeder=draw(st.sampled_from(("c1", "c2", "grid"))), kind=DeviceKind.GPU if is_gpu else DeviceKind.ASIC,
        points=points, holdings=tuple(holdings), transits=tuple(transits), fixed_claim_w=draw(st.sampled_from((0.0, 600.0))),
        unit_size=unit, inference_class="h100" if is_gpu else None, mining_class="h100" if is_gpu else None,
        availability=draw(st.sampled_from((Availability.HELD,) * 4 + tuple(Availability))),
        pinned_reason=draw(st.sampled_from((None, None, None, "pin"))),
    )  # fmt: skip


@st.composite
def sites(draw: st.DrawFn) -> tuple[PlanView, MarketView]:
    """Return any site and market."""
    found = tuple(draw(banks(f"b{i}")) for i in range(draw(st.integers(1, 5))))
    firm = tuple(
        FirmNeed(
            reservation=f"r{i}",
            inference_class="h100",
            device_count=draw(st.integers(1, 12)),
            price_usd_per_device_h=2.0,
        )
        for i in range(draw(st.integers(0, 2)))
    )
    now_w = sum(bank_claim_w(b) for b in found)
    view = make_view(
        found,
        grid_w=now_w * draw(st.sampled_from((0.2, 0.7, 0.95, 1.0, 1.05, 3.0))),
        feeders={"c1": now_w * draw(st.sampled_from((0.3, 1.0))), "c2": now_w * draw(st.sampled_from((0.5, 2.0)))},
        firm=firm,
    )
    market = make_market(
        power=draw(prices),
        hashprice=draw(st.sampled_from((None, 0.0, 0.0465, 0.08))),
        inference_price=draw(st.sampled_from((None, 0.02, 2.35))),
        demand=draw(st.sampled_from((None, 0.0, 3.0, 7.5, 40.0))),
        gpu_mining=draw(st.sampled_from((None, 0.05, 1.4))),
    )
    return view, market


def make_plan(site: tuple[PlanView, MarketView]) -> Plan:
    """Plan a drawn site."""
    return plan(site[0], site[1], POLICY, NOW_S)


@settings(max_examples=80, deadline=None)
@given(site=sites(), seed=st.integers(0, 999))
def test_plan_is_a_function_and_input_order_is_irrelevant(site: tuple[PlanView, MarketView], seed: int) -> None:
    """Same input, same plan; shuffled input, same plan."""
    view, market = site
    made = make_plan(site)
    assert make_plan(site) == made
    chance = random.Random(seed)

    def shuffled(items: tuple[T, ...]) -> tuple[T, ...]:
        mixed = list(items)
        chance.shuffle(mixed)
        return tuple(mixed)

    mixed_banks = tuple(
        replace(b, holdings=shuffled(b.holdings), points=shuffled(b.points), transits=shuffled(b.transits))
        for b in view.banks
    )
    mixed = replace(
        view,
        banks=shuffled(mixed_banks),
        feeders=shuffled(view.feeders),
        firm_needs=shuffled(view.firm_needs),
    )
    again = plan(mixed, market, POLICY, NOW_S)
    assert again.targets == made.targets
    assert again.moves == made.moves
    assert again.feeders == made.feeders
    assert again.shortfalls == made.shortfalls


@settings(max_examples=100, deadline=None)
@given(site=sites())
def test_plan_never_claims_more_than_a_feeder_has_unless_the_least_does(site: tuple[PlanView, MarketView]) -> None:
    """Recomputed from the targets alone: within every feeder, or told as over with everything at its least."""
    view, _ = site
    made = make_plan(site)
    room = Headroom(view.feeders)
    by_name = {b.bank: b for b in view.banks}
    for target in made.targets:
        room.take(room.path(by_name[target.bank].feeder, target.bank), target.claim_w)
    for name, free_w in zip(room.names, room.free_w, strict=True):
        assert free_w >= -1.0 or name in made.over_limit_w
        outlook = made.feeder(name)
        assert outlook is not None and abs(outlook.available_w - outlook.claimed_w - free_w) < 1.0


@settings(max_examples=100, deadline=None)
@given(site=sites())
def test_devices_are_conserved_and_in_one_mode(site: tuple[PlanView, MarketView]) -> None:
    """Moves lead exactly from holdings to targets; no unit is moved twice."""
    view, _ = site
    made = make_plan(site)
    for bank in view.banks:
        after = {p.name: 0 for p in bank.points}
        for holding in bank.holdings:
            after[holding.point] += holding.count
        for transit in bank.transits:
            after[transit.to_point] += transit.count
        for move in (m for m in made.moves if m.bank == bank.bank):
            after[move.from_point] -= move.count
            after[move.to_point] += move.count
        target = made.target(bank.bank)
        assert target is not None and dict(target.counts) == {p: n for p, n in after.items() if n}
        moved = [u for m in made.moves if m.bank == bank.bank for u in m.unit_ids]
        assert len(moved) == len(set(moved))
        if bank.availability not in PLANNABLE:
            assert not moved


@settings(max_examples=100, deadline=None)
@given(site=sites())
def test_no_flip_inside_the_dwell_or_under_a_pin_unless_a_limit_forces_it(site: tuple[PlanView, MarketView]) -> None:
    """S4, device by device: what a move takes must be ripe."""
    view, _ = site
    made = make_plan(site)
    room = Headroom(view.feeders)
    for bank in view.banks:
        room.take(room.path(bank.feeder, bank.bank), bank_claim_w(bank))
    fits_now = min(room.free_w) >= -EPSILON_W
    for bank in view.banks:
        for point in bank.points:
            leaving = [m for m in made.moves if m.bank == bank.bank and m.from_point == point.name and m.is_mode_flip]
            if any(m.reason is Reason.LIMIT for m in leaving):
                assert not fits_now
                continue
            here = [h for h in bank.holdings if h.point == point.name]
            ripe = sum(
                h.count for h in here if dwell_left_s(bank, h, POLICY, NOW_S) <= 0 and bank.pinned_reason is None
            )
            assert sum(m.count for m in leaving) <= ripe


@settings(max_examples=100, deadline=None)
@given(site=sites())
def test_moves_for_money_earn_back_what_they_cost(site: tuple[PlanView, MarketView]) -> None:
    """S4: with nobody forced and no promise to serve, the moves of a plan together gain more than they cost over the hold."""
    made = make_plan(site)
    if any(m.reason in (Reason.LIMIT, Reason.FIRM) for m in made.moves) or not made.moves or made.over_limit_w:
        return
    room = Headroom(site[0].feeders)
    for bank in site[0].banks:
        room.take(room.path(bank.feeder, bank.bank), bank_claim_w(bank))
    if min(room.free_w) < -EPSILON_W:
        return
    gain = sum(m.gain_usd_per_h for m in made.moves) * POLICY.expected_hold_s / 3600
    if not site[0].firm_needs:
        assert gain >= sum(m.cost_usd for m in made.moves) - 1e-6


@settings(max_examples=100, deadline=None)
@given(site=sites(), grid_factor=st.sampled_from((0.3, 0.6, 0.8, 0.97, 1.0)))
def test_admitted_flips_never_exceed_a_feeder_at_any_step(
    site: tuple[PlanView, MarketView], grid_factor: float
) -> None:
    """On a fleet whose limit fell meanwhile: nothing that starts now, in any order, passes a feeder that had room."""
    view, _ = site
    made = make_plan(site)
    fell = replace(
        view,
        revision=view.revision + 1,
        feeders=tuple(replace(f, available_w=f.available_w * grid_factor) for f in view.feeders),
    )
    admission = admit(made, fell, NOW_S)
    room = Headroom(fell.feeders)
    for bank in fell.banks:
        room.take(room.path(bank.feeder, bank.bank), bank_claim_w(bank))
    by_name = {b.bank: b for b in fell.banks}
    for flip in admission.admitted:
        bank, move = by_name[flip.move.bank], flip.move
        point, from_w = bank.point(flip.to_point), bank.point(move.from_point).claim_w
        assert point.mode is move.to_mode and point.claim_w <= bank.point(move.to_point).claim_w
        assert flip.claim_delta_w == flip.count * (point.claim_w - from_w)
        if flip.to_point != move.to_point:
            assert flip.starts_now and move.is_mode_flip and point.mode is Mode.INFERENCE
    over_before = [free_w < -EPSILON_W for free_w in room.free_w]
    for flip in admission.admitted:
        bank = by_name[flip.move.bank]
        path = room.path(bank.feeder, bank.bank)
        if flip.starts_now and flip.claim_delta_w > 0:
            # Shrinks free nothing here: they have not been proven.
            room.take(path, flip.claim_delta_w)
            assert all(room.free_w[i] >= -EPSILON_W and not over_before[i] for i, _ in path)
    # And with every shrink proven and every waiting flip grown.
    for bank in fell.banks:
        for transit in bank.transits:
            less_w = bank.point(transit.from_point).claim_w - bank.point(transit.to_point).claim_w
            if less_w > 0:
                room.take(room.path(bank.feeder, bank.bank), -less_w * transit.count)
    for flip in admission.admitted:
        bank = by_name[flip.move.bank]
        if flip.claim_delta_w <= 0 or not flip.starts_now:
            room.take(room.path(bank.feeder, bank.bank), flip.claim_delta_w)
    grown = {
        i
        for f in admission.admitted
        if f.claim_delta_w > 0
        for i, _ in room.path(by_name[f.move.bank].feeder, f.move.bank)
    }
    assert all(room.free_w[i] >= -1.0 for i in grown)
    counted = sum(f.count for f in admission.admitted) + sum(r.count for r in admission.refused)
    assert counted == sum(m.count for m in made.moves)
