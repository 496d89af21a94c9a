"""Who got past the gate: charged as it is, named by the pool, and never a reason to throw anybody else out twice."""

from __future__ import annotations

from typing import Any

import pytest

from swingbus.faults import SwingbusError
from tests.benchmarks.kube.ours import MINERS
from tests.cluster.pods import lift_by_hand
from tests.cluster.traps.site import CUSTOMERS, GRID, MINING_GPUS, MINING_NODES, QUIET, STILL, STRANGERS, TrapSite
from tests.cluster.traps.work import HOST, ON_QUIET, delete, deployment, is_gated, make, pod, spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
MINED_W, FULL_W = 500.0, 700.0


def limits_of(site: TrapSite, made: dict[str, Any]) -> list[float]:
    """Return the limits of the GPUs that a pod works on."""
    return [gpu.enforced_w for gpu in site.nodes.gpus_of(made["metadata"]["uid"])]


def test_pod_that_names_its_node_is_charged_and_named(site: TrapSite) -> None:
    """Out of a namespace that is not enrolled, straight to a node: no scheduler and no policy saw it. Its GPU counts as what it draws."""
    made = make(site, pod("straight", {**spec(on={}), "nodeName": QUIET}), STRANGERS)
    site.wait_condition(STILL, "GateEnforced", "UngatedPods", "strangers/straight")
    site.wait(lambda: limits_of(site, made) == [FULL_W], "it was given the watts of a pod that serves")
    site.wait(lambda: site.status(STILL)["gpus"]["inference"] == 1, "the pool counts it")
    assert site.condition(STILL, "Ready")[0] == "True"
    delete(site, "Pod", "straight", STRANGERS)
    site.wait_condition(STILL, "GateEnforced", "AllLetGo")


def test_static_pod_is_named_with_what_to_do(site: TrapSite) -> None:
    """The mirror of a manifest on the node's own disk: nobody can refuse it, deleting it is in vain."""
    node = site.cluster.api.get(f"/api/v1/nodes/{QUIET}")["metadata"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": QUIET, "uid": node["uid"], "controller": True}
    meta = {"annotations": {"kubernetes.io/config.mirror": "1"}, "ownerReferences": [owner]}
    body = {**spec(on={}), "nodeName": QUIET}
    site.cluster.api.create(
        f"/api/v1/namespaces/{STRANGERS}/pods",
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"static-{QUIET}", **meta}, "spec": body},
    )
    site.wait_condition(STILL, "GateEnforced", "StaticPods", f"strangers/static-{QUIET}")
    site.wait(lambda: site.status(STILL)["gpus"]["inference"] == 1, "the pool counts it")


@pytest.mark.preempts
@pytest.mark.shares
def test_miner_that_the_scheduler_pushed_out_is_not_sent_against_its_successor(site: TrapSite) -> None:
    """A stranger of higher priority takes one miner's GPU. One life of a miner ends, none is made in vain, the reason is on record."""
    site.wait_mining()
    node = MINING_NODES[0]
    before = {seen.uid for seen in site.witness.pods(MINERS)}
    make(site, pod("pusher", spec(on={HOST: node})), STRANGERS)
    site.wait(lambda: len(site.working("pusher", STRANGERS)) == 1, "the stranger works")
    site.wait_condition(GRID, "GateEnforced", "UngatedPods", "strangers/pusher")
    site.wait(lambda: site.status(GRID)["gpus"]["inference"] == 1, "the pool counts it")
    (pusher,) = site.working("pusher", STRANGERS)
    (limit_w,) = limits_of(site, pusher)
    assert limit_w in (MINED_W, FULL_W), "it runs at what was granted there"
    gone = [seen for seen in site.witness.pods(MINERS) if seen.uid in before and seen.gone_s and seen.node == node]
    assert [seen.reason for seen in gone if seen.gone_s > site.began_s] == ["PreemptionByScheduler"]  # type: ignore[operator]
    fresh = [seen for seen in site.witness.pods(MINERS) if seen.uid not in before]
    assert len(fresh) <= 1, f"miners that were made meanwhile: {fresh}"
    delete(site, "Pod", "pusher", STRANGERS)
    site.wait_mining()
    site.wait_condition(GRID, "GateEnforced", "AllLetGo")


def test_gate_lifted_by_hand_with_no_controller_is_taken_as_it_is_afterwards(site: TrapSite) -> None:
    """We are dead: pods wait, break-glass helps one through, the others stay. We come back: it is charged, the rest served."""
    site.controller.kill()
    try:
        make(site, pod("urgent", spec(on=ON_QUIET)))
        make(site, deployment("queue", 2, spec(on=ON_QUIET)))
        site.wait(lambda: len(site.pods()) == 3, "all three are there")
        assert all(is_gated(each) for each in site.pods())
        with pytest.raises(SwingbusError, match=r"only Swingbus lifts swingbus\.io/power"):
            lift_by_hand(site.cluster, CUSTOMERS, "urgent", who=())
        lift_by_hand(site.cluster, CUSTOMERS, "urgent")
        site.wait_working("urgent")
        assert [each["metadata"]["name"] for each in site.pods() if not is_gated(each)] == ["urgent"]
    finally:
        site.controller.start()
    site.wait_condition(STILL, "GateEnforced", "UngatedPods", "customers/urgent")
    site.wait_working("queue", 2, timeout_s=90.0)
    (urgent,) = site.working("urgent")
    site.wait(lambda: limits_of(site, urgent) == [FULL_W], "its GPU counts as one that serves")
    site.wait(lambda: site.status(STILL)["gpus"]["inference"] == 3, "all three are counted")


def test_limits_that_somebody_raised_are_counted_and_taken_back(site: TrapSite) -> None:
    """Root on the node sets every GPU to its highest limit under running miners: taken back, and nobody is killed."""
    site.wait_mining()
    node = MINING_NODES[1]
    before = {seen.uid for seen in site.witness.pods(MINERS) if seen.gone_s is None}
    site.nodes.raise_limits(node)
    site.wait(lambda: max(gpu.enforced_w for gpu in site.nodes.gpus(node)) == FULL_W, "the limits are up")
    site.wait(lambda: all(gpu.enforced_w == 500.0 for gpu in site.nodes.gpus(node)), "the limits are down again")
    site.wait_condition(GRID, "WithinLimit", "WithinLimit")
    assert site.nodes.count("mining") == MINING_GPUS
    assert {seen.uid for seen in site.witness.pods(MINERS) if seen.gone_s is None} == before
