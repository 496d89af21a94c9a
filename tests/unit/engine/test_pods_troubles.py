"""What goes wrong with pods: processes outlive them, kubelets fall silent, nodes reject, calls get lost, people lift gates by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from swingbus_controller.domain.flips.flip import Direction, Phase
from tests.fakes.pod_site import POOL, PodAgent, PodSite

MakeSite = Callable[..., PodSite]


def quiet(site: PodSite, *, serving: int, mining: int, seconds: int = 200) -> None:
    """Wait until so many GPUs truly work for each, and nothing is under way."""

    def is_there() -> bool:
        return site.tenants() == {"miner": mining, "llm": serving} and site.is_quiet()

    assert site.run(seconds, is_there), f"{site.tenants()}\n{site.explain()}"
    site.assert_right()


def lifts(site: PodSite) -> list[str]:
    """Return the lifts that were called."""
    return [call for call in site.cluster.log if call.startswith("lift")]


def test_a_force_deleted_pod_whose_process_lives_gives_nothing_back_until_it_ended(pod_site: MakeSite) -> None:
    """Its object is gone at once; its node gets nobody and its bank keeps its watts until the agent sees the GPU free."""
    site = pod_site()
    site.cluster.deploy("web", 4)
    quiet(site, serving=4, mining=4)
    (bank,) = {f"{pod.node}/gpus" for pod in site.cluster.pods_of("web")}
    granted = site.state.ledger.claim_w(bank)
    chosen = site.cluster.pods_of("web")[0]
    before = len(lifts(site))
    site.cluster.workloads["web"].replicas = 3
    site.cluster.force_delete(chosen.ref, lingers_s=40.0)
    site.cluster.deploy("other", 1, selector={"kubernetes.io/hostname": chosen.node})
    for _ in range(38):
        site.step()
        assert len(lifts(site)) == before
        assert site.state.ledger.claim_w(bank) >= granted - 1.0
        assert site.tenants() == {"miner": 4, "llm": 4}
    assert site.run(60, lambda: site.cluster.ready_count("other") == 1), site.explain()
    quiet(site, serving=4, mining=4)


def test_while_a_kubelet_is_silent_nobody_comes_to_its_node(pod_site: MakeSite) -> None:
    """Nobody knows what its GPUs do: pods go to the other node; when it speaks again it is used again."""
    site = pod_site()
    agent = site.agents["gpu1"]
    assert isinstance(agent, PodAgent)
    agent.is_kubelet_silent = True
    site.cluster.deploy("web", 4)
    assert site.run(200, lambda: site.cluster.ready_count("web") == 4), site.explain()
    assert {pod.node for pod in site.cluster.pods_of("web")} == {"gpu2"}
    site.assert_right()
    agent.is_kubelet_silent = False
    site.cluster.deploy("web", 6)
    quiet(site, serving=6, mining=2)


def test_a_node_that_rejects_rests_and_the_pod_is_served_by_the_other_one(pod_site: MakeSite) -> None:
    """The kubelet of one node refuses what it is sent: its flip is undone, the next pod of the workload goes to the other node."""
    site = pod_site()
    site.cluster.failing.add("gpu1")
    site.cluster.deploy("web", 2)
    assert site.run(300, lambda: site.cluster.ready_count("web") == 2), site.explain()
    assert {pod.node for pod in site.cluster.pods_of("web")} == {"gpu2"}
    undone = site.flips(Phase.ROLLED_BACK, bank="gpu1/gpus")
    assert not undone or undone[0].direction is Direction.UNDO
    site.cluster.failing.clear()
    quiet(site, serving=2, mining=6, seconds=900)
    assert not site.flips(Phase.FAILED)


def test_a_node_that_rejects_who_comes_into_an_empty_place_rests_more_and_more(pod_site: MakeSite) -> None:
    """No flip is needed for a place that stands empty, and none fails: the node is left alone all the same, and named after three."""
    # So long a dwell that the places stay those of inference.
    site = pod_site(pool=replace(POOL, dwell_inference_s=600.0))
    site.cluster.deploy("web", 2, selector={"kubernetes.io/hostname": "gpu1"})
    quiet(site, serving=2, mining=6)
    site.cluster.failing.add("gpu1")
    before = len(lifts(site))
    for pod in site.cluster.pods_of("web"):
        site.cluster.delete_by_hand(pod.ref)
    site.run(100)
    assert 3 <= len(lifts(site)) - before <= 6, lifts(site)[before:]
    rejected = site.engine.desk.blockings.rejected["gpu1/gpus"]
    assert rejected.count >= 3 and "UnexpectedAdmissionError" in rejected.reason
    site.cluster.failing.clear()
    assert site.run(900, lambda: site.cluster.ready_count("web") == 2), site.explain()
    assert "gpu1/gpus" not in site.engine.desk.blockings.rejected


def test_a_rejected_miner_is_taken_away_and_made_again_later(pod_site: MakeSite) -> None:
    """A node rejects a miner: it is not tried without pause, and mines again once the node takes pods."""
    site = pod_site()
    site.cluster.failing.add("gpu1")
    miner = site.cluster.miners_on("gpu1")[0]
    site.cluster.delete_by_hand(miner.ref)
    site.run(60)
    made = [call for call in site.cluster.log if call == f"make miner gpu1 {miner.slot}"]
    assert 2 <= len(made) <= 6, made
    site.cluster.failing.clear()
    quiet(site, serving=0, mining=8, seconds=200)


def test_a_gate_that_somebody_else_lifts_is_charged_and_gets_a_place(pod_site: MakeSite) -> None:
    """The scheduler pushes a miner out for it, which is not our doing; its unit becomes one of inference, nobody is evicted."""
    site = pod_site()
    site.cluster.is_down = True
    site.cluster.deploy("web", 1, is_gated=False)
    site.run(2)
    site.cluster.is_down = False
    pushed = len(site.cluster.preempted)
    assert pushed == 1
    site.cluster.preempted.clear()
    site.wrong.clear()
    assert site.run(200, lambda: site.cluster.ready_count("web") == 1), site.explain()
    bank = f"{site.cluster.pods_of('web')[0].node}/gpus"

    def places() -> int:
        return sum(p.count for p in site.state.holdings[bank].placements if p.point.startswith("serve"))

    assert site.run(60, lambda: places() == 1), site.explain()
    quiet(site, serving=1, mining=7)
    assert not site.cluster.evicted
    assert not site.flips(Phase.ROLLED_BACK, Phase.FAILED)


def test_a_pod_that_finds_no_node_in_time_is_evicted_and_comes_back_gated(pod_site: MakeSite) -> None:
    """The scheduler finds no place for a lifted pod: after the deadline its owner makes it again, behind the gate."""
    site = pod_site()
    site.cluster.deploy("web", 1)
    assert site.run(60, lambda: bool(lifts(site))), site.explain()
    lifted = next(pod for pod in site.cluster.pods_of("web"))
    assert lifted.is_under_way
    found = site.cluster.state.nodes[lifted.aimed_at]
    site.cluster.state.see_node(replace(found, gpu_count=0))
    assert site.run(60, lambda: lifted.name in site.cluster.evicted), site.explain()
    site.cluster.state.see_node(found)
    site.run(2)
    assert all(pod.is_gated for pod in site.cluster.pods_of("web"))
    quiet(site, serving=1, mining=7, seconds=400)


def test_an_ownerless_pod_that_finds_no_node_is_kept_and_its_place_with_it(pod_site: MakeSite) -> None:
    """Nobody would make it again: it is not evicted, its watts stay reserved, and it starts when a node takes it."""
    site = pod_site()
    site.cluster.deploy("lone", 1)
    pod = site.cluster.pods_of("lone")[0]
    site.cluster.workloads.clear()
    site.cluster.state.see_pod(replace(pod, owner_uid="", owner_kind=""))
    assert site.run(60, lambda: bool(lifts(site))), site.explain()
    there = site.cluster.state.pods[pod.key]
    assert there.is_under_way
    found = site.cluster.state.nodes[there.aimed_at]
    site.cluster.state.see_node(replace(found, gpu_count=0))
    reserved = site.state.ledger.claim_w(f"{there.aimed_at}/gpus")
    site.run(120)
    assert not site.cluster.evicted
    assert site.state.open_flips(f"{there.aimed_at}/gpus")
    assert site.state.ledger.claim_w(f"{there.aimed_at}/gpus") >= reserved - 1.0
    site.cluster.state.see_node(found)
    assert site.run(60, lambda: site.cluster.state.pods[pod.key].is_ready), site.explain()
    quiet(site, serving=1, mining=7)
    assert not site.cluster.evicted


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_lost_answers_only_cost_time(pod_site: MakeSite, ratio: float) -> None:
    """Answers get lost and servers ask to wait: the same pods are moved once, later."""
    site = pod_site()
    site.cluster.lost_calls_ratio = ratio
    site.cluster.deploy("web", 4)
    assert site.run(600, lambda: site.cluster.ready_count("web") == 4 and site.is_quiet()), site.explain()
    site.cluster.deploy("web", 1)
    quiet(site, serving=1, mining=7, seconds=600)
    assert not site.cluster.evicted


def test_while_the_api_is_down_nothing_moves_and_nothing_breaks(pod_site: MakeSite) -> None:
    """Ten minutes without an API: everybody works on; then demand is served."""
    site = pod_site()
    site.cluster.deploy("web", 2)
    quiet(site, serving=2, mining=6)
    site.cluster.is_down = True
    site.cluster.deploy("web", 5)
    for _ in range(600):
        site.step()
        assert site.tenants()["llm"] == 2
    site.assert_right()
    site.cluster.is_down = False
    quiet(site, serving=5, mining=3)
    assert not site.flips(Phase.FAILED)


def test_without_a_permit_no_call_is_made_and_with_it_all_goes_on(pod_site: MakeSite) -> None:
    """The lease is lost in the middle of a change and won again: not one call in between, and the change ends."""
    site = pod_site()
    site.cluster.deploy("web", 3)
    site.run(3)
    site.cluster.permit_s = 0.0
    calls = len(site.cluster.log)
    site.run(90)
    assert len(site.cluster.log) == calls
    site.assert_right()
    site.cluster.permit_s = 60.0
    quiet(site, serving=3, mining=5)
