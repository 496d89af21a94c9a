"""Decisions at 1,000 banks, in CPU seconds of one process: a plan, a meter sample, a cut of every bank; and the speed of the proof."""

from __future__ import annotations

import time

from swingbus_controller.domain.flips.admission import admit
from swingbus_controller.domain.planning.planner import plan
from tests.benchmarks.figure import Figure, check
from tests.benchmarks.settings import Settings
from tests.benchmarks.wide_site import WideSite
from tests.prove.world import run_history
from tests.unit.planner.sites import NOW_S, POLICY, make_asics, make_gpus, make_market, make_view

PLAN_AIM_MS = 500.0


def measure_decisions(settings: Settings) -> list[Figure]:
    """Return planner, ledger and proof."""
    return [_planner(settings), *_ledger(settings), _proof(settings)]


def _planner(settings: Settings) -> Figure:
    count = 100 if settings.quick else 1000
    banks = tuple(
        make_asics(f"b{i}", f"f{i // 10}", mining=i % 90, standby=90 - i % 90)
        if i % 2
        else make_gpus(f"b{i}", f"f{i // 10}", at={"gpu-mine": 4, "inference": 4})
        for i in range(count)
    )
    grid_w = 80_000.0 * count
    view = make_view(banks, grid_w=grid_w, feeders={f"f{k}": 1e6 for k in range(count // 10)})
    market = make_market(demand=3.0 * count)
    runs, admitted = [], 0
    for number in range(settings.runs):
        settings.say(f"planner: run {number + 1} of {settings.runs}")
        began_s = time.process_time()
        made = plan(view, market, POLICY, NOW_S)
        admission = admit(made, view, NOW_S)
        runs.append(1000 * (time.process_time() - began_s))
        check(bool(made.moves) and bool(admission.admitted), "nothing was planned")
        check(not made.over_limit_w, f"the plan is over a limit: {made.over_limit_w}")
        admitted = len(admission.admitted)
    return Figure(
        name="plan_and_admit",
        unit=f"CPU ms ({count} banks)",
        runs=tuple(runs),
        aim=PLAN_AIM_MS,
        is_lower_better=True,
        asserted=("there are moves, some are admitted, and no feeder is planned above its limit",),
        notes=("half ASIC banks of 90, half GPU banks of 8, ten to a feeder; every plan is made anew",),
        details={"moves_admitted": admitted},
    )


def _ledger(settings: Settings) -> list[Figure]:
    count = 40 if settings.quick else 1000
    samples = 20 if settings.quick else 50
    sample_ms: list[float] = []
    cut_ms: list[float] = []
    for number in range(settings.runs):
        settings.say(f"ledger: run {number + 1} of {settings.runs}, {count} banks are adopted and settled")
        site = WideSite(count)
        site.run(40)
        ledger = site.state.ledger
        check(site.settled_count() == count, f"{site.settled_count()} of {count} banks are settled")
        check(ledger.i1_holds(site.clock.s), "I1 is false although nothing was cut")
        spent_s = 0.0
        for at in range(samples):
            site.clock.s += 0.01
            batch = site.meter(site.feeders[at % len(site.feeders)])
            began_s = time.process_time()
            site.engine.take_batch(batch, site.clock.s)
            site.engine.tick(site.clock.s, site.clock.now().timestamp())
            spent_s += time.process_time() - began_s
        sample_ms.append(1000 * spent_s / samples)
        check(site.settled_count() == count, "samples alone have unsettled a bank")
        site.run(3)  # agents are heard, meters are live again
        limit_w = ledger.feeder_view("grid", site.clock.s).claimed_w * 0.1
        before = {name: ledger.newest_grant(name) for name in ledger.bank_names()}
        cut_ms.append(1000 * site.cut(limit_w))
        grants = {name: ledger.newest_grant(name) for name in ledger.bank_names()}
        cut = sum(grants[name] != before[name] for name in grants)
        check(cut >= 0.85 * count, f"only {cut} of {count} banks were cut")
        total_w = sum(grant.grant_w for grant in grants.values() if grant is not None)
        check(total_w <= limit_w, f"{total_w:.0f} W are granted, the limit is {limit_w:.0f} W")
        told = sum(site.engine.book.generation(name) > 1 for name in site.names)
        check(told >= cut, f"{cut} banks were cut, {told} agents have a new order")
        site.run(40)
        check(ledger.i1_holds(site.clock.s), "the cut was carried out, but its evidence did not settle it")
    obeyed = "the cut settles by evidence: I1 is true again once agents obeyed and meters showed it"
    return [
        Figure(
            name="engine_per_meter_sample",
            unit=f"CPU ms ({count} banks, {count // 10} meters)",
            runs=tuple(sample_ms),
            is_lower_better=True,
            asserted=("every bank was adopted and settled by windows before, and is still settled after",),
            notes=(
                "one meter sample and one whole decision round: exceeded groups, guard, adoption, settle of every group, flips, orders",
                "samples that arrive together share one round",
            ),
        ),
        Figure(
            name="engine_cut_all",
            unit=f"CPU ms ({count} banks cut to a tenth, limit to orders)",
            runs=tuple(cut_ms),
            is_lower_better=True,
            asserted=("grants together are within the new limit", "every cut bank's agent has a new order", obeyed),
            notes=("the journal is in memory here: on a disk all grants are one append and one fsync",),
        ),
    ]


def _proof(settings: Settings) -> Figure:
    count = 30 if settings.quick else 200
    runs = []
    for number in range(settings.runs):
        settings.say(f"prove: run {number + 1} of {settings.runs}")
        began_s = time.process_time()
        verdicts = [run_history(seed) for seed in range(number * count, (number + 1) * count)]
        cpu_s = time.process_time() - began_s
        check(not any(v.is_guilty or v.false_confirmations for v in verdicts), "a history was judged guilty")
        check(sum(v.settlements for v in verdicts) > count, "histories in which nothing settles prove nothing")
        runs.append(count / cpu_s * 60.0)
    return Figure(
        name="prove_histories",
        unit="histories per CPU minute",
        runs=tuple(runs),
        aim=1000.0,
        asserted=("no history over a limit by decision, no false confirmation; settlements went on in them",),
    )
