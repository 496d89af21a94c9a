"""Firm reservations: acceptance under the worst limit, and the staircase of credits."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from swingbus.faults import InvalidInput
from swingbus_controller.domain.site.reservation import (
    CreditStep,
    FirmBank,
    FirmFeeder,
    Reservation,
    UptimeAccount,
    check_acceptance,
    credit_usd,
    needs_at,
    next_minute_usd,
    seconds_to_next_step_s,
)

MONTH_S = 730 * 3600.0
STEPS = (
    CreditStep(below_uptime_ratio=0.999, credit_ratio=Decimal("0.10")),
    CreditStep(below_uptime_ratio=0.99, credit_ratio=Decimal("0.25")),
)


def make_reservation(count: int = 8, *, id: str = "acme", steps: tuple[CreditStep, ...] = STEPS) -> Reservation:
    """Return a reservation at 2.00 USD per GPU-hour."""
    return Reservation(
        id=id, inference_class="h100", device_count=count, from_s=0.0, until_s=MONTH_S,
        price_usd_per_device_h=Decimal("2.00"), uptime_ratio=0.999, credit_steps=steps,
    )  # fmt: skip


def make_bank(name: str = "g0", *, feeder: str = "rack", safe_share_w: float = 0.0) -> FirmBank:
    """Return a bank of eight GPUs with a floor of 535 W each on 1,000 W of host and rest."""
    return FirmBank(
        bank=name, feeder=feeder, inference_class="h100", device_count=8, capped_floor_w=535.0, fixed_claim_w=1000.0,
        safe_share_w=safe_share_w,
    )  # fmt: skip


def make_feeders(grid_w: float) -> tuple[FirmFeeder, ...]:
    """Return a rack under a grid whose lowest limit is given."""
    return (
        FirmFeeder(feeder="grid", lowest_limit_w=grid_w, uncontrolled_max_w=500.0, margin_w=100.0),
        FirmFeeder(feeder="rack", parent="grid", lowest_limit_w=1e6, uncontrolled_max_w=0.0, margin_w=0.0),
    )


def test_minutes_of_the_note_match_the_promise() -> None:
    """99.9 % of a 730 h month is 43.8 minutes (economics note 2.5)."""
    account = UptimeAccount(reservation="acme", period_start_s=0.0, period_s=MONTH_S)
    left_s = seconds_to_next_step_s(make_reservation(), account)
    assert left_s is not None and left_s / 60 == pytest.approx(43.8)


def test_next_minute_costs_nothing_inside_a_step_and_the_jump_at_its_edge() -> None:
    """43 lost minutes are free; the 44th costs a tenth of the month."""
    reservation = make_reservation()
    account = UptimeAccount(reservation="acme", period_start_s=0.0, period_s=MONTH_S)
    assert next_minute_usd(reservation, account) == 0
    at_edge = account.with_loss(8, 43 * 60.0)
    assert next_minute_usd(reservation, at_edge) == Decimal("1168.000")  # 8 GPUs * 730 h * 2 USD * 10 %
    past = at_edge.with_loss(8, 60.0)
    assert next_minute_usd(reservation, past) == 0 and credit_usd(reservation, past) == Decimal("1168.000")


def test_past_the_last_step_nothing_more_is_lost() -> None:
    """The staircase ends."""
    account = UptimeAccount(reservation="acme", period_start_s=0.0, period_s=MONTH_S).with_loss(8, MONTH_S * 0.02)
    assert seconds_to_next_step_s(make_reservation(), account) is None
    assert credit_usd(make_reservation(), account) == Decimal("2920.00")


def test_needs_follow_the_term() -> None:
    """Owed from its start until its end, not after."""
    assert [n.device_count for n in needs_at([make_reservation()], 0.0)] == [8]
    assert needs_at([make_reservation()], MONTH_S) == ()


def test_reservation_that_fits_the_lowest_limit_is_accepted_with_its_place() -> None:
    """8 * 535 + 1000 + 500 + 100 = 5,880 W."""
    found = check_acceptance([make_reservation()], make_feeders(5_880.0), [make_bank()])
    assert found.accepted and found.placement == (("acme", "g0", 8),)


def test_reservation_above_the_lowest_limit_is_refused_and_says_where() -> None:
    """One watt too few is too few (I4)."""
    found = check_acceptance([make_reservation()], make_feeders(5_879.0), [make_bank()])
    assert not found.accepted and "feeder grid" in found.reason


def test_safe_share_counts_where_it_is_larger() -> None:
    """max(reserved at floor, safe share) per bank, also of banks that sold nothing."""
    banks = [make_bank(), replace(make_bank("g1", safe_share_w=2_000.0), inference_class=None)]
    assert not check_acceptance([make_reservation()], make_feeders(5_880.0), banks).accepted
    assert check_acceptance([make_reservation()], make_feeders(7_880.0), banks).accepted
    assert "safe shares alone" in check_acceptance([], make_feeders(1_000.0), banks).reason


def test_more_than_the_site_has_is_refused() -> None:
    """Sixteen of eight."""
    found = check_acceptance([make_reservation(), make_reservation(id="beta")], make_feeders(1e6), [make_bank()])
    assert not found.accepted and "the site has 8" in found.reason


def test_nonsense_is_refused_with_all_its_problems() -> None:
    """Every wrong field at once."""
    with pytest.raises(InvalidInput, match=r"device_count is 0.*until must be later"):
        Reservation(
            id="x", inference_class="h", device_count=0, from_s=1.0, until_s=1.0, price_usd_per_device_h=Decimal(1)
        )
    with pytest.raises(InvalidInput, match="negative"):
        UptimeAccount(reservation="x", period_start_s=0.0, period_s=1.0).with_loss(-1, 1.0)
