"""Pods that are let go and do not arrive: no node for them, or a kubelet that rejects them. Watts come back, and somebody is told."""

from __future__ import annotations

from typing import Any

import pytest

from swingbus_controller.domain.cluster.blocking import REJECTIONS_UNTIL_FAILED
from tests.benchmarks.kube.ours import MINERS
from tests.cluster.traps.site import GRID, MINING_GPUS, MINING_NODES, QUIET, STILL, TrapSite
from tests.cluster.traps.work import (
    HOST,
    ON_GRID,
    ON_QUIET,
    daemon_set,
    delete,
    deployment,
    is_gated,
    make,
    place,
    pod,
    reason_of,
    spec,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
REJECTED = "kwok.swingbus.io/rejected"


def nowhere(**more: Any) -> dict[str, Any]:
    """Return a spec that fits by labels, size and taints, and that the scheduler finds no node for: it asks for more CPU than there is."""
    made = spec(on=ON_QUIET, **more)
    made["containers"][0]["resources"]["requests"]["cpu"] = "500"
    return made


def test_pod_that_finds_no_node_waits_behind_the_gate_again(site: TrapSite) -> None:
    """Let go, unschedulable, evicted at liftDeadline; its owner's next one is gated. Others are served meanwhile."""
    make(site, deployment("lost", 1, nowhere()))
    site.wait(lambda: len(site.lives("lost")) > 1, "it was evicted and made again")
    (first, *_) = site.lives("lost")
    assert first.bound_s is None and first.reason == "EvictionByEvictionAPI"
    make(site, deployment("served", 3, spec(on=ON_QUIET)))
    site.wait_working("served", 3)
    assert len(site.lives("lost")) < 8, "it was let go again and again"


def test_pod_that_nobody_would_make_again_keeps_its_reserve_and_is_named(site: TrapSite) -> None:
    """Ownerless: it may be bound at any moment, so it is not thrown away; the pool says what to do. Deleted, its watts are free again."""
    made = make(site, pod("orphan", nowhere()))
    site.wait_condition(STILL, "Ready", "ReserveKept", "customers/orphan")
    there = site.pod("orphan")
    assert there is not None and there["metadata"]["uid"] == made["metadata"]["uid"] and not is_gated(there)
    delete(site, "Pod", "orphan")
    site.wait_condition(STILL, "Ready", "Ready")


def mend(site: TrapSite, name: str) -> None:
    """Let a deployment's next pods be taken again by KWOK, which plays the kubelet where nobody rejects."""
    template = {"metadata": {"labels": {REJECTED: None}}}
    site.cluster.api.merge(f"{place('Deployment')}/{name}", {"spec": {"template": template}})


def test_rejected_pod_is_served_elsewhere_and_its_node_rests(site: TrapSite) -> None:
    """UnexpectedAdmissionError: the GPU and its watts come back, the owner's next pod goes to another node, the miner comes again."""
    site.wait_mining()
    bad, *others = MINING_NODES
    for node in others:
        site.cluster.kubectl("cordon", node)
    site.nodes.fault(bad, rejects="no device plugin answers")
    try:
        make(site, deployment("turned-away", 1, spec(), labels={REJECTED: "yes"}))
        site.wait(lambda: len(site.lives("turned-away")) > 1, "it was rejected and made again")
        mend(site, "turned-away")
        for node in others:
            site.cluster.kubectl("uncordon", node)
        (served,) = site.wait_working("turned-away", timeout_s=90.0)
        assert served["spec"]["nodeName"] in others
    finally:
        site.nodes.fault(bad)
        for node in others:
            site.cluster.kubectl("uncordon", node)
    (first, *_) = site.lives("turned-away")
    process = site.nodes.processes()[first.uid]
    assert first.node == bad and process.was_refused and process.started_s is None
    site.wait_mining(MINING_GPUS - 1)


@pytest.mark.parametrize("label", ["leaderworkerset.sigs.k8s.io/name", "jobset.sigs.k8s.io/jobset-name"])
def test_gang_is_left_gated_and_told_so(site: TrapSite, label: str) -> None:
    """A leader that is let go alone would hold GPUs and wait: the first version lets none of them in."""
    make(site, pod("leader", spec(), labels={label: "gang"}))
    make(site, pod("worker", spec(), labels={label: "gang"}))
    site.wait_condition(GRID, "DemandServed", "GangUnsupported", "customers/leader")
    assert all(is_gated(each) for each in site.pods())
    assert not any(seen.ending_s and seen.ending_s > site.began_s for seen in site.witness.pods(MINERS))


def test_pod_that_is_queued_after_it_was_made_is_left_gated(site: TrapSite) -> None:
    """The policy refuses GPU pods with a Kueue queue; one that gets the label later is not let go, and the pool says why."""
    site.set_pool(STILL, mode="Drain")  # so that it waits
    try:
        make(site, pod("queued", spec(on=ON_QUIET)))
        site.cluster.kubectl("label", "pod", "queued", "-n", "customers", "kueue.x-k8s.io/queue-name=team")
    finally:
        site.set_pool(STILL, mode="Auto")
    site.wait_condition(STILL, "DemandServed", "QueueUnsupported", "customers/queued")
    queued = site.pod("queued")
    assert queued is not None and is_gated(queued)


def test_daemon_set_with_a_gpu_gets_one_on_each_of_its_nodes(site: TrapSite) -> None:
    """Its pods are tied to one node each by affinity, and each is let go to that node, not to another one."""
    site.wait_mining()
    make(site, daemon_set("everywhere", spec(on=ON_GRID)))
    working = site.wait_working("everywhere", len(MINING_NODES), timeout_s=90.0)
    assert {each["spec"]["nodeName"] for each in working} == set(MINING_NODES)
    assert len(site.lives("everywhere")) == len(MINING_NODES), "none was sent to a node that is not its own"


def test_pod_that_fits_no_node_is_told_so(site: TrapSite) -> None:
    """More GPUs than any node has, or a label that none has: no GPU is freed for it."""
    make(site, pod("huge", spec(64, on={})))
    make(site, pod("homeless", spec(on={HOST: "nowhere"})))
    message = site.wait_condition(STILL, "DemandServed", "NoFit", "customers/huge")
    assert "nowhere" in message or "huge" in message
    assert all(is_gated(each) and reason_of(each, "PodScheduled") == "SchedulingGated" for each in site.pods())


def test_node_that_rejects_three_in_a_row_is_named_and_left_alone(site: TrapSite) -> None:
    """Each time it rests longer; after the third the pool is not Ready and says which node. The last here: the node goes on resting."""
    site.nodes.fault(QUIET, rejects="no device plugin answers")
    try:
        make(site, deployment("unlucky", 1, spec(on=ON_QUIET), labels={REJECTED: "yes"}))
        site.wait_condition(STILL, "Ready", "NodeRejectsPods", QUIET, timeout_s=120.0)
        bound = [seen for seen in site.lives("unlucky") if seen.bound_s is not None]
        assert len(bound) == REJECTIONS_UNTIL_FAILED
        site.wait_condition(STILL, "DemandServed", "NodeRests", "customers/unlucky")
        assert not site.nodes.count("inference", QUIET)
    finally:
        site.nodes.fault(QUIET)
