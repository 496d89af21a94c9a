"""The planner's rules, one situation each."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from swingbus.faults import InvalidInput
from swingbus_controller.domain.planning.plan import (
    Availability,
    BankView,
    FirmNeed,
    Move,
    Plan,
    PlanView,
    Reason,
    Transit,
)
from swingbus_controller.domain.planning.planner import plan
from swingbus_controller.domain.planning.policy import Policy

from .sites import H100, NOW_S, POLICY, S21, make_asics, make_demo, make_gpus, make_market, make_view


def counts(made: Plan, bank: str) -> dict[str, int]:
    """Return the target of a bank as a dict."""
    target = made.target(bank)
    assert target is not None
    return dict(target.counts)


def moves(made: Plan) -> dict[tuple[str, str, str], tuple[int, Reason]]:
    """Return moves by (bank, from, to)."""
    return {(m.bank, m.from_point, m.to_point): (m.count, m.reason) for m in made.moves}


def ratio(made: Plan) -> float:
    """Return how full the grid feeder is claimed."""
    grid = made.feeder("grid")
    assert grid is not None and grid.claimed_ratio is not None
    return grid.claimed_ratio


def test_power_below_the_strike_wakes_miners_until_the_feeder_is_full() -> None:
    """Cheap power: claims fill at least 97 % of what is available and never more."""
    made = plan(make_demo(), make_market(power=30.0), POLICY, NOW_S)
    assert 0.97 <= ratio(made) <= 1.0
    assert {m.reason for m in made.moves if m.bank == "c2/s19j" and m.from_point == "standby"} == {Reason.BELOW_STRIKE}


def test_power_above_the_strike_stops_the_worst_machines_only() -> None:
    """At 90 USD/MWh an S19j Pro (strike 63) rests and an S21 (strike 109) goes on."""
    made = plan(make_demo(), make_market(power=90.0), POLICY, NOW_S)
    assert counts(made, "c2/s19j") == {"standby": 65}
    assert counts(made, "c1/s21") == {"mine": 60}
    assert moves(made)[("c2/s19j", "mine", "standby")] == (40, Reason.ABOVE_STRIKE)


@pytest.mark.parametrize("power", [57.0, 60.0, 66.0, 69.0])
def test_power_inside_the_band_moves_nobody(power: float) -> None:
    """Hysteresis: near the strike both those who mine and those who rest stay."""
    view = make_view((make_asics("b", "c", mining=10, standby=10),), grid_w=1e6)
    assert plan(view, make_market(power=power), POLICY, NOW_S).moves == ()


def test_no_flip_inside_the_dwell_for_money() -> None:
    """A price of 500 does not stop machines that woke five minutes ago."""
    view = make_view((make_asics("b", "c", mining=10, since_s=NOW_S - 300),), grid_w=1e6)
    assert plan(view, make_market(power=500.0), POLICY, NOW_S).moves == ()


def test_lowered_limit_sheds_inside_the_dwell() -> None:
    """A curtailment does not wait for the dwell, and takes no more than it needs."""
    view = make_view((make_asics("b", "c", points=S21, mining=10, since_s=NOW_S - 300),), grid_w=20_000.0)
    made = plan(view, make_market(), POLICY, NOW_S)
    assert moves(made) == {("b", "mine", "standby"): (5, Reason.LIMIT)}
    assert ratio(made) <= 1.0 and not made.over_limit_w


def test_curtailment_sheds_mining_before_inference() -> None:
    """Miners inside their dwell go before a GPU that somebody pays for."""
    view = make_view(
        (
            make_asics("b", "c", points=S21, mining=10, since_s=NOW_S - 5),
            make_gpus("g", "r", at={"inference": 8}),
        ),
        grid_w=10_000.0,
    )
    made = plan(view, make_market(demand=8.0), POLICY, NOW_S)
    assert counts(made, "g") == {"inference": 8}
    assert counts(made, "b")["standby"] >= 9


def test_firm_gpus_are_capped_before_they_are_stopped() -> None:
    """The watts do not hold eight at full power: they are capped, not stopped."""
    need = FirmNeed(reservation="acme", inference_class="h100", device_count=8, price_usd_per_device_h=2.0)
    view = make_view((make_gpus("g", "r", at={"inference": 8}, since_s=NOW_S - 5),), grid_w=5_200.0, firm=(need,))
    made = plan(view, make_market(demand=0.0), POLICY, NOW_S)
    assert counts(made, "g").get("inference-low", 0) + counts(made, "g").get("inference", 0) == 8
    assert counts(made, "g")["inference-low"] >= 6
    assert not made.shortfalls and not made.over_limit_w


def test_reservation_is_served_even_where_power_costs_more_than_it_earns() -> None:
    """A promise is a promise."""
    need = FirmNeed(reservation="acme", inference_class="h100", device_count=4, price_usd_per_device_h=0.01)
    view = make_view((make_gpus("g", "r", at={"standby": 8}),), grid_w=1e6, firm=(need,))
    made = plan(view, make_market(power=3000.0), POLICY, NOW_S)
    assert sum(n for p, n in counts(made, "g").items() if p.startswith("inference")) == 4
    assert {m.reason for m in made.moves} == {Reason.FIRM}


def test_demand_takes_gpus_from_mining_while_the_worst_asics_make_room() -> None:
    """The issue's swing: GPUs flip to inference, S19j machines give the watts, S21 machines go on."""
    view = make_view(
        (
            make_asics("c1/s21", "c1", points=S21, mining=60),
            make_asics("c2/s19j", "c2", mining=40),
            make_gpus("g", "rack", at={"gpu-mine": 64}, unit_size=1),
        ),
        grid_w=60 * 3850 + 40 * 3355 + 64 * 430 + 600 + 500,
    )
    made = plan(view, make_market(demand=64.0), POLICY, NOW_S)
    found = moves(made)
    assert found[("g", "gpu-mine", "inference")] == (64, Reason.DEMAND)
    assert counts(made, "c1/s21") == {"mine": 60}
    assert counts(made, "c2/s19j").get("mine", 0) < 40
    assert {r for (b, _, _), (_, r) in found.items() if b == "c2/s19j"} <= {Reason.MAKES_ROOM, Reason.EFFICIENCY}
    assert 0.97 <= ratio(made) <= 1.0


def test_demand_that_ends_sends_gpus_back_to_mining_as_filler() -> None:
    """No demand: GPU mining fills, since it is switched on and pays."""
    view = make_view((make_gpus("g", "r", at={"inference": 8}),), grid_w=1e6)
    made = plan(view, make_market(demand=3.0, gpu_mining=0.5), POLICY, NOW_S)
    assert counts(made, "g") == {"gpu-mine": 5, "inference": 3}
    assert moves(made)[("g", "inference", "gpu-mine")][1] is Reason.FILLER


def test_gpu_mining_is_off_unless_switched_on() -> None:
    """However well it pays."""
    view = make_view((make_gpus("g", "r", at={"standby": 8}),), grid_w=1e6)
    assert plan(view, make_market(gpu_mining=5.0), Policy(), NOW_S).moves == ()


def test_units_move_whole_and_the_last_part_unit_only_if_it_pays() -> None:
    """Twelve GPUs of demand on units of eight: two units, the second half sold."""
    view = make_view((make_gpus("g", "r", at={"standby": 24}, unit_size=8),), grid_w=1e6)
    made = plan(view, make_market(demand=12.0), Policy(), NOW_S)
    assert counts(made, "g") == {"inference": 16, "standby": 8}
    made = plan(view, make_market(demand=8.2), Policy(), NOW_S)
    assert counts(made, "g")["standby"] == 16


def test_pinned_bank_stays_and_yields_to_a_limit_only() -> None:
    """Stay as is: not for money, but for safety."""
    bank = make_asics("b", "c", points=S21, mining=10, pinned_reason="test bench")
    assert plan(make_view((bank,), grid_w=1e6), make_market(power=900.0), POLICY, NOW_S).moves == ()
    made = plan(make_view((bank,), grid_w=30_000.0), make_market(), POLICY, NOW_S)
    assert [m.reason for m in made.moves] == [Reason.LIMIT]


@pytest.mark.parametrize(
    "state", [Availability.DARK, Availability.DISOBEYING, Availability.LOCKED_OUT, Availability.ISOLATED]
)
def test_unavailable_bank_is_left_alone_and_counted_at_its_claim(state: Availability) -> None:
    """Its watts are not there for others."""
    dark = make_asics("a", "c", points=S21, mining=10, availability=state, held_claim_w=50_000.0)
    other = make_asics("b", "c", points=S21, standby=10)
    made = plan(make_view((dark, other), grid_w=60_000.0), make_market(), POLICY, NOW_S)
    assert {m.bank for m in made.moves} == {"b"}
    assert counts(made, "b")["mine"] == 2


def test_bank_that_may_only_shrink_does_not_grow() -> None:
    """Adopting, shrinking or disturbed: down, never up."""
    bank = make_asics("b", "c", points=S21, mining=3, standby=5, availability=Availability.SHRINK_ONLY)
    assert plan(make_view((bank,), grid_w=1e6), make_market(), POLICY, NOW_S).moves == ()
    made = plan(make_view((bank,), grid_w=1e6), make_market(power=300.0), POLICY, NOW_S)
    assert counts(made, "b") == {"standby": 8}


def test_of_equal_banks_the_one_that_may_grow_serves() -> None:
    """A host that was granted more a moment ago could serve only low; its neighbour serves at full speed, whatever their names."""
    alike = tuple(replace(p, claim_w=535.0) if p.name == "gpu-mine" else p for p in H100)
    growing = replace(
        make_gpus("a", "r", at={"gpu-mine": 7, "inference": 1}, availability=Availability.SHRINK_ONLY), points=alike
    )
    held = replace(make_gpus("b", "r", at={"gpu-mine": 8}), points=alike)
    alone = plan(make_view((growing,), grid_w=1e6), make_market(demand=3.0), POLICY, NOW_S)
    assert counts(alone, "a") == {"gpu-mine": 5, "inference": 1, "inference-low": 2}

    made = plan(make_view((growing, held), grid_w=1e6), make_market(demand=3.0), POLICY, NOW_S)
    assert counts(made, "a") == {"gpu-mine": 7, "inference": 1}
    assert counts(made, "b") == {"gpu-mine": 6, "inference": 2}


@pytest.mark.parametrize("may_not_grow", ["full", "low", "neither"])
def test_equal_banks_do_not_trade_their_watts(may_not_grow: str) -> None:
    """One serves at full speed and one low, and somebody else has a reason to move: that is none for these two, whoever may grow."""

    def bank(name: str, point: str, kind: str) -> BankView:
        may_grow = Availability.SHRINK_ONLY if kind == may_not_grow else Availability.HELD
        return make_gpus(name, "r", at={point: 4}, since_s=NOW_S - 100.0, availability=may_grow)

    miner = make_asics("z", "x", points=S21, standby=1)
    feeders = {"x": 5000.0, "r": 2 * 600 + 4 * 750 + 4 * 535 + 50.0}
    for full, low in (("a", "b"), ("b", "a")):
        banks = (bank(full, "inference", "full"), bank(low, "inference-low", "low"), miner)
        made = plan(make_view(banks, grid_w=1e6, feeders=feeders), make_market(demand=8.0), POLICY, NOW_S)
        assert {m.bank for m in made.moves} == {"z"}


def test_open_flips_count_at_their_larger_side_and_serve_demand() -> None:
    """A unit on its way to inference is not planned twice."""
    transit = Transit(flip="f1", from_point="gpu-mine", to_point="inference", count=1, unit_ids=("x",))
    view = make_view((make_gpus("g", "r", at={"gpu-mine": 7}, transits=(transit,)),), grid_w=600 + 750 + 7 * 430)
    made = plan(view, make_market(demand=1.0), POLICY, NOW_S)
    assert made.moves == () and ratio(made) == pytest.approx(1.0)
    assert counts(made, "g") == {"gpu-mine": 7, "inference": 1}


def test_unknown_prices_start_nothing_and_stop_nothing() -> None:
    """Missing is not zero: everybody stays, but the promise is kept."""
    need = FirmNeed(reservation="acme", inference_class="h100", device_count=2, price_usd_per_device_h=2.0)
    view = make_view(
        (make_asics("b", "c", mining=5, standby=5), make_gpus("g", "r", at={"gpu-mine": 4, "inference": 4})),
        grid_w=1e6,
        firm=(need,),
    )
    blind = make_market(power=None, hashprice=None, inference_price=None, demand=None, gpu_mining=None)
    assert plan(view, blind, POLICY, NOW_S).moves == ()
    standing = replace(view, banks=(make_gpus("g", "r", at={"standby": 4}),))
    assert [m.reason for m in plan(standing, blind, POLICY, NOW_S).moves] == [Reason.FIRM]


def test_missing_hashprice_keeps_miners_and_wakes_none() -> None:
    """With only the hashprice unknown the ASICs stay as they are."""
    view = make_view((make_asics("b", "c", mining=5, standby=5),), grid_w=1e6)
    assert plan(view, make_market(hashprice=None, power=10.0), POLICY, NOW_S).moves == ()


def test_one_more_kilowatt_is_worth_what_the_best_waiting_machine_earns() -> None:
    """Only where the feeder itself is what stands in the way."""
    view = make_view(
        (make_asics("a", "c1", points=S21, standby=20), make_asics("b", "c2", points=S21, standby=20)),
        grid_w=20_000.0,
    )
    made = plan(view, make_market(power=30.0), POLICY, NOW_S)
    grid, c1 = made.feeder("grid"), made.feeder("c1")
    assert grid is not None and c1 is not None
    # (200 TH/s * 0.0465 * 0.98 / 24 - 3,485 W * 30 USD/MWh) over 3,830 counted watts
    assert grid.marginal_usd_per_mwh == pytest.approx((0.37975 - 0.10455) / 3830 * 1e6, rel=1e-4)
    assert c1.marginal_usd_per_mwh == 0.0 and c1.blocked_by == "grid"


def test_partial_profile_fills_what_is_left() -> None:
    """2.5 kW are too few for a full miner but enough for its low profile."""
    view = make_view((make_asics("b", "c", standby=4),), grid_w=4 * 20 + 2_500.0)
    made = plan(view, make_market(power=10.0), POLICY, NOW_S)
    assert counts(made, "b") == {"mine-low": 1, "standby": 3}


def test_limit_below_even_the_resting_draw_is_told_not_hidden() -> None:
    """Planning cannot mend it; the guard must know by how much."""
    view = make_view((make_gpus("g", "r", at={"inference": 8}),), grid_w=1_000.0)
    made = plan(view, make_market(demand=8.0), POLICY, NOW_S)
    assert made.over_limit_w["grid"] == pytest.approx(600 + 8 * 80 - 1000)
    assert counts(made, "g") == {"standby": 8}


def test_shortfall_names_the_cheapest_reservation_and_why() -> None:
    """Six GPUs for two reservations of four: the cheaper one is short."""
    needs = (
        FirmNeed(reservation="gold", inference_class="h100", device_count=4, price_usd_per_device_h=3.0),
        FirmNeed(reservation="tin", inference_class="h100", device_count=4, price_usd_per_device_h=1.0),
    )
    view = make_view((make_gpus("g", "r", at={"inference": 6}),), grid_w=1e6, firm=needs)
    made = plan(view, make_market(), POLICY, NOW_S)
    assert [(s.reservation, s.device_count) for s in made.shortfalls] == [("tin", 2.0)]
    assert "serve already" in made.shortfalls[0].reason


def broken_views() -> list[tuple[str, PlanView]]:
    """Return views that contradict themselves and what the error must name."""
    good = make_asics("b", "c", mining=1)
    return [
        ("appears twice", make_view((good, good), grid_w=1.0)),
        ("not in the view", replace(make_view((good,), grid_w=1.0), feeders=())),
        ("whole units", make_view((replace(make_gpus("g", "r", at={"standby": 8}), unit_size=3),), grid_w=1.0)),
        (
            "devices at",
            make_view(
                (replace(good, transits=(Transit(flip="f", from_point="mine", to_point="warp", count=1),)),), grid_w=1.0
            ),
        ),
    ]


@pytest.mark.parametrize(("words", "view"), broken_views())
def test_view_that_contradicts_itself_is_refused(words: str, view: PlanView) -> None:
    """The message names the bank or feeder."""
    with pytest.raises(InvalidInput, match=words):
        plan(view, make_market(), POLICY, NOW_S)


def test_moves_tell_their_gain_and_cost() -> None:
    """40 machines off at 90 USD/MWh save what mining loses."""
    view = make_view((make_asics("b", "c", mining=40),), grid_w=1e6)
    (move,) = plan(view, make_market(power=90.0), POLICY, NOW_S).moves
    assert isinstance(move, Move)
    assert move.gain_usd_per_h == pytest.approx(40 * (3035e-6 * 90 - 100 * 0.0465 * 0.98 / 24), rel=1e-6)
    assert move.cost_usd == pytest.approx(40 * 0.01) and move.claim_delta_w == -40 * 3335.0


@pytest.mark.slow
def test_thousand_banks_are_planned_in_half_a_second() -> None:
    """The bound is generous for a busy machine; the figure is in the bench."""
    banks = tuple(
        make_asics(f"b{i}", f"f{i // 10}", mining=i % 90, standby=90 - i % 90)
        if i % 2
        else make_gpus(f"b{i}", f"f{i // 10}", at={"gpu-mine": 4, "inference": 4})
        for i in range(1000)
    )
    view = make_view(banks, grid_w=80e6, feeders={f"f{k}": 1e6 for k in range(100)})
    begun = time.process_time()
    made = plan(view, make_market(demand=3000.0), POLICY, NOW_S)
    took_s = time.process_time() - begun
    assert made.moves and ratio(made) <= 1.0
    assert took_s < 0.5 * 4
