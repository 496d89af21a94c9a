"""A site at rest: what an audit log tells, which aims were met, and a small site left alone on a real control plane."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.benchmarks.kube.needs import need_control_plane
from tests.benchmarks.kube.resting import Asked, Rest, measure_rest, read_audit
from tests.benchmarks.kube.rows import Row, Used

_ZERO_UNIX_S = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def event(
    verb: str, resource: str, second: int, *, stage: str = "ResponseComplete", audit: str = "", sub: str = ""
) -> str:
    """Return a line of an audit log, so many seconds after the beginning."""
    told: dict[str, Any] = {
        "verb": verb,
        "stage": stage,
        "auditID": audit or f"{verb}-{second}",
        "stageTimestamp": f"2023-11-14T22:13:{20 + second:02}.000000Z",
        "requestURI": f"/api/v1/{resource}",
        "objectRef": {"resource": resource, **({"subresource": sub} if sub else {})},
    }
    return json.dumps(told) + "\n"


def test_watches_that_were_begun_and_not_ended_are_open() -> None:
    """One that was begun anew counts once; two of a kind are told."""
    lines = [
        event("watch", "pods", 1, stage="ResponseStarted", audit="a"),
        event("watch", "nodes", 2, stage="ResponseStarted", audit="b"),
        event("watch", "pods", 3, audit="a"),
        event("watch", "pods", 4, stage="ResponseStarted", audit="c"),
        event("watch", "nodes", 5, stage="ResponseStarted", audit="d"),
    ]

    asked = read_audit(lines, _ZERO_UNIX_S, _ZERO_UNIX_S + 3.5)

    assert asked.watches == {"pods": 1, "nodes": 2}
    assert asked.reads == {"watch pods": 1, "watch nodes": 1}, "of the stretch alone"


def test_writes_are_those_of_the_stretch_by_verb_and_resource() -> None:
    """What was refused counts too: it was asked. A line that is being written is left."""
    lines = [
        event("update", "leases", 1),
        event("update", "leases", 5),
        event("patch", "capacitypools", 6, sub="status"),
        event("list", "pods", 7),
        event("create", "pods", 20),
        '{"verb": "crea',
    ]

    asked = read_audit(lines, _ZERO_UNIX_S + 4.0, _ZERO_UNIX_S + 10.0)

    assert asked.writes == {"update leases": 1, "patch capacitypools/status": 1}
    assert asked.reads == {"list pods": 1}


def rest(**changes: object) -> Rest:
    """Return a site at rest as it should be."""
    good = Rest(
        node_count=50,
        gpu_count=400,
        report_period_s=1.0,
        rested_s=60.0,
        asked=Asked(watches={"pods": 1, "nodes": 1}, writes={"update leases": 6}, reads={}),
        controller=Used(cpu_s=6.0, rss_mb=140.0),
        setup_s=40.0,
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def test_aims_of_a_site_at_rest() -> None:
    """Any other write, a second watch, no watch, no renewal and too much memory are each told."""
    assert [verdict.is_met for verdict in rest().verdicts] == [True, True, True]
    writes = {"update leases": 6, "patch capacitypools/status": 1}
    assert not rest(asked=Asked(watches={"pods": 1}, writes=writes, reads={})).verdicts[0].is_met
    assert not rest(asked=Asked(watches={"pods": 1}, writes={}, reads={})).verdicts[0].is_met
    assert not rest(asked=Asked(watches={"pods": 2}, writes={}, reads={})).verdicts[1].is_met
    assert not rest(asked=Asked(watches={}, writes={}, reads={})).verdicts[1].is_met
    assert not rest(controller=Used(cpu_s=6.0, rss_mb=251.0)).verdicts[2].is_met


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_small_site_at_rest_writes_nothing_but_its_lease() -> None:
    """5 nodes full of miners for 20 s, by the API server's own log."""
    need_control_plane()

    seen = measure_rest(Row(node_count=5, arrivals=0, limit_ratio=1.0), 20.0, print, settle_s=0.0)

    assert [verdict.seen for verdict in seen.verdicts if not verdict.is_met] == [], seen
    assert set(seen.asked.watches) == {"nodes", "pods", "namespaces", "capacitypools"}
