"""The rule against history: strike with hysteresis must beat always-on by far, with fewer flips than the rule without memory.

Uses the real series only where the environment names their folder; the simple setting has two ASIC classes, yesterday's hashprice,
last hour's power price, and pays for every flip.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from swingbus_controller.domain.planning.economics import FlipCosts, energy_cost_usd_per_h, mining_revenue_usd_per_h
from swingbus_controller.domain.planning.market import MarketView, Quote
from swingbus_controller.domain.planning.plan import BankView, Holding
from swingbus_controller.domain.planning.planner import plan
from swingbus_controller.domain.planning.points import OperatingPoint
from swingbus_controller.domain.planning.policy import Policy

from .sites import S19J, S21, make_asics, make_view

YEAR = 2023
MINERS = {"a": (S19J, 650), "b": (S21, 1400)}
POINTS: dict[tuple[str, str], OperatingPoint] = {
    (bank, p.name): p for bank, (points, _) in MINERS.items() for p in points if p.name != "mine-low"
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """What was known, and what came true."""

    start_s: float
    known_power: float | None
    known_hashprice: float
    true_power: float
    true_hashprice: float


def load_hours(folder: Path) -> list[Hour]:
    """Return the hours of the year whose prices are known."""
    with (folder / "btc_daily_2020-07_2026-01.csv").open(encoding="utf-8") as text:
        hashprices = {r["date"]: float(r["hashprice_subsidy_usd_th_day"]) for r in csv.DictReader(text)}
    hours: list[Hour] = []
    last: float | None = None
    with (folder / "electricity_hourly_2020_2023.csv").open(encoding="utf-8") as text:
        for row in csv.DictReader(text):
            if not row["ts_utc"].startswith(str(YEAR)):
                continue
            at = datetime.fromisoformat(row["ts_utc"]).astimezone(UTC)
            cell = row["ercot_hubavg_dam_usd_mwh"]
            if cell:
                hours.append(
                    Hour(
                        start_s=at.timestamp(),
                        known_power=last,
                        known_hashprice=hashprices[(at - timedelta(days=1)).date().isoformat()],
                        true_power=float(cell),
                        true_hashprice=hashprices[at.date().isoformat()],
                    )
                )
            last = float(cell) if cell else None
    return hours


def run_rule(hours: list[Hour], policy: Policy, costs: FlipCosts) -> tuple[float, int]:
    """Return (profit USD, devices flipped) of the planner's rule over the hours."""
    holdings = {bank: {"mine": (count, -1e12)} for bank, (_, count) in MINERS.items()}
    profit, flipped = 0.0, 0
    for hour in hours:
        banks: list[BankView] = []
        for bank, (points, _) in MINERS.items():
            view = make_asics(bank, "c", points=tuple(p for p in points if p.name != "mine-low"))
            held = tuple(Holding(point=p, count=n, since_s=at) for p, (n, at) in holdings[bank].items())
            banks.append(BankView(bank=bank, feeder="c", kind=view.kind, points=view.points, holdings=held))
        power = None if hour.known_power is None else Quote(value=hour.known_power, source="last hour")
        market = MarketView(
            now_s=hour.start_s,
            power_price_usd_per_mwh=power,
            hashprice_usd_per_th_day=Quote(value=hour.known_hashprice, source="yesterday"),
        )
        made = plan(make_view(tuple(banks), grid_w=8e6), market, policy, hour.start_s)
        for move in made.moves:
            flipped += move.count
            profit -= move.count * (costs.asic_wake_usd if move.to_point == "mine" else costs.asic_sleep_usd)
        for target in made.targets:
            moved_to = {m.to_point for m in made.moves if m.bank == target.bank}
            old = holdings[target.bank]
            holdings[target.bank] = {
                p: (n, hour.start_s if p in moved_to or p not in old else old[p][1]) for p, n in target.counts
            }
        profit += sum(hourly(bank, p, n, hour) for bank, held in holdings.items() for p, (n, _) in held.items())
    return profit, flipped


def hourly(bank: str, point_name: str, count: int, hour: Hour) -> float:
    """Return what came true in one hour (USD) for devices at a point; reckoned apart from the planner's own money."""
    point = POINTS[(bank, point_name)]
    earned = mining_revenue_usd_per_h(hashrate_ths=point.output, hashprice_usd_per_th_day=hour.true_hashprice * 0.98)
    return count * (earned - energy_cost_usd_per_h(draw_w=point.draw_w, power_price_usd_per_mwh=hour.true_power))


@pytest.mark.slow
def test_strike_with_hysteresis_beats_always_on_on_ercot_2023() -> None:
    """More profit than always-on, at least 60 % of what hindsight could add, and fewer flips than without a band."""
    folder = os.environ.get("DATA")
    if not folder:
        pytest.skip("set DATA to the folder of the real series to run the backtest")
    hours = load_hours(Path(folder))
    assert len(hours) > 8_700
    costs = FlipCosts()
    free = FlipCosts(asic_wake_usd=0.0, asic_sleep_usd=0.0, asic_retune_usd=0.0)
    always_on = sum(hourly(b, "mine", count, hour) for hour in hours for b, (_, count) in MINERS.items())
    # Hindsight without flip costs: an upper bound on what any policy could earn.
    hindsight = sum(
        count * max(hourly(b, "mine", 1, hour), hourly(b, "standby", 1, hour))
        for hour in hours
        for b, (_, count) in MINERS.items()
    )
    with_band, flips_with = run_rule(hours, Policy(costs=costs), costs)
    without_band, flips_without = run_rule(hours, Policy(costs=free, power_price_variance=0.0, asic_dwell_s=0.0), costs)
    skill = (with_band - always_on) / (hindsight - always_on)
    print(
        f"always on {always_on:.0f}, strike {without_band:.0f} ({flips_without} flips), "
        f"strike and band {with_band:.0f} ({flips_with} flips), hindsight {hindsight:.0f} USD, skill {skill:.2f}"
    )
    assert with_band > always_on
    assert skill > 0.6
    assert flips_with < flips_without
