"""What the demo with pods counts, from lives of pods, flips, calls and the controller's record; and its manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swingbus.fleet.v1alpha import fleet_pb2
from swingbus_sim.demo_kube.manifests import (
    CUSTOMERS,
    MINERS,
    capacity_pool,
    controller_values,
    inference_deployment,
    node_labels,
)
from swingbus_sim.demo_kube.pods import PodSide
from swingbus_sim.demo_kube.report import controller_figures, logged, pod_bars, pod_figures
from swingbus_sim.demo_kube.watching import ForceDeleted, PodLife, PodWatch

AT_ZERO = 1_790_000_000.0
LIVES = [("controller-a", "u1"), ("controller-b", "u2")]


def watch_of(*lives: PodLife, force_deleted: tuple[ForceDeleted, ...] = ()) -> PodWatch:
    """Return a watch that has seen these pods."""
    pods = PodSide(
        hosts=["g1"], feeder="gpu", site="demo", gpu_count=8, images=Path(), folder=Path(), say=lambda words: None
    )
    watch = PodWatch(pods, shelves=Path(), now=lambda: 0.0)
    watch.lives = {str(number): life for number, life in enumerate(lives)}
    watch.force_deleted = list(force_deleted)
    return watch


def flip(bank: str, origin: str, aim: str, outcome: str = "ACTIVE", *, is_cap: bool = False) -> dict[str, object]:
    """Return a row of the demo's report."""
    return {"bank": bank, "from": origin, "to": aim, "outcome": outcome, "is_cap": is_cap}


def record(at_s: float, kind: str, **facts: str) -> tuple[float, fleet_pb2.Event]:
    """Return one of the controller's records."""
    return at_s, fleet_pb2.Event(kind=kind, facts=facts)


def lease(seconds: int) -> dict[str, object]:
    """Return what the controller's log says when it gets the lease at 00:00:SECONDS of the scenario's day."""
    return {"event": "lease_acquired", "timestamp": f"2026-09-21T14:13:{20 + seconds:02d}.500000Z"}


def back(
    *events: tuple[float, fleet_pb2.Event], leases: list[dict[str, object]], lives: list[tuple[str, str]] = LIVES
) -> dict[str, Any]:
    """Return what is counted of a controller that was killed at second 10."""
    return controller_figures(lives, 10.0, events, leases, unix_at_zero=AT_ZERO)


def test_only_flips_of_banks_that_run_pods_count_as_theirs() -> None:
    """Caps are none, nor are flips of other hosts; what was undone is told but counts for nothing."""
    flips = [
        flip("g1/gpus", "MINING", "INFERENCE"),
        flip("g1/gpus", "INFERENCE", "MINING"),
        flip("g1/gpus", "INFERENCE", "STANDBY"),
        flip("g1/gpus", "STANDBY", "INFERENCE", "ROLLED_BACK"),
        flip("g1/gpus", "INFERENCE", "INFERENCE", is_cap=True),
        flip("g3/gpus", "MINING", "INFERENCE"),
    ]
    figures = pod_figures(flips, ["g1"], watch_of(), [])
    assert figures["mode_flips_through_pods"] == 3
    assert (figures["pods_into_inference"], figures["pods_out_of_inference"]) == (1, 2)
    assert figures["flips_by_path"]["STANDBY->INFERENCE ROLLED_BACK"] == 1
    assert figures["reclaim_seconds"] == {"p50": None, "p99": None, "count": 0}
    assert figures["miners_killed_per_gpu"] is None


def test_miners_are_counted_against_gpus_that_servers_were_bound_to() -> None:
    """Two miners left, a server of two GPUs came and one waits: one miner for each GPU, two seconds from made to bound."""
    lives = [
        PodLife("m0", MINERS, 1, 0.0, leaving_s=5.0),
        PodLife("m1", MINERS, 1, 0.0, leaving_s=5.0),
        PodLife("m2", MINERS, 1, 0.0),
        PodLife("s0", CUSTOMERS, 2, 4.0, bound_s=6.0),
        PodLife("s1", CUSTOMERS, 1, 4.0),
    ]
    figures = pod_figures([], ["g1"], watch_of(*lives), [])
    assert figures["miners_killed_per_gpu"] == 1.0
    assert figures["reclaim_seconds"] == {"p50": 2.0, "p99": 2.0, "count": 1}


def test_every_promise_about_pods_can_be_broken() -> None:
    """With nothing done none is kept; with enough of each all are."""
    nothing = pod_figures([], ["g1"], watch_of(), [])
    nothing |= controller_figures(LIVES[:1], None, [], [], unix_at_zero=AT_ZERO)
    assert not any(kept for _, kept, _ in pod_bars(nothing))
    flips = [flip("g1/gpus", "MINING", "INFERENCE")] * 8 + [flip("g1/gpus", "INFERENCE", "MINING")] * 4
    lingering = ForceDeleted("chat-1", "real-1", 10.0, working_after_s=12.0)
    calls = [{"call": "EvictPod", "answer": "blocked"}, {"call": "LiftGate", "answer": "taken"}]
    enough = pod_figures(flips, ["g1"], watch_of(force_deleted=(lingering,)), calls)
    enough |= back(record(14.0, "controller_came_up", epoch="2"), record(16.0, "grant_issued"), leases=[lease(15)])
    assert all(kept for _, kept, _ in pod_bars(enough))
    assert enough["evictions"] == {"blocked": 1}


def test_calls_are_read_from_the_controllers_log(tmp_path: Path) -> None:
    """Other lines are passed over, and so is the half line of a process that was killed."""
    log = tmp_path / "controller.log"
    call = json.dumps({"event": "pod_call_made", "call": "EvictPod", "answer": "taken"})
    log.write_text(f"WARNING words\n{json.dumps({'event': 'other'})}\n{call}\n{call[:40]}")
    assert [each["call"] for each in logged(log, "pod_call_made")] == ["EvictPod"]


def test_controller_is_back_when_it_has_granted_and_may_move_pods() -> None:
    """Both, whichever comes last; what the killed one did before does not count, nor a grant of its that is read late."""
    early = record(9.0, "grant_issued")
    late = record(11.0, "grant_issued")
    up, granted = record(14.0, "controller_came_up", epoch="2"), record(16.0, "grant_issued")
    assert back(early, late, up, granted, leases=[lease(0), lease(15)])["controller_back_s"] == 6.0
    assert back(early, up, granted, leases=[lease(0), lease(18)])["controller_back_s"] == 8.5
    assert back(early, late, leases=[lease(15)])["controller_back_s"] is None
    assert back(early, late, up, leases=[lease(15)])["controller_back_s"] is None
    assert back(early, up, granted, leases=[lease(0)])["controller_back_s"] is None
    pods = back(leases=[])["controller_pods"]
    assert pods == [{"pod": "controller-a", "uid": "u1"}, {"pod": "controller-b", "uid": "u2"}]


@pytest.mark.parametrize(
    ("epoch", "lives", "granted_s", "kept"),
    [("2", LIVES, 24.0, True), ("2", LIVES, 26.0, False), ("1", LIVES, 24.0, False), ("2", LIVES[:1], 24.0, False)],
)
def test_another_pod_must_decide_on_the_same_volume_in_time(
    epoch: str, lives: list[tuple[str, str]], granted_s: float, *, kept: bool
) -> None:
    """Late is broken, and so are a first term (an empty volume) and the same pod started again."""
    figures = pod_figures([], ["g1"], watch_of(), [])
    up, granted = record(14.0, "controller_came_up", epoch=epoch), record(granted_s, "grant_issued")
    figures |= back(up, granted, leases=[lease(13)], lives=lives)
    (bar,) = [bar for bar in pod_bars(figures) if "controller" in bar[0]]
    assert bar[1] is kept, bar


def test_image_that_was_loaded_is_never_pulled() -> None:
    """Its name falls apart into the chart's values."""
    values = controller_values("swingbus.invalid/swingbus-controller:0.1.0", "[site]", node="real-2")
    assert values["image"] == {
        "repository": "swingbus.invalid/swingbus-controller",
        "tag": "0.1.0",
        "pullPolicy": "Never",
    }


@pytest.mark.parametrize("gpu_count", [1, 4])
def test_manifests_hang_together(gpu_count: int) -> None:
    """The pool selects the labels that nodes are given; a rolling update never asks for a pod more than there are watts for."""
    pool = capacity_pool("demo", "gpu")["spec"]
    assert pool["nodeSelector"] == node_labels("gpu") and pool["mining"]["namespace"] == MINERS
    spec = inference_deployment("chat", 3, gpu_count=gpu_count)["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxSurge"] == 0
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": str(gpu_count)}
    assert "schedulingGates" not in spec["template"]["spec"], "the cluster's policy gates it"
