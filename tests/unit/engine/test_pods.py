"""Pods and GPUs change hands: demand rises and falls, workloads are rolled, pods are deleted, big ones wait for a whole node."""

from __future__ import annotations

from collections.abc import Callable

from swingbus_controller.domain.flips.flip import Phase
from tests.fakes.pod_site import PodSite

MakeSite = Callable[..., PodSite]


def quiet(site: PodSite, *, serving: int, mining: int, seconds: int = 200) -> None:
    """Wait until so many GPUs truly work for each, and nothing is under way."""

    def is_there() -> bool:
        return site.tenants() == {"miner": mining, "llm": serving} and site.is_quiet()

    assert site.run(seconds, is_there), f"{site.tenants()}\n{site.explain()}"
    site.assert_right()


def test_demand_rises_miners_leave_and_gates_are_lifted(pod_site: MakeSite) -> None:
    """Three pods ask: three miners are deleted, three gates lifted, nobody is pushed out or evicted."""
    site = pod_site()
    quiet(site, serving=0, mining=8)
    site.cluster.deploy("web", 3)
    quiet(site, serving=3, mining=5)
    assert site.cluster.ready_count("web") == 3
    calls = [each.split()[0] for each in site.cluster.log]
    assert calls.count("delete") == calls.count("lift") == 3
    assert not site.cluster.evicted


def test_miners_that_made_room_come_back_at_once_when_demand_falls(pod_site: MakeSite) -> None:
    """That they ended when they were asked to leave speaks against nobody: units do not rest for it."""
    site = pod_site()
    quiet(site, serving=0, mining=8)
    site.cluster.deploy("web", 6)
    quiet(site, serving=6, mining=2)
    assert not site.engine.desk.blockings.rejected
    site.cluster.deploy("web", 0)
    quiet(site, serving=0, mining=8)
    assert not site.flips(Phase.ROLLED_BACK, Phase.FAILED)


def test_a_lift_comes_only_after_the_miner_is_gone_and_its_gpu_is_free(pod_site: MakeSite) -> None:
    """While miners leave, and while their processes outlive them, no gate is lifted."""
    site = pod_site()
    for slot in range(4):
        for node in ("gpu1", "gpu2"):
            site.cluster.slow_to_end_s[f"miner-{node}-{slot}"] = 6.0
    site.cluster.deploy("web", 1)
    while not any(each.startswith("lift") for each in site.cluster.log):
        site.step()
        assert site.clock.s < 11_000, site.explain()
        is_free = site.tenants()["miner"] == 7 and len(site.cluster.processes) == 7
        assert is_free or not any(each.startswith("lift") for each in site.cluster.log)
    quiet(site, serving=1, mining=7)


def test_scale_down_gives_units_back_and_evicts_nobody(pod_site: MakeSite) -> None:
    """Two of four pods go by themselves: their GPUs mine again, the others are not touched."""
    site = pod_site()
    site.cluster.deploy("web", 4)
    quiet(site, serving=4, mining=4)
    site.cluster.deploy("web", 2)
    stay = {pod.ref for pod in site.cluster.pods_of("web") if not pod.is_leaving}
    quiet(site, serving=2, mining=6)
    assert {pod.ref for pod in site.cluster.pods_of("web")} == stay
    assert not site.cluster.evicted


def test_a_pod_deleted_by_hand_is_replaced_in_its_place(pod_site: MakeSite) -> None:
    """Its place stands empty and has its watts: the next one comes without a flip and without a miner in between."""
    site = pod_site()
    site.cluster.deploy("web", 2)
    quiet(site, serving=2, mining=6)
    flips, made = len(site.state.flips), sum("make" in each for each in site.cluster.log)
    first = site.cluster.pods_of("web")[0]
    site.cluster.delete_by_hand(first.ref)
    assert site.run(30, lambda: site.cluster.ready_count("web") == 2 and site.tenants()["llm"] == 2), site.explain()
    site.run(20)
    assert len(site.state.flips) == flips
    assert sum("make" in each for each in site.cluster.log) == made
    assert site.cluster.state.pod(first.ref) is None
    site.assert_right()


def test_a_rolling_replacement_keeps_its_places(pod_site: MakeSite) -> None:
    """One after the other is replaced; never are fewer than two ready once three were, and no GPU goes to a miner meanwhile."""
    site = pod_site()
    site.cluster.deploy("web", 3)
    quiet(site, serving=3, mining=5)
    for pod in site.cluster.pods_of("web"):
        site.cluster.delete_by_hand(pod.ref)
        assert site.run(40, lambda: site.cluster.ready_count("web") == 3), site.explain()
        assert site.tenants()["miner"] == 5
    quiet(site, serving=3, mining=5)
    assert not site.cluster.evicted


def test_a_pod_of_four_waits_for_a_whole_node_and_is_served(pod_site: MakeSite) -> None:
    """Small pods are on both nodes; when those of one node are gone its four GPUs go to the pod that asks for four."""
    site = pod_site()
    site.cluster.deploy("web", 5)
    quiet(site, serving=5, mining=3)
    site.cluster.deploy("big", 1, gpu_count=4, priority=10)
    site.run(60)
    assert site.cluster.ready_count("big") == 0
    assert site.cluster.ready_count("web") == 5
    site.cluster.deploy("web", 2)
    for pod in site.cluster.pods_of("web"):
        if pod.node == "gpu2" and not pod.is_leaving:
            site.cluster.delete_by_hand(pod.ref)
    assert site.run(200, lambda: site.cluster.ready_count("big") == 1), site.explain()
    assert site.run(100, lambda: site.cluster.ready_count("web") == 2), site.explain()
    site.assert_right()


def test_small_pods_do_not_starve_a_big_one_that_is_first_in_line(pod_site: MakeSite) -> None:
    """Four pods of one node leave, their GPUs get free one after the other: small ones that wait too stand back for the big one."""
    site = pod_site()
    for name, node in (("one", "gpu1"), ("two", "gpu2")):
        site.cluster.deploy(name, 4, selector={"kubernetes.io/hostname": node})
    quiet(site, serving=8, mining=0)
    site.cluster.deploy("big", 1, gpu_count=4, priority=10)
    site.cluster.deploy("late", 4)
    site.run(5)
    for number, pod in enumerate(site.cluster.pods_of("one")):
        site.cluster.slow_to_end_s[pod.name] = 4.0 * number
    site.cluster.deploy("one", 0)
    assert site.run(100, lambda: site.cluster.ready_count("big") == 1), site.explain()
    assert site.cluster.ready_count("late") == 0
    assert site.cluster.ready_count("two") == 4
    assert not site.cluster.evicted
    site.assert_right()


def test_the_dearer_pod_comes_first_where_not_all_fit(pod_site: MakeSite) -> None:
    """Ten ask for eight GPUs: the five dear ones are all served, the two that wait are cheap."""
    site = pod_site()
    site.cluster.deploy("cheap", 5)
    site.cluster.deploy("dear", 5, priority=100)
    assert site.run(200, lambda: site.tenants()["llm"] == 8 and site.is_quiet()), site.explain()
    assert site.cluster.ready_count("dear") == 5
    assert site.cluster.ready_count("cheap") == 3
    assert not site.cluster.evicted
    site.assert_right()


def test_in_place_restart_of_containers_changes_nothing(pod_site: MakeSite) -> None:
    """The processes of a pod end and come back under the same pod: no flip, no call."""
    site = pod_site()
    site.cluster.deploy("web", 2)
    quiet(site, serving=2, mining=6)
    calls, flips = len(site.cluster.log), len(site.state.flips)
    chosen = site.cluster.pods_of("web")[0]
    for _ in range(5):
        site.cluster.restart_in_place(chosen.ref)
        site.run(2)
        assert site.tenants()["llm"] == 1
        site.run(8)
    quiet(site, serving=2, mining=6)
    assert (len(site.cluster.log), len(site.state.flips)) == (calls, flips)
    assert site.cluster.state.pod(chosen.ref) is not None


def test_demand_that_comes_and_goes_faster_than_flips_ends_as_it_stands(pod_site: MakeSite) -> None:
    """A workload is scaled up and down every two seconds; then it rests: exactly what it asks for is served."""
    site = pod_site()
    for turn in range(20):
        site.cluster.deploy("web", (turn * 5) % 7)
        site.run(2)
        site.assert_right()
    site.cluster.deploy("web", 3)
    quiet(site, serving=3, mining=5)
    assert not site.flips(Phase.FAILED)
    assert not site.cluster.evicted
