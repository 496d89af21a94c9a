"""The comparison with PriorityClass: its sums, its rivals' settings, its verdicts, and one small row on a real control plane."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput
from swingbus_sim.kwok_site.measures import Totals
from swingbus_sim.kwok_site.plan import SitePlan
from tests.benchmarks.kube import __main__ as main_module
from tests.benchmarks.kube.__main__ import parser, rows_of
from tests.benchmarks.kube.contenders import Contender, PriorityClassContender, share_limits_w
from tests.benchmarks.kube.needs import need_control_plane
from tests.benchmarks.kube.ours import Swingbus
from tests.benchmarks.kube.report import read_report, table, write_report
from tests.benchmarks.kube.rows import Result, Row, Spread, Used
from tests.benchmarks.kube.running import Group, run_row, since_posted
from tests.benchmarks.kube.verdicts import BURST_S, OURS, verdicts, winners
from tests.benchmarks.kube.witness import read_processes

TOTALS = Totals(
    seconds=40.0,
    over_limit_ws=0.0,
    seconds_over=0.0,
    peak_w=290_000.0,
    mean_w=288_000.0,
    ramp_w_per_s=2000.0,
    idle_gpu_s=30.0,
    mining_gpu_s=15_000.0,
    inference_gpu_s=150.0,
    inference_full_gpu_s=149.0,
    inference_short_ws=10.0,
)


def result(contender: str, *, bound_s: float = 2.0, arrivals: int = 8, over_ws: float = 0.0) -> Result:
    """Return a result as if it had been measured."""
    spread = Spread.of([bound_s] * arrivals)
    return Result(
        contender=contender,
        row=Row(node_count=50, arrivals=arrivals, limit_ratio=0.9),
        bound=spread,
        running=spread,
        all_bound_s=(bound_s,),
        victim_told=Spread.of([0.3]),
        victim_gone=spread,
        victim_released=spread,
        unbound=0,
        killed=arrivals,
        killed_in_dwell=0,
        refused_by_kubelet=0,
        totals=replace(TOTALS, over_limit_ws=over_ws),
        baseline_w=289_000.0,
        limit_w=360_000.0,
        api_writes={"POST pods": 16},
        used={"etcd": Used(cpu_s=1.5, rss_mb=60.0)},
        setup_s=40.0,
    )


@pytest.mark.parametrize("limit_ratio", [1.0, 0.9, 0.8])
def test_rivals_limits_fit_the_worst_case_and_waste_nothing(limit_ratio: float) -> None:
    """Every GPU busy at its limit counts at exactly the site's limit, or every limit is the GPU's highest: rivals at their best."""
    plan = SitePlan(node_count=50, limit_ratio=limit_ratio)
    reserved = plan.nodes[:10]
    for limits in (PriorityClassContender("tuned").limits_w(plan), share_limits_w(plan, reserved)):
        counted_w = sum(plan.node_counted_w(limits[node]) for node in plan.nodes)
        assert counted_w == pytest.approx(plan.limit_w, rel=1e-6)
    assert [share_limits_w(plan, reserved)[node] for node in reserved] == [plan.gpu.default_limit_w] * 10


def test_share_too_large_for_the_limit_falls_back_to_even_limits() -> None:
    """Where full limits for the share would leave the others less than they can be set to, nobody has them."""
    plan = SitePlan(node_count=10, limit_ratio=0.5)

    limits = share_limits_w(plan, plan.nodes[:9])

    assert set(limits.values()) == {plan.static_limit_w()}


def test_measures_that_a_rival_wins_are_told() -> None:
    """Who is best is told by measure, whoever it is; what is alike is nobody's."""
    ours, rival = result(OURS, bound_s=3.0), result("b + static limits", bound_s=2.0)

    best = dict(winners([ours, rival]))

    assert best["POST to bound p50"] == "b + static limits"
    assert "peak" not in best
    assert "best: b + static limits: POST to bound p50, POST to bound p99" in table([ours, rival])


def test_more_is_better_where_it_is() -> None:
    """GPU-hours count the other way round."""
    ours, rival = result(OURS), result("a PriorityClass")
    rival = replace(rival, totals=replace(TOTALS, mining_gpu_s=20_000.0))

    assert dict(winners([ours, rival]))["mining GPU*h"] == "a PriorityClass"


def test_aims_are_judged_for_ours_alone_and_a_pod_never_bound_meets_none() -> None:
    """Met and not met are both told; a group that was not all bound has no time at all."""
    met = {verdict.aim: verdict.is_met for verdict in verdicts(result(OURS, bound_s=3.0, arrivals=1))}
    assert met["one pod, POST to bound p50 at most 4 s"] and met["0 W*s over the limit"]
    late = verdicts(replace(result(OURS, over_ws=5.0), all_bound_s=(3.0, None)))
    assert [v.is_met for v in late if "all bound" in v.aim or "W*s" in v.aim] == [False, False]
    assert verdicts(result("a PriorityClass")) == []


def test_seconds_have_a_bar_only_where_watts_are_free() -> None:
    """At 80 % of nameplate some forty GPUs can turn to inference before a neighbour must shrink; 64 cannot, and are told without a bar."""
    few, many = (Row(node_count=50, arrivals=count, limit_ratio=0.8) for count in (40, 64))
    assert few.has_free_watts and not many.has_free_watts
    assert Row(node_count=50, arrivals=64, limit_ratio=0.9).has_free_watts

    judged = verdicts(replace(result(OURS, arrivals=64), row=many))

    assert [verdict.aim for verdict in judged] == ["0 W*s over the limit"]


def test_report_holds_every_result_with_its_aims(tmp_path: Path) -> None:
    """Machines read the same as people."""
    path = tmp_path / "a" / "report.json"
    write_report(path, [result(OURS), result("a PriorityClass")], [{"cores": 2}])

    told = json.loads(path.read_text())

    assert [r["contender"] for r in told["results"]] == [OURS, "a PriorityClass"]
    assert told["results"][0]["aims"] and not told["results"][1]["aims"]
    assert told["results"][0]["bound"]["count"] == 8
    assert read_report(path) == ([result(OURS), result("a PriorityClass")], [{"cores": 2}])


@pytest.mark.parametrize("text", [None, "{", "{}", '{"results": [{}], "sittings": []}'])
def test_report_that_cannot_be_gone_on_with_is_refused(tmp_path: Path, text: str | None) -> None:
    """None there, not JSON, another version: said before anything is run."""
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInput, match=r"report.json: .*run without --resume"):
        read_report(path)


def test_runs_of_the_report_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sittings make one report, in the order of one; what is left is said."""
    ran: list[str] = []

    def run_row(contender: Contender, row: Row, *_: object, **__: object) -> Result:
        ran.append(f"{row.arrivals} {contender.name}")
        return replace(result(contender.name), row=row)

    monkeypatch.setattr(main_module, "run_row", run_row)
    path = tmp_path / "report.json"
    line = ["kube", "--arrivals", "1", "8", "--contenders", "ours", "plain", "tuned", "--out", str(path)]
    monkeypatch.setattr(sys, "argv", line)
    main_module.main()
    at_once = list(ran)
    assert len(set(at_once)) == 6
    ran.clear()
    monkeypatch.setattr(sys, "argv", [*line, "--at-most", "4"])
    main_module.main()
    monkeypatch.setattr(sys, "argv", [*line, "--resume"])
    main_module.main()
    assert ran == at_once
    results, sittings = read_report(path)
    assert [f"{each.row.arrivals} {each.contender}" for each in results] == at_once
    assert len(sittings) == 2


def test_spread_tells_the_worst_and_nothing_of_nothing() -> None:
    """None is "there was none", never 0."""
    assert Spread.of([]).p50_s is None
    spread = Spread.of([float(n) for n in range(1, 101)])
    assert (spread.count, spread.p50_s, spread.p99_s, spread.max_s) == (100, 50.0, 99.0, 100.0)


def test_moments_count_from_the_post_of_the_same_number() -> None:
    """Each group by itself; one more than pods counts from the last, one that never came is left out."""
    groups = [Group(began_s=9.9, posted_s={"a": 10.0, "b": 10.4}), Group(began_s=19.9, posted_s={"c": 20.0})]
    told = [10.3, 10.6, 10.9, None, 20.5]

    spread = since_posted([(each, each) for each in told], groups)

    assert (spread.count, spread.max_s) == (4, 0.5)
    assert spread.p50_s in (0.3, 0.5)


def test_miner_belongs_to_the_group_in_which_it_was_told_to_go() -> None:
    """One that was told while the first POST was still being answered is that group's; so is one that goes when others come already."""
    groups = [Group(began_s=9.9, posted_s={"a": 10.0}), Group(began_s=19.9, posted_s={"b": 20.0})]

    spread = since_posted([(19.95, 19.95)], groups)
    late = since_posted([(10.5, 20.5), (20.1, 21.0)], groups)

    assert spread.max_s == 0.0
    assert (late.count, late.max_s) == (2, 10.5)


def test_process_that_was_started_again_lives(tmp_path: Path) -> None:
    """After a reboot a pod's process begins anew: it has not ended."""
    events = tmp_path / "events.jsonl"
    lines = [
        {"at_s": 1.0, "what": "started"},
        {"at_s": 5.0, "what": "ended"},
        {"at_s": 9.0, "what": "started"},
    ]
    events.write_text("".join(json.dumps({**e, "uid": "u", "tenant": "mining"}) + "\n" for e in lines))

    (process,) = read_processes(events).values()

    assert (process.started_s, process.ended_s) == (9.0, None)


def test_matrix_is_the_product_and_only_single_arrivals_repeat() -> None:
    """Sizes, limits, arrivals, seeds."""
    options = parser().parse_args(["--nodes", "50", "500", "--limits", "100", "80", "--arrivals", "1", "64"])

    rows = rows_of(options)

    assert len(rows) == 8
    assert {(row.arrivals, row.repeats) for row in rows} == {(1, 20), (64, 1)}
    assert {row.gpu_count for row in rows} == {400, 4000}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(2400)
def test_row_of_ci_ours_beside_tuned_priority_class() -> None:
    """50 nodes at 90 %, 8 pods at once, both on fresh control planes: all are served, nothing is over the limit, everything is counted."""
    need_control_plane()
    row = Row(node_count=50, arrivals=8, limit_ratio=0.9, hold_s=10.0, refill_s=10.0, dwell_s=5.0)

    ours, tuned = (run_row(contender, row, print) for contender in (Swingbus(), PriorityClassContender("tuned")))

    print(table([ours, tuned]))
    for seen in (ours, tuned):
        assert (seen.bound.count, seen.unbound, seen.refused_by_kubelet) == (8, 0, 0)
        assert seen.totals.over_limit_ws == 0.0
        assert seen.victim_released.count == seen.killed >= 8
        assert seen.api_writes["POST pods"] >= 8 and seen.used["kube-apiserver"].cpu_s > 0.0
        # Nobody is bound before a miner was gone, which takes the 2 s of its termination.
        assert seen.bound.p50_s is not None and seen.bound.p50_s >= 1.5
    assert all(seconds is not None and seconds <= BURST_S for seconds in ours.all_bound_s)
    # Static limits hold inference down although the site has watts left; ours lets it have them.
    assert tuned.totals.inference_short_ws > 0.0
    assert ours.totals.inference_short_ws < tuned.totals.inference_short_ws
