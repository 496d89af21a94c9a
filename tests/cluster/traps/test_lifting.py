"""Lifting: only onto GPUs that are free by evidence, in order, whole; and miners that nobody scales up for or pushes out."""

from __future__ import annotations

import pytest

from tests.benchmarks.kube.ours import MINERS
from tests.cluster.traps.site import MINING_GPUS, MINING_NODES, QUIET, TrapSite
from tests.cluster.traps.work import HOST, ON_GRID, ON_QUIET, delete, deployment, is_gated, make, pod, scale, spec

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_gate_is_lifted_when_a_miner_is_gone_and_released(site: TrapSite) -> None:
    """The miner's process has ended and its object is gone before the pod is bound; the scheduler pushes nobody out (the fixture looks)."""
    site.wait_mining()
    miners = {seen.uid for seen in site.witness.pods(MINERS) if seen.ending_s is None}
    node = MINING_NODES[0]
    make(site, deployment("plain", 2, spec(on={HOST: node})))
    site.wait_working("plain", 2)
    gone = [seen for seen in site.witness.pods(MINERS) if seen.uid in miners and seen.gone_s and seen.node == node]
    assert len(gone) == 2, "one miner for each pod"
    processes = site.nodes.processes()
    for place, seen in enumerate(sorted(site.lives("plain"), key=lambda each: each.bound_s or 0.0), start=1):
        released = [s for s in gone if s.gone_s < seen.bound_s and processes[s.uid].ended_s < seen.bound_s]  # type: ignore[operator]
        assert len(released) >= place, f"{seen} was bound before {place} miners were gone and released"
    scale(site, "plain", 0)
    site.wait_mining()


def test_process_that_outlives_its_miner_holds_its_gpu(site: TrapSite) -> None:
    """The object is gone, the process draws on for six seconds: nobody is let go onto that node before it ends."""
    site.wait_mining()
    node = MINING_NODES[1]
    site.nodes.fault(node, outlive_s=6.0)
    try:
        make(site, pod("patient", spec(on={HOST: node})))
        site.wait_working("patient")
    finally:
        site.nodes.fault(node)
    (patient,) = site.lives("patient")
    assert patient.bound_s is not None
    left = [s for s in site.witness.pods(MINERS) if s.node == node and s.ending_s and s.ending_s > site.began_s]
    processes = site.nodes.processes()
    ended = [processes[seen.uid].ended_s for seen in left]
    assert [at_s for at_s in ended if at_s is not None and at_s < patient.bound_s], "its process had ended"
    assert all(seen.gone_s and processes[seen.uid].ended_s - seen.gone_s > 3.0 for seen in left[:1])  # type: ignore[operator]


def test_big_pod_gets_one_node_whole_while_small_ones_come(site: TrapSite) -> None:
    """Four GPUs of one node are freed and held for it; three small pods that came at the same moment go elsewhere."""
    site.wait_mining()
    make(site, pod("big", spec(4)))
    make(site, deployment("small", 3, spec()))
    (big,) = site.wait_working("big", timeout_s=90.0)
    small = site.wait_working("small", 3)
    assert big["spec"]["nodeName"] not in {each["spec"]["nodeName"] for each in small}


def test_place_that_comes_free_goes_to_the_highest_priority(site: TrapSite) -> None:
    """The quiet node is full; of two that wait the later, more important one is let in first, and nobody is pushed out for it."""
    classes = "/apis/scheduling.k8s.io/v1/priorityclasses"
    body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "traps-high"}}
    site.cluster.api.ensure(classes, {**body, "value": 1000})
    make(site, deployment("filler", 4, spec(on=ON_QUIET)))
    fillers = site.wait_working("filler", 4)
    make(site, pod("humble", spec(on=ON_QUIET)))
    make(site, pod("important", spec(on=ON_QUIET, priorityClassName="traps-high")))
    site.wait_condition("still", "DemandServed", "Full")
    assert {each["metadata"]["uid"] for each in site.working("filler")} == {e["metadata"]["uid"] for e in fillers}
    scale(site, "filler", 3)
    site.wait_working("important")
    humble = site.pod("humble")
    assert humble is not None and is_gated(humble)


def test_scale_down_while_flips_are_on_their_way_leaves_nothing_behind(site: TrapSite) -> None:
    """ReplicaSets delete unassigned pods first: some go gated, some just lifted. Every GPU mines again."""
    site.wait_mining()
    make(site, deployment("hasty", 4, spec()))
    site.wait(lambda: site.status("grid")["gpus"]["flipping"] > 0, "flips are on their way")
    scale(site, "hasty", 1)
    (kept,) = site.wait_working("hasty", 1)
    scale(site, "hasty", 0)
    site.wait(lambda: not site.pods(), "all of it is gone")
    site.wait_mining()
    site.wait(lambda: site.status("grid")["gpus"]["mining"] == MINING_GPUS, "the pool says so, too")
    never_bound = [seen for seen in site.lives("hasty") if seen.bound_s is None]
    processes = site.nodes.processes()
    assert all(seen.uid not in processes for seen in never_bound)
    assert kept["metadata"]["uid"] in processes


def test_third_party_deletion_of_a_gated_pod_gives_its_place_back(site: TrapSite) -> None:
    """It goes at once, without a node; the miner that was told to leave for it comes again."""
    site.wait_mining()
    site.nodes.fault(MINING_NODES[0], outlive_s=4.0)
    try:
        make(site, pod("fleeting", spec(on={HOST: MINING_NODES[0]})))
        site.wait(lambda: site.status("grid")["gpus"]["flipping"] > 0, "a flip is on its way")
        delete(site, "Pod", "fleeting")
        site.wait_mining()
    finally:
        site.nodes.fault(MINING_NODES[0])
    assert site.lives("fleeting")[0].bound_s is None


def test_miners_ask_no_autoscaler_and_no_label_of_a_node_is_ours(site: TrapSite) -> None:
    """Priority below -10, never preempting, each pinned to a node that is there; labels of nodes are display of others, not ours."""
    site.wait_mining()
    for miner in site.pods(MINERS):
        each = miner["spec"]
        assert each["priority"] < -10 and each["preemptionPolicy"] == "Never"
        terms = each["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert terms == [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [each["nodeName"]]}]}], (
            "nothing that flips"
        )
    make(site, pod("labelled", spec(on=ON_GRID)))
    (labelled,) = site.wait_working("labelled")
    assert set(labelled["spec"]["nodeSelector"]) <= {
        HOST,
        "swingbus.io/container",
        "nvidia.com/gpu.product",
        *ON_GRID,
    }, "only labels that never change"
    for node in site.cluster.api.get("/api/v1/nodes")["items"]:
        writers = {entry["manager"] for entry in node["metadata"].get("managedFields", [])}
        assert not [name for name in writers if "swingbus" in name and "controller" in name], writers
    assert QUIET not in {each["spec"]["nodeName"] for each in site.pods(MINERS)}
