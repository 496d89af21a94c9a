"""Money and baselines."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, NotFound
from swingbus_sim import money, scenario, series, truth_log
from swingbus_sim.baseline import run_baseline
from swingbus_sim.judge import attribution
from swingbus_sim.scenario import Event
from swingbus_sim.scenario_file import load_scenario
from tests.unit.sim.builders import make_world, run_world


def test_hashprice_of_a_known_day_is_earned() -> None:
    """1 PH/s at the hashprice of 2025-10-15, two percent fee: 45.56 USD a day."""
    usd = money.mining_usd(
        hashrate_ths=1000.0, hashprice_usd_per_th_day=0.0464900, pool_fee_ratio=0.02, seconds=86400.0
    )

    assert usd == pytest.approx(45.5602, abs=1e-4)


def test_served_demand_is_the_lesser_of_demand_and_capacity() -> None:
    """Idle inference GPUs earn nothing; unmet demand earns nothing."""
    world, shelves = make_world()
    shelves["g1"].set_work("inference", 0.5)
    tick = list(run_world(world, 2.0))[-1]
    purse = money.Purse(world.scenario.market)
    purse.add(replace(tick, demand_gpus=3.0), 3600.0)
    purse.add(replace(tick, demand_gpus=30.0), 3600.0)

    assert purse.served_gpu_hours == pytest.approx(11.0)
    assert purse.inference_usd == pytest.approx(11.0 * 2.35)


def test_log_of_a_run_gives_the_same_margin_as_the_run(tmp_path: Path) -> None:
    """The truth log is enough to count the money again."""
    world, _ = make_world()
    purse = money.Purse(world.scenario.market)
    path = tmp_path / "truth.jsonl"
    lines = [truth_log.header_line(world, t0_boottime_s=0.0)]
    for tick in run_world(world, 5.0):
        purse.add(tick, 0.1)
        lines.append(truth_log.tick_line(tick))
    path.write_text("\n".join([*lines, truth_log.end_line(5.0)]) + "\n", encoding="utf-8")

    assert money.margin_of_log(path, world.scenario)["margin_usd"] == pytest.approx(
        purse.as_json()["margin_usd"], abs=1e-4
    )
    with pytest.raises(InvalidInput, match="not of 'demo'"):
        money.margin_of_log(path, load_scenario("demo"))


def test_money_is_counted_until_the_scenarios_end(tmp_path: Path) -> None:
    """A run that went on after it, for flips that were open, earns no more in the report than the baselines could."""
    world, _ = make_world()
    scenario = replace(world.scenario, duration_s=3.0)
    purse = money.Purse(scenario.market)
    path = tmp_path / "truth.jsonl"
    lines = [truth_log.header_line(world, t0_boottime_s=0.0)]
    for tick in run_world(world, 5.0):
        if tick.at_s <= 3.0:
            purse.add(tick, 0.1)
        lines.append(truth_log.tick_line(tick))
    path.write_text("\n".join([*lines, truth_log.end_line(5.0)]) + "\n", encoding="utf-8")

    assert money.margin_of_log(path, scenario)["energy_kwh"] == pytest.approx(purse.as_json()["energy_kwh"], abs=1e-4)


def test_torn_log_is_read_up_to_the_tear_and_a_broken_one_refused(tmp_path: Path) -> None:
    """A crash tears the last line; a bad line in the middle is an error with its number."""
    world, _ = make_world()
    header = truth_log.header_line(world, t0_boottime_s=0.0)
    torn = tmp_path / "torn.jsonl"
    torn.write_text(header + '\n{"type":"end","t":1}\n{"type":"ti', encoding="utf-8")
    broken = tmp_path / "broken.jsonl"
    broken.write_text(header + '\nnonsense\n{"type":"end","t":1}\n', encoding="utf-8")

    assert [line["type"] for line in truth_log.read_lines(torn)] == ["header", "end"]
    with pytest.raises(InvalidInput, match=r"broken\.jsonl:2: not JSON"):
        list(truth_log.read_lines(broken))
    with pytest.raises(NotFound, match="no truth log"):
        list(truth_log.read_lines(tmp_path / "none.jsonl"))


def test_always_on_is_guilty_and_the_static_plan_is_not() -> None:
    """A policy without a budget passes the limit; the careful fixed plan does not, and earns less."""
    base = load_scenario("small")
    limit = Event(kind="limit", at_s=20.0, duration_s=10.0, targets=("grid",), limit_w=25_000.0, is_disturbance=True)
    small = replace(base, duration_s=40.0, events=(limit,))
    greedy = run_baseline(small, "always-on")
    careful = run_baseline(small, "static-safe")

    assert greedy["verdict"] == "GUILTY" and greedy["over_cap_ws_by_cause"]["authorised"] > 0.0
    assert careful["verdict"] == "NOT GUILTY" and careful["over_cap_ws"] == 0.0
    assert greedy["mining_usd"] > careful["mining_usd"] > 0.0
    with pytest.raises(NotFound, match="gpu-filler-only"):
        run_baseline(small, "nosuch")


def test_documented_examples_are_true() -> None:
    """Examples in docstrings are run."""
    for module in (money, scenario, series, attribution):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0
