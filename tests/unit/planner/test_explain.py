"""Sentences in money and limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swingbus.faults import NotFound
from swingbus_controller.domain.planning.explain import WhyNotCode, explain, why_not
from swingbus_controller.domain.planning.market import MarketView
from swingbus_controller.domain.planning.plan import Authority, Availability, BankView, FeederView, PlanView
from swingbus_controller.domain.planning.planner import plan
from swingbus_controller.domain.planning.points import Mode
from swingbus_controller.domain.planning.policy import Policy

from .sites import NOW_S, POLICY, S21, make_asics, make_gpus, make_market, make_view

DAY_S = 1_767_225_600.0  # 2026-01-01T00:00Z
NOON_S = DAY_S + 14.5 * 3600


def view_with_full_grid() -> PlanView:
    """Return a site whose grid is full of S21 machines until 15:00 while S19j machines rest since 14:02."""
    banks = (
        make_asics("c1/s21", "c1", points=S21, mining=10, standby=5, since_s=DAY_S),
        make_asics("c2/s19j", "c2", standby=8, since_s=DAY_S + 14 * 3600 + 120),
    )
    feeders = (
        FeederView(
            feeder="grid", available_w=10 * 3850 + 500.0, limit_reason="curtailment", limit_until_s=DAY_S + 15 * 3600
        ),
        FeederView(feeder="c1", parent="grid", available_w=1e6),
        FeederView(feeder="c2", parent="grid", available_w=1e6),
    )
    return PlanView(revision=1, site="sites/demo", feeders=feeders, banks=banks, authority=Authority.CONTROL)


def test_the_issue_s_sentence() -> None:
    """Word for word, with the machine's own strike."""
    made = plan(view_with_full_grid(), make_market(power=71.0, hashprice=0.0463), POLICY, NOON_S)
    (told,) = explain(made, "c2/s19j")
    assert told.sentence == (
        "bank c2/s19j: standby since 14:02, mining earns 62 USD/MWh at the strike, power costs 71; "
        "one more kW here is worth 0 because the grid feeder is full until 15:00"
    )
    assert (told.count, told.power_price_usd_per_mwh, told.full_feeder) == (8, 71.0, "grid")


def test_moves_states_and_pins_are_told() -> None:
    """What is planned, and why nothing is."""
    bank = make_asics("b", "c", mining=4)
    made = plan(make_view((bank,), grid_w=1e6), make_market(power=200.0), POLICY, NOW_S)
    assert "planned: 4 to standby (mining earns 63" in explain(made, "b")[0].sentence
    dark = replace(bank, availability=Availability.DARK, note="no word for 9 s")
    made = plan(make_view((dark,), grid_w=1e6), make_market(), POLICY, NOW_S)
    assert "not planned: dark: no word for 9 s" in explain(made, "b")[0].sentence
    made = plan(make_view((replace(bank, pinned_reason="test"),), grid_w=1e6), make_market(), POLICY, NOW_S)
    assert "pinned: test" in explain(made, "b")[0].sentence


def test_unknown_bank_is_named_with_those_there_are() -> None:
    """NotFound tells the next step."""
    made = plan(make_view((make_asics("b", "c", mining=4),), grid_w=1e6), make_market(), POLICY, NOW_S)
    with pytest.raises(NotFound, match="it knows b"):
        explain(made, "nope")


RESTING = make_asics("b", "c", points=S21, standby=4)
JUST_ASLEEP = make_asics("b", "c", standby=4, since_s=NOW_S - 60)
GPUS = make_gpus("b", "c", at={"standby": 8})


@pytest.mark.parametrize(
    ("bank", "mode", "market", "policy", "grid_w", "code", "words"),
    [
        (RESTING, Mode.INFERENCE, make_market(), POLICY, 1e6, WhyNotCode.UNSUPPORTED, "no such operating point"),
        (replace(RESTING, availability=Availability.ISOLATED), Mode.MINING, make_market(), POLICY, 1e6, WhyNotCode.UNAVAILABLE, "isolated"),
        (make_asics("b", "c", mining=4), Mode.MINING, make_market(), POLICY, 1e6, WhyNotCode.ALL_THERE, "already"),
        (RESTING, Mode.MINING, make_market(power=10.0), POLICY, 1e6, WhyNotCode.PLANNED, "4 devices"),
        (replace(RESTING, pinned_reason="bench"), Mode.MINING, make_market(power=10.0), POLICY, 1e6, WhyNotCode.PINNED, "bench"),
        (GPUS, Mode.MINING, make_market(), Policy(), 1e6, WhyNotCode.SWITCHED_OFF, "not switched on"),
        (RESTING, Mode.MINING, make_market(hashprice=None), POLICY, 1e6, WhyNotCode.NO_MARKET, "hashprice is unknown"),
        (JUST_ASLEEP, Mode.MINING, make_market(power=1.0), POLICY, 1e6, WhyNotCode.DWELL, "minimum dwell"),
        (GPUS, Mode.INFERENCE, make_market(demand=0.0), POLICY, 1e6, WhyNotCode.NO_DEMAND, "asked for"),
        (RESTING, Mode.MINING, make_market(power=150.0), POLICY, 1e6, WhyNotCode.BELOW_STRIKE, "109 USD/MWh at the strike"),
        (RESTING, Mode.MINING, make_market(power=105.0), POLICY, 1e6, WhyNotCode.INSIDE_BAND, "must gain"),
        (RESTING, Mode.MINING, make_market(power=10.0), POLICY, 2_000.0, WhyNotCode.FEEDER_FULL, "the grid feeder is full"),
        (make_asics("b", "c", mining=4), Mode.STANDBY, make_market(power=10.0), POLICY, 1e6, WhyNotCode.OTHERS_EARN_MORE, "more than rest"),
    ],
)  # fmt: skip
def test_why_not_names_the_first_obstacle(
    bank: BankView, mode: Mode, market: MarketView, policy: Policy, grid_w: float, code: WhyNotCode, words: str
) -> None:
    """One obstacle at a time, in the order in which they would be met."""
    found = why_not(plan(make_view((bank,), grid_w=grid_w), market, policy, NOW_S), "b", mode)
    assert (found.code, words in found.sentence) == (code, True), found.sentence
