"""Replacements that come while the old pod still draws: both are charged, and nothing goes round in circles."""

from __future__ import annotations

import pytest

from tests.benchmarks.kube.ours import MINERS
from tests.cluster.traps.site import GRID, MINING_GPUS, MINING_NODES, PLAN, TrapSite
from tests.cluster.traps.work import HOST, delete, deployment, evict, make, scale, spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_evicted_pod_whose_process_lives_on_is_charged_beside_its_replacement(site: TrapSite) -> None:
    """Evicted by somebody: gone from the API after two seconds, drawing for eight. Its GPU is nobody's until then."""
    site.wait_mining()
    node = MINING_NODES[0]
    make(site, deployment("evicted", 2, spec(on={HOST: node})))
    first, _ = site.wait_working("evicted", 2)
    site.wait_settled(GRID, inference=2)
    uid = first["metadata"]["uid"]
    site.nodes.fault(node, outlive_s=8.0)
    try:
        evict(site, first["metadata"]["name"])
        site.wait(
            lambda: (seen := site.witness.find(uid)) is not None and seen.gone_s is not None, "its object is gone"
        )
        assert site.nodes.gpus_of(uid), "its process works on"
        site.wait(lambda: not site.nodes.gpus_of(uid), "its process has ended")
    finally:
        site.nodes.fault(node)
    site.wait_working("evicted", 2)
    old = site.witness.find(uid)
    assert old is not None and old.reason == "EvictionByEvictionAPI", "who did it is on record"
    assert len(site.lives("evicted")) == 3, "one eviction, one replacement"
    scale(site, "evicted", 0)
    site.wait_mining()


def test_pod_deleted_by_somebody_gets_its_place_back_without_a_flip(site: TrapSite) -> None:
    """Demand is running and gated: a deletion makes no new demand, so no miner has to leave for the replacement."""
    site.wait_mining()
    make(site, deployment("deleted", 1, spec()))
    (first,) = site.wait_working("deleted")
    site.wait_settled(GRID, inference=1)
    miners = {seen.uid for seen in site.witness.pods(MINERS) if seen.ending_s is None}
    delete(site, "Pod", first["metadata"]["name"])
    site.wait(
        lambda: [e["metadata"]["uid"] for e in site.working("deleted")] not in ([], [first["metadata"]["uid"]]),
        "its replacement works",
    )
    assert {seen.uid for seen in site.witness.pods(MINERS) if seen.ending_s is None} == miners
    assert len(site.lives("deleted")) == 2


def test_node_that_is_lost_stays_charged_while_its_pods_come_back_elsewhere(site: TrapSite) -> None:
    """Silent, its pod force-deleted, its processes drawing on: the pool says who is not heard, and both are charged."""
    site.wait_mining()
    lost, other = MINING_NODES[0], MINING_NODES[1]
    site.cluster.kubectl("cordon", MINING_NODES[2])
    make(site, deployment("moved", 1, spec(on={HOST: lost})))
    (first,) = site.wait_working("moved")
    site.wait_settled(GRID, inference=1)
    granted_w = site.status(GRID)["watts"]["granted"]
    try:
        site.nodes.fault(lost, never_stops=True)
        site.nodes.inject("silent", lost)
        site.wait_condition(GRID, "AgentsReporting", "AgentSilent", lost)
        patch = {"spec": {"template": {"spec": {"nodeSelector": {HOST: other}}}}}
        site.cluster.api.merge("/apis/apps/v1/namespaces/customers/deployments/moved", patch)
        delete(site, "Pod", first["metadata"]["name"], grace_s=0)
        site.wait(
            lambda: [e for e in site.working("moved") if e["spec"]["nodeName"] == other] != [], "it works elsewhere"
        )
        assert site.nodes.gpus_of(first["metadata"]["uid"]), "the lost one draws on"
        status = site.status(GRID)
        assert status["watts"]["granted"] >= granted_w, "both are charged"
        assert status["gpus"]["unknown"] == PLAN.gpus_per_node, "what is not heard is not known"
    finally:
        site.nodes.fault(lost)
        site.nodes.inject("heal", lost)
        site.cluster.kubectl("uncordon", MINING_NODES[2])
    site.wait_condition(GRID, "AgentsReporting", "AllReport")
    site.wait(lambda: not site.nodes.gpus_of(first["metadata"]["uid"]), "the lost process has ended")
    site.wait_mining(MINING_GPUS - 1)
    assert len([seen for seen in site.lives("moved") if seen.bound_s is not None]) == 2, "one pod, one replacement"


@pytest.mark.parametrize("at", [0, -1], ids=["floor by a host unit", "limits at the driver's default"])
def test_node_that_reboots_starts_what_is_bound_within_its_watts(site: TrapSite, at: int) -> None:
    """No gate holds what is bound: it starts at once, before anybody is asked. Same pods, same places, limits as granted, nothing over."""
    site.wait_mining()
    node = MINING_NODES[at]
    make(site, deployment("stays", 1, spec(on={HOST: node})))
    (stays,) = site.wait_working("stays")
    lives = {seen.uid for seen in site.witness.pods(MINERS) if seen.gone_s is None}
    site.nodes.inject("reboot", node)
    site.wait(lambda: site.nodes.count(None, node) == PLAN.gpus_per_node, "all of it is dead")
    site.wait(lambda: site.nodes.count(None, node) == 0, "all that is bound works again")
    site.wait(
        lambda: sorted(gpu.enforced_w for gpu in site.nodes.gpus(node)) == [500.0, 500.0, 500.0, 700.0],
        "every GPU is at the limit of who works there",
    )
    assert site.nodes.gpus_of(stays["metadata"]["uid"])
    assert {seen.uid for seen in site.witness.pods(MINERS) if seen.gone_s is None} == lives
    site.wait_condition(GRID, "Ready", "Ready")


def test_eviction_by_somebody_else_is_told_with_its_reason(site: TrapSite) -> None:
    """Drained as soon as it was bound: an event says whose doing that was. Its replacement takes its place; one miner left for both."""
    site.wait_mining()
    miners = {seen.uid for seen in site.witness.pods(MINERS) if seen.ending_s is None}
    make(site, deployment("drained", 1, spec(on={HOST: MINING_NODES[1]})))
    site.wait(lambda: any(seen.bound_s is not None for seen in site.lives("drained")), "it is bound")
    (first,) = site.lives("drained")
    evict(site, first.name)
    site.wait(
        lambda: any("EvictionByEvictionAPI" in note for note in site.events("Disrupted")),
        "the event names the reason",
    )
    site.wait(lambda: first.uid not in [each["metadata"]["uid"] for each in site.working("drained")], "it is gone")
    site.wait_working("drained")
    left = {seen.uid for seen in site.witness.pods(MINERS) if seen.ending_s is None}
    assert len(miners - left) == 1
